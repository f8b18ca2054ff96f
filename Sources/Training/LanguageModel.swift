import Backbones
import Dispatch
import Formats
import PEFT
import Synchronization
import Tokenizers
import Torch

/// A pretrained language model with its tokenizer and chat template: what training, evaluation and generation start from.
///
/// ```swift
/// let model = try LanguageModel.load("smollm2-135m")
/// let adapter = try model.attach("lora", ["r": 16, "target_modules": "all-linear"])
/// try model.train(adapter, on: "train.jsonl", steps: 100, output: "runs/first")
/// print(try model.evaluate(on: "test.jsonl").loss)
/// try adapter.save(to: "adapters/first")
/// ```
public final class LanguageModel {
    /// The folder, file or alias that the model was loaded by.
    public let name: String
    /// The network.
    public let backbone: any Backbone
    /// The tokenizer.
    public var tokenizer: Tokenizer { text.tokenizer }
    /// The chat template, or nil where the model has none.
    public var chatTemplate: ChatTemplate? { text.template }
    /// The tokenizer and the chat template with what tells them from others.
    public let text: TextModel

    /// Puts a model together from its parts.
    public convenience init(
        name: String, backbone: any Backbone, tokenizer: Tokenizer, chatTemplate: ChatTemplate? = nil
    ) {
        self.init(
            name: name, backbone: backbone, text: TextModel(tokenizer: tokenizer, template: chatTemplate))
    }

    /// Puts a model together from its parts.
    public init(name: String, backbone: any Backbone, text: TextModel) {
        self.name = name
        self.backbone = backbone
        self.text = text
    }

    /// Loads a model; the tokenizer is read on another thread meanwhile.
    ///
    /// - Parameters:
    ///   - name: A folder, a `.gguf` file, or an alias such as `smollm2-135m`.
    ///   - dtype: The dtype of the frozen weights and the activations.
    ///   - device: Where the model runs.
    ///   - form: How the frozen matrices are held.
    ///   - keepsBlocks: With `auto` on the CPU and ``WeightForm/plain``: leaves quantised weights packed and computes in
    ///     fp32 around them, which is the fastest way to generate text; see ``PackedMatrix``.
    /// - Throws: `ModelError`, `FormatError`, `TokenizerError` or `TemplateError` saying what is missing or wrong;
    ///   ``TrainingError`` when the device is not there.
    public static func load(
        _ name: String, dtype: Precision = .auto, device: DeviceChoice = .auto, form: WeightForm = .plain,
        keepsBlocks: Bool = false
    ) throws -> LanguageModel {
        let checkpoint = try Checkpoint(name)
        let tokenizer = Background { [gguf = checkpoint.gguf, location = checkpoint.location] in
            try TextModel(location: location, gguf: gguf)
        }
        // Whatever fails, the other thread is waited for: nothing goes on after this function.
        let backbone = Result {
            let device = try device.device()
            let keeps = keepsBlocks && form == .plain && dtype == .auto && device == .cpu
            let form = try keeps && checkpoint.hasMultipliedBlocks ? .multipliedBlocks : form
            // The kernels of blocks take vectors in fp32.
            let isSingle = form == .multipliedBlocks && dtype == .auto
            return try checkpoint.backbone(
                dtype: isSingle ? .float32 : dtype.dtype(on: device), device: device, form: form)
        }
        let text = tokenizer.result()
        return LanguageModel(name: name, backbone: try backbone.get(), text: try text.get())
    }

    /// Makes a method's trainable tensors and puts them to work in the model.
    ///
    /// - Parameters:
    ///   - method: A name of the registry, such as `lora`.
    ///   - settings: Hyper-parameters and the selection of modules, by the names that peft has for them.
    ///   - seed: Every random tensor comes from a stream below it.
    /// - Returns: The adapter; the model runs with it until it is detached.
    /// - Throws: `PEFTError` when a name or setting is unknown or does not fit the model.
    public func attach(_ method: String, _ settings: KeyedList<JSON> = [:], seed: Seed = Seed(42)) throws -> Adapter {
        try Adapter(AdapterConfiguration(method: method, settings: settings), on: backbone, seed: seed)
    }

    /// The labels that the model tells apart; nil for one that writes.
    public var labels: [String]? { (backbone as? SequenceClassifier)?.labels }

    /// The model with a head that tells texts apart, over the same weights.
    ///
    /// - Parameters:
    ///   - labels: The names of the labels by their numbers.
    ///   - seed: The head's initial values come from a stream below it.
    /// - Throws: ``TrainingError`` for fewer than two labels; `TorchError` when memory is short.
    public func classifier(labels: [String], seed: Seed = Seed(42)) throws -> LanguageModel {
        guard labels.count > 1, Set(labels).count == labels.count else {
            throw TrainingError("a classifier tells at least two different labels apart, found \(labels)")
        }
        let base = (backbone as? SequenceClassifier)?.base ?? backbone
        let classifier = try SequenceClassifier(base, labels: labels, seed: seed)
        return LanguageModel(name: name, backbone: classifier, text: text)
    }

    /// The model with the adapter of a folder at work in it; one that tells texts apart where the adapter does.
    ///
    /// - Throws: As `Adapter.load(from:onto:)`.
    public func adapted(from folder: String) throws -> (model: LanguageModel, adapter: Adapter) {
        let labels = try PathKind(folder) == .folder ? SequenceClassifier.labels(ofAdapter: folder) : nil
        let model = try labels.map { try classifier(labels: $0) } ?? self
        return (model, try Adapter.load(from: folder, onto: model.backbone))
    }

    /// Reads a file of rows as tokens of this model.
    ///
    /// - Parameters:
    ///   - path: A file of rows; see ``Dataset``.
    ///   - maxLength: Tokens beyond this many are cut off each row, and never more than the model has positions for.
    /// - Throws: As ``Dataset/init(_:text:options:)``.
    public func dataset(_ path: String, maxLength: Int = 1024) throws -> Dataset {
        var options = Dataset.Options(maxLength: maxLength, cache: .standard)
        options.rows = try RowKind(of: path)
        return try dataset([DataSource(path)], options: options)
    }

    /// Reads files of rows as tokens of this model.
    ///
    /// - Parameters:
    ///   - sources: The files with their weights.
    ///   - options: How they are read; rows are never longer than the model has positions for.
    /// - Throws: As ``Dataset/init(_:text:options:)``.
    public func dataset(_ sources: [DataSource], options: Dataset.Options) throws -> Dataset {
        var options = options
        options.maxLength = min(options.maxLength, backbone.configuration.maxPositionEmbeddings)
        if options.rows == .labelled, let labels { options.labels = labels }
        return try Dataset(sources, text: text, options: options)
    }

    /// What the model, with what is attached to it, comes to on the rows of a file, by the objective that they are for.
    ///
    /// - Parameters:
    ///   - path: A file of rows; see ``Dataset``.
    ///   - maxLength: Tokens beyond this many are cut off each row.
    ///   - batchSize: Rows of one forward pass.
    /// - Throws: As ``Dataset/init(_:text:options:)``, and `TorchError` when memory is short.
    public func evaluate(on path: String, maxLength: Int = 1024, batchSize: Int = 8) throws -> Evaluation {
        try Evaluator(self, batchSize: batchSize).evaluate(dataset(path, maxLength: maxLength))
    }
}

/// Work that another thread does at the same time.
private final class Background<Value: Sendable>: Sendable {
    private let value = Mutex<Result<Value, any Error>?>(nil)
    private let isDone = DispatchSemaphore(value: 0)

    init(_ work: @escaping @Sendable () throws -> Value) {
        DispatchQueue.global(qos: .userInitiated).async {
            let result = Result { try work() }
            self.value.withLock { $0 = result }
            self.isDone.signal()
        }
    }

    /// Waits for the work; to be called once.
    func result() -> Result<Value, any Error> {
        isDone.wait()
        return value.withLock { $0 } ?? .failure(TrainingError("work on another thread was lost"))
    }
}
