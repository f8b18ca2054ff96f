import Formats
import Yams

/// YAML as far as recipes need it: mappings, lists, texts, numbers, truth values and null.
///
/// Plain words mean what YAML 1.2 says: `true`, `false`, `null`, `~` and numbers (also `1e-4`) are values, all else is
/// text, so that `no` and `on` are words and not truth values.
public enum YAML {
    /// A document's value, and its line or those of the entries of a mapping.
    struct Located {
        var value: JSON
        var line: Int
        /// The lines of a mapping's keys, in its order.
        var keyLines: [Int] = []
    }

    /// Reads a value, such as what follows the sign in `--set target_modules=[q_proj, v_proj]`.
    ///
    /// - Throws: `FormatError` when the text is no YAML.
    public static func value(_ text: String) throws -> JSON { try parse(text, file: nil).value }

    /// Reads a document.
    ///
    /// - Parameters:
    ///   - text: One YAML document; an empty one is null.
    ///   - file: The file's name for errors.
    /// - Throws: `FormatError` with the line of a mistake.
    static func parse(_ text: String, file: String?) throws -> Located {
        do {
            guard let node = try Yams.compose(yaml: text) else { return Located(value: .null, line: 1) }
            var converter = NodeConverter(file: file)
            return try converter.located(node, depth: 0)
        } catch let error as YamlError {
            throw FormatError(
                file: file, place: line(of: error).map { .row($0) }, "this is not valid YAML: \(reason(error))")
        }
    }

    /// Writes a value as a document in block style, which ``parse(_:file:)`` reads back as the same value.
    ///
    /// - Throws: `FormatError` when the text cannot be made.
    static func text(_ value: JSON) throws -> String {
        do {
            return try Yams.serialize(node: node(value), width: -1, allowUnicode: true)
        } catch {
            throw FormatError("the value cannot be written as YAML: \(error)")
        }
    }

    private static func node(_ value: JSON) -> Node {
        switch value {
        case .null: Node("null", Tag(.null), .plain)
        case .bool(let flag): Node(flag ? "true" : "false", Tag(.bool), .plain)
        case .integer(let number): Node("\(number)", Tag(.int), .plain)
        case .number(let number): Node(pythonRepr(number), Tag(.float), .plain)
        case .string(let text): Node(text, Tag(.str), plainValue(text).string == nil ? .doubleQuoted : .any)
        case .array(let items): Node(items.map(node), Tag(.seq), .flow)
        case .object(let pairs): Node(pairs.map { (Node($0.key, Tag(.str), .any), node($0.value)) }, Tag(.map), .block)
        }
    }

    /// What a plain word means.
    fileprivate static func plainValue(_ text: String) -> JSON {
        switch text {
        case "", "~", "null", "Null", "NULL": return .null
        case "true", "True", "TRUE": return true
        case "false", "False", "FALSE": return false
        default: break
        }
        if let integer = Int64(text) { return .integer(integer) }
        // Swift also reads hexadecimal floats and names such as "inf" and "nan", which are words here.
        let isDecimal = text.utf8.allSatisfy { (0x30...0x39).contains($0) || "+-.eE".utf8.contains($0) }
        if isDecimal, text.utf8.contains(where: { (0x30...0x39).contains($0) }), let number = Double(text),
            number.isFinite
        {
            return .number(number)
        }
        return .string(text)
    }

    private static func line(of error: YamlError) -> Int? {
        switch error {
        case .scanner(_, _, let mark, _), .parser(_, _, let mark, _), .composer(_, _, let mark, _): mark.line
        default: nil
        }
    }

    private static func reason(_ error: YamlError) -> String {
        switch error {
        case .scanner(_, let problem, _, _), .parser(_, let problem, _, _), .composer(_, let problem, _, _): problem
        default: "\(error)".split(separator: "\n").joined(separator: " ")
        }
    }
}

private struct NodeConverter {
    let file: String?
    /// Aliases can make a short text into a tree without end.
    private var left = 10_000

    init(file: String?) {
        self.file = file
    }

    mutating func located(_ node: Node, depth: Int) throws -> YAML.Located {
        let line = node.mark?.line ?? 1
        left -= 1
        guard left > 0, depth < 32 else {
            throw error("there are too many values, or they are nested too deeply", line)
        }
        switch node {
        case .scalar(let scalar):
            let isPlain = scalar.style == .plain || scalar.style == .any
            return YAML.Located(value: isPlain ? YAML.plainValue(scalar.string) : .string(scalar.string), line: line)
        case .sequence(let sequence):
            var items: [JSON] = []
            for item in sequence { items.append(try located(item, depth: depth + 1).value) }
            return YAML.Located(value: .array(items), line: line)
        case .mapping(let mapping):
            var keyLines: [Int] = []
            var pairs = KeyedList<JSON>()
            for (key, value) in mapping {
                guard case .scalar(let name) = key else { throw error("a key is not a word", key.mark?.line ?? line) }
                let keyLine = key.mark?.line ?? line
                keyLines.append(keyLine)
                guard pairs.appendIfNew(key: name.string, value: try located(value, depth: depth + 1).value) else {
                    throw error("the key \"\(name.string)\" is there twice", keyLine)
                }
            }
            return YAML.Located(value: .object(pairs), line: line, keyLines: keyLines)
        default: throw error("aliases are not supported; write the value out", line)
        }
    }

    private func error(_ message: String, _ line: Int) -> FormatError {
        FormatError(file: file, place: .row(line), message)
    }
}
