import Formats
import PEFT

/// A file of rows with the share that it has in a run.
public struct DataSource: Sendable, Equatable {
    /// The file: JSONL, JSON, CSV or TSV, each also gzip'd.
    public var path: String
    /// How often an epoch takes each row: 2 is twice; of 0.5 an epoch takes half of the rows, another half each time.
    public var weight: Double

    /// Names a file.
    public init(_ path: String, weight: Double = 1) {
        self.path = path
        self.weight = weight
    }

    /// Reads what follows `--data`: a path, or a path and a weight as in `rows.csv=0.5`.
    ///
    /// The last `=` is part of the name where a file of the whole name exists or no number follows.
    public init(argument text: String) {
        if PathKind(text) == .missing, let sign = text.lastIndex(of: "="), sign > text.startIndex,
            let weight = Double(text[text.index(after: sign)...])
        {
            self.init(String(text[..<sign]), weight: weight)
        } else {
            self.init(text)
        }
    }

    /// The path, and the weight where it is not 1.
    public var description: String { weight == 1 ? path : "\(path) x \(weight.json.compact)" }

    /// - Throws: ``TrainingError`` when the weight is none.
    func validate() throws {
        guard !path.isEmpty else { throw TrainingError("a file of data has no path") }
        guard weight > 0, weight <= 1e4 else {
            throw TrainingError("the weight of \(path) is \(weight); expected a number above 0, at most 10000")
        }
    }
}

/// The sources of a recipe as a field's value: a path, or a list of paths and of objects with `path` and `weight`.
struct DataSourcesValue: FieldValue {
    var sources: [DataSource]

    static var form: String { "a path, or a list of paths or of {path, weight}" }

    init(_ sources: [DataSource]) {
        self.sources = sources
    }

    init?(json: JSON) {
        guard let sources = (json.array ?? [json]).reduce(into: [DataSource]?.some([]), Self.append) else { return nil }
        self.sources = sources
    }

    private static func append(_ sources: inout [DataSource]?, _ json: JSON) {
        if let path = json.string, !path.isEmpty {
            sources?.append(DataSource(path))
        } else if let object = json.object, object.keys.allSatisfy({ ["path", "weight"].contains($0) }),
            let path = object["path"]?.string, let weight = (object["weight"] ?? 1).double
        {
            sources?.append(DataSource(path, weight: weight))
        } else {
            sources = nil
        }
    }

    var json: JSON {
        if sources.isEmpty { return .string("") }
        if sources.count == 1, sources[0].weight == 1 { return .string(sources[0].path) }
        return JSON(
            sources.map { source in
                source.weight == 1
                    ? .string(source.path) : ["path": .string(source.path), "weight": source.weight.json]
            })
    }
}
