#if GUIDED
import Foundation

/// LibFuzzer's way in for a program with its own `main`.
@_silgen_name("LLVMFuzzerRunDriver")
private func runDriver(
    _ count: UnsafeMutablePointer<Int32>,
    _ words: UnsafeMutablePointer<UnsafeMutablePointer<UnsafeMutablePointer<CChar>?>?>,
    _ body: @convention(c) (UnsafePointer<UInt8>?, Int) -> Int32
) -> Int32

/// LibFuzzer's own changes to a file, which know nothing of its form.
@_silgen_name("LLVMFuzzerMutate")
private func mutate(_ bytes: UnsafeMutablePointer<UInt8>, _ count: Int, _ room: Int) -> Int

/// Half of the changes are libFuzzer's, half those that know the form of the file.
@_cdecl("LLVMFuzzerCustomMutator")
public func customMutator(_ bytes: UnsafeMutablePointer<UInt8>, _ count: Int, _ room: Int, _ seed: UInt32) -> Int {
    guard seed % 2 == 0, let run = GuidedRun.current else { return mutate(bytes, count, room) }
    var mutator = Mutator(seed: UInt64(seed), words: run.words)
    let old = Array(UnsafeBufferPointer(start: bytes, count: count))
    let new = mutator.file(from: [old], form: run.fuzzCase.form).prefix(room)
    for (place, byte) in new.enumerated() { bytes[place] = byte }
    return new.count
}

/// A run in which libFuzzer keeps the files that reach new code, and makes more files of them.
enum GuidedRun {
    nonisolated(unsafe) fileprivate static var current: FuzzRun?

    /// Runs for some seconds, or until a file is a defect.
    ///
    /// - Parameters:
    ///   - folder: Where the files that reach new code are kept for the next run (`corpus/READER`), and those that are
    ///     defects (`defects/READER-...`).
    static func run(_ fuzzCase: FuzzCase, folder: String, seconds: Int) throws -> Int32 {
        let run = try FuzzRun(fuzzCase)
        current = run
        let corpus = folder + "/corpus/" + fuzzCase.name
        for path in [corpus, folder + "/defects"] {
            try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
        }
        for (place, bytes) in run.seeds.enumerated() { try Seeds.write(bytes, corpus + "/seed-\(place)") }
        run.limitAddresses(to: 1 << 30)
        let words = [
            "Fuzzer", corpus, "-max_total_time=\(seconds)", "-timeout=\(fuzzCase.seconds)", "-max_len=16384",
            "-rss_limit_mb=0", "-artifact_prefix=\(folder)/defects/\(fuzzCase.name)-", "-print_final_stats=1",
        ]
        var pointers: [UnsafeMutablePointer<CChar>?] = words.map { (word: String) in strdup(word) }
        pointers.append(nil)
        var count = Int32(words.count)
        let result = pointers.withUnsafeMutableBufferPointer { buffer in
            var start = buffer.baseAddress
            return runDriver(&count, &start) { start, count in
                GuidedRun.tryFile(Array(UnsafeBufferPointer(start: start, count: count)))
                return 0
            }
        }
        run.clear()
        return result
    }

    private static func tryFile(_ bytes: [UInt8]) {
        guard case .defect(let text)? = current?.read(bytes) else { return }
        say("defect: \(text)")
        // LibFuzzer keeps the file.
        abort()
    }
}
#endif
