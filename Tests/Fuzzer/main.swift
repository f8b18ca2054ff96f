// Gives broken files to a reader: `fuzzer READER SEED COUNT [FIRST]`. Reports each file that is refused without a typed
// error that names it; a crash, a hang or too much memory ends the process, and the file `status` in the folder that the
// last line of the output names holds the number of the file. Without arguments, lists the readers.
import Backbones
import Formats
import Foundation
import PEFT
import Tokenizers
import Training

#if canImport(Glibc)
import Glibc
#endif

/// What reading one file came to.
enum Outcome {
    case accepted
    case refused(String)
    case defect(String)
}

func readOnce(_ fuzzCase: FuzzCase, _ bytes: [UInt8], in folder: String) -> Outcome {
    do {
        try Seeds.write(bytes, folder + "/" + fuzzCase.file)
        try fuzzCase.read(folder)
        return .accepted
    } catch let error as FuzzDefect {
        return .defect(error.description)
    } catch {
        let text = "\(error)"
        let isTyped =
            error is FormatError || error is TokenizerError || error is TemplateError || error is PEFTError
            || error is TrainingError || error is ModelError
        guard isTyped else { return .defect("the error is a \(type(of: error)): \(text)") }
        guard !text.isEmpty, text.utf8.count < 3000 else { return .defect("the error has \(text.utf8.count) bytes") }
        guard error is TemplateError || text.contains(folder) else {
            return .defect("the error does not name the file: \(text)")
        }
        return .refused(text)
    }
}

/// Writes a line at once, so that it is there whatever happens next.
func say(_ line: String) { FileHandle.standardOutput.write(Data((line + "\n").utf8)) }

/// Lets the process have so many bytes of address space more than it has.
func limitMemory(to extra: UInt64) {
    let pages = (try? String(contentsOfFile: "/proc/self/statm", encoding: .utf8))?.split(separator: " ").first
    let used = (UInt64(pages ?? "") ?? 0) * 4096
    guard used > 0 else { return }
    var limit = rlimit(rlim_cur: rlim_t(used + extra), rlim_max: rlim_t(used + extra))
    setrlimit(__rlimit_resource_t(RLIMIT_AS.rawValue), &limit)
}

func run(_ fuzzCase: FuzzCase, seed: UInt64, first: Int, count: Int) throws -> Int32 {
    let memory = FileManager.default.isWritableFile(atPath: "/dev/shm") ? "/dev/shm" : NSTemporaryDirectory()
    let parent = memory + "/graft-fuzz-\(getpid())"
    let folder = parent + "/files"
    try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
    say("in \(parent)")
    try fuzzCase.prepare(folder)
    let seeds = try fuzzCase.seeds()
    var defects = 0
    func report(_ number: Int, _ text: String) {
        defects += 1
        say("defect: \(fuzzCase.name), seed \(seed), file \(number): \(text)")
    }
    for (place, bytes) in seeds.enumerated() {
        switch readOnce(fuzzCase, bytes, in: folder) {
        case .accepted: break
        case .refused(let text): report(-1 - place, "a good file is refused: \(text)")
        case .defect(let text): report(-1 - place, text)
        }
    }
    let status = open(parent + "/status", O_WRONLY | O_CREAT | O_TRUNC, 0o600)
    limitMemory(to: 256 << 20)
    var accepted = 0
    for number in first..<first + count {
        var mutator = Mutator(
            seed: seed &* 0x9E37_79B9_7F4A_7C15 &+ UInt64(truncatingIfNeeded: number), words: fuzzCase.words)
        let bytes = mutator.file(from: seeds, form: fuzzCase.form)
        let line = Array("\(number)\n".utf8)
        _ = line.withUnsafeBytes { pwrite(status, $0.baseAddress, $0.count, 0) }
        alarm(30)
        switch readOnce(fuzzCase, bytes, in: folder) {
        case .accepted: accepted += 1
        case .refused: break
        case .defect(let text): report(number, text)
        }
        if defects >= 20 { break }
    }
    alarm(0)
    say("\(fuzzCase.name): \(count) files, \(accepted) accepted, \(defects) defects")
    if defects == 0 { try? FileManager.default.removeItem(atPath: parent) }
    return defects == 0 ? 0 : 3
}

let arguments = CommandLine.arguments
if arguments.count < 2 {
    for fuzzCase in fuzzCases { say(fuzzCase.name) }
} else if let fuzzCase = fuzzCases.first(where: { $0.name == arguments[1] }) {
    let numbers = arguments.dropFirst(2).map { Int($0) ?? 0 }
    let seed = UInt64(truncatingIfNeeded: numbers.first ?? 1)
    do {
        exit(
            try run(
                fuzzCase, seed: seed, first: numbers.count > 2 ? numbers[2] : 0,
                count: numbers.count > 1 ? numbers[1] : 2000))
    } catch {
        say("defect: \(fuzzCase.name) cannot be prepared: \(error)")
        exit(3)
    }
} else {
    say("there is no reader \(arguments[1])")
    exit(2)
}
