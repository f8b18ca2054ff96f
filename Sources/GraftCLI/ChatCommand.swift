import ArgumentParser
import Graft

/// `graft chat`: a conversation in the terminal.
struct ChatCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "chat",
        abstract: "Talk with a model in the terminal.",
        discussion: """
            Each line is a message; the answer appears as it is written. Lines that begin with a slash are commands: \
            /reset forgets the conversation, /system TEXT sets the system's message and forgets the conversation, \
            /help lists the commands, /exit (or Ctrl-D) ends. Messages may come from a pipe.
            """)

    @OptionGroup(title: "Model") var options: ModelOptions

    @Option(help: ArgumentHelp("The system's message.", valueName: "text"))
    var system: String?

    @OptionGroup(title: "Sampling") var sampling: SamplingOptions

    func run() throws {
        let model = try options.load(keepsBlocks: true)
        // Without a template there is no conversation; say so before the first message is typed.
        _ = try model.promptTokens(ChatConversation([ChatMessage(role: "user", content: "?")]))
        var conversation = Conversation(model: model, system: system, settings: sampling.settings())
        if InputLines.isInteractive { Output.note("\(model.name): type a message, or /help") }
        var number = 0
        while let line = try nextLine(number: number + 1) {
            number += 1
            switch ChatLine(line) {
            case .nothing: continue
            case .message(let text): try conversation.answer(text)
            case .reset: conversation.reset()
            case .system(let text): conversation.reset(system: text)
            case .help: Output.note("/reset  /system TEXT  /help  /exit")
            case .exit: return
            case .unknown(let name):
                Output.note("there is no command \(name).\(suggestion(for: name, in: ChatLine.names))")
            }
        }
    }

    private func nextLine(number: Int) throws -> String? {
        if InputLines.isInteractive { try Output.write("> ") }
        let line = try InputLines.next(number: number)
        if line == nil, InputLines.isInteractive { try Output.write("\n") }
        return line
    }
}

/// What a typed line asks for.
private enum ChatLine {
    case nothing, message(String), reset, system(String?), help, exit, unknown(String)

    static let names = ["/reset", "/system", "/help", "/exit"]

    init(_ line: String) {
        let words = line.split(separator: " ", maxSplits: 1).map(String.init)
        guard let first = words.first?.filter({ $0 != "\r" }), !first.isEmpty else {
            self = .nothing
            return
        }
        guard first.hasPrefix("/") else {
            self = .message(line)
            return
        }
        switch first {
        case "/reset": self = .reset
        case "/system": self = .system(words.count > 1 ? words[1] : nil)
        case "/help": self = .help
        case "/exit", "/quit": self = .exit
        default: self = .unknown(first)
        }
    }
}

/// The messages so far and the model that answers them.
private struct Conversation {
    let model: LanguageModel
    var system: String?
    var settings: GenerationSettings
    private var messages: [ChatMessage] = []
    private let seed: Seed
    private var turn: UInt64 = 0

    init(model: LanguageModel, system: String?, settings: GenerationSettings) {
        self.model = model
        self.system = system
        self.settings = settings
        seed = settings.seed
        reset()
    }

    /// Forgets the conversation.
    mutating func reset() {
        messages = system.map { [ChatMessage(role: "system", content: $0)] } ?? []
        turn = 0
    }

    /// Forgets the conversation and sets the system's message, or none.
    mutating func reset(system: String?) {
        self.system = system
        reset()
    }

    /// Writes the answer to a message; one that does not fit is taken back.
    mutating func answer(_ text: String) throws {
        messages.append(ChatMessage(role: "user", content: text))
        // Each turn draws its own numbers, else equal beginnings would go on alike.
        settings.seed = Seed(seed.value &+ turn)
        let generator = TextGenerator(model.backbone, tokenizer: model.tokenizer)
        do {
            let answer = try generator.generate(try model.promptTokens(ChatConversation(messages)), settings: settings)
            {
                try Output.write($0)
                return true
            }
            try Output.write("\n")
            messages.append(ChatMessage(role: "assistant", content: answer.text))
            turn += 1
        } catch let error as ModelError {
            messages.removeLast()
            Output.note("\(error); /reset begins anew")
        }
    }
}
