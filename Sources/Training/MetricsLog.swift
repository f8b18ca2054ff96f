import Formats
import Foundation

/// The file `metrics.jsonl`: a JSON object a line, appended and readable at once.
public final class MetricsLog {
    private let file: AppendFile

    /// Begins a log, or goes on with that of an interrupted run.
    ///
    /// - Parameters:
    ///   - path: The file. It must not exist unless the run is resumed.
    ///   - resumedStep: The step after which a resumed run goes on: lines of later steps are cut off, because those
    ///     steps are taken again. A torn last line, which a killed run leaves, is cut off too. `nil` for a new run.
    /// - Throws: `FormatError` when the file cannot be opened or rewritten, or a line that is not the last is no object
    ///   with a whole `step`.
    public init(path: String, resumedStep: Int? = nil) throws {
        if let resumedStep, PathKind(path) == .file { try Self.cut(path, after: resumedStep) }
        file = try AppendFile(path: path, isNew: resumedStep == nil)
    }

    /// Appends a line.
    ///
    /// - Throws: `FormatError` when it could not be written whole; the file then lacks all of it.
    public func append(_ metrics: Metrics) throws {
        try file.append(Array((metrics.json.compact + "\n").utf8))
    }

    /// Reads a log, of a run that may still be going on.
    ///
    /// - Parameter path: The file.
    /// - Returns: Its lines in their order, without a last one that is torn.
    /// - Throws: `FormatError` when the file cannot be read, or a line is no object with a whole `step`.
    public static func read(path: String) throws -> [Metrics] {
        try lines(of: path).map(\.metrics)
    }

    /// Rewrites the file, unless it has no line too many.
    private static func cut(_ path: String, after step: Int) throws {
        let data = try contents(of: path)
        let kept = try lines(of: path, data).filter { $0.metrics.step <= step }
        let rest = Data(kept.flatMap { $0.text + [newline] })
        if rest != data { try AtomicFile.write(rest, to: path) }
    }

    private static func lines(of path: String, _ data: Data? = nil) throws -> [(text: Data, metrics: Metrics)] {
        let parts = try (data ?? contents(of: path)).split(separator: newline, omittingEmptySubsequences: false)
        // What follows the last line break is empty, or it was torn in the middle.
        return try parts.dropLast().enumerated().compactMap { index, text in
            guard !text.isEmpty else { return nil }
            let json = try? JSON.parse(Data(text))
            guard let metrics = json.flatMap(Metrics.init(json:)) else {
                throw FormatError(
                    file: path, "line \(index + 1) is not a JSON object with a whole \"step\"; mend or remove the line")
            }
            return (Data(text), metrics)
        }
    }

    private static func contents(of path: String) throws -> Data {
        do {
            return try Data(contentsOf: URL(fileURLWithPath: path))
        } catch {
            throw FormatError(file: path, "cannot be read; check that it is a file that you may read")
        }
    }

    private static let newline = UInt8(ascii: "\n")
}
