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

/// A reader with the folder that it is given, in a folder of its own with a file that it must not touch.
final class FuzzRun {
    static let folderName = "files"

    let fuzzCase: FuzzCase
    /// Good contents of the file that changes.
    let seeds: [[UInt8]]
    /// What lies outside the reader's folder.
    let parent: String
    private let folder: String
    private let watch: OutsideWatch
    private let status: Int32
    /// The most memory that the process may have taken, in bytes; nil before ``limitMemory(to:)``.
    private var memoryLimit: Int?

    init(_ fuzzCase: FuzzCase) throws {
        let memory = FileManager.default.isWritableFile(atPath: "/dev/shm") ? "/dev/shm" : NSTemporaryDirectory()
        // The name is part of the words, so it always has the same length.
        let number = "\(getpid())"
        parent = memory + "/graft-fuzz-" + String(repeating: "0", count: max(0, 8 - number.count)) + number
        folder = parent + "/" + Self.folderName
        self.fuzzCase = fuzzCase
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        try fuzzCase.prepare(folder)
        seeds = try fuzzCase.seeds()
        let outside = parent + "/outside.safetensors"
        if !FileManager.default.fileExists(atPath: outside) { try Seeds.write("outside", outside) }
        status = open(parent + "/status", O_WRONLY | O_CREAT | O_TRUNC, 0o600)
        watch = OutsideWatch(parent)
    }

    deinit { close(status) }

    /// Removes what was written.
    func clear() { try? FileManager.default.removeItem(atPath: parent) }

    /// Words to be put into files: the format's, and the way out of the folder.
    var words: [String] { fuzzCase.words + [parent + "/outside.safetensors"] }

    /// Writes which file comes next where it is found when the process ends.
    func note(_ number: Int) {
        let line = Array("\(number)\n".utf8)
        _ = line.withUnsafeBytes { pwrite(status, $0.baseAddress, $0.count, 0) }
    }

    /// Gives the reader a file.
    func read(_ bytes: [UInt8]) -> Outcome {
        let outcome = readOnce(bytes)
        if let name = watch.touched() { return .defect("the reader went out of its folder, to \(name)") }
        if let memoryLimit {
            let peak = Self.peakMemory()
            if peak > memoryLimit {
                self.memoryLimit = peak + (16 << 20)
                let excess = (peak - memoryLimit) >> 20
                return .defect("a file of \(bytes.count) bytes took \(excess) MiB more than it may")
            }
        }
        return outcome
    }

    private func readOnce(_ bytes: [UInt8]) -> Outcome {
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
            let size = text.utf8.count
            guard (1..<3000).contains(size) else { return .defect("the error has \(size) bytes") }
            guard error is TemplateError || text.contains(folder) else {
                return .defect("the error does not name the file: \(text)")
            }
            return .refused(text)
        }
    }

    // MARK: Memory

    /// Lets the process have so many bytes of address space more than it has.
    func limitAddresses(to extra: UInt64) {
        let pages = (try? String(contentsOfFile: "/proc/self/statm", encoding: .utf8))?.split(separator: " ").first
        let used = (UInt64(pages ?? "") ?? 0) * 4096
        guard used > 0 else { return }
        var limit = rlimit(rlim_cur: rlim_t(used + extra), rlim_max: rlim_t(used + extra))
        setrlimit(__rlimit_resource_t(RLIMIT_AS.rawValue), &limit)
    }

    /// From now on more memory than the reader may have is a defect.
    func limitMemory() { memoryLimit = Self.peakMemory() + fuzzCase.memory }

    /// The most memory that the process has had, in bytes.
    static func peakMemory() -> Int {
        var usage = rusage()
        guard getrusage(__rusage_who_t(RUSAGE_SELF.rawValue), &usage) == 0 else { return 0 }
        return Int(usage.ru_maxrss) << 10
    }
}
