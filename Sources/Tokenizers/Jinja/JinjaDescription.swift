/// Expressions in words, for messages.
extension JinjaNode {
    /// ` (in "messages[0].role")` for an expression that is short to write, else nothing.
    var quoted: String {
        let text = source
        return text.isEmpty || text.utf8.count > 80 ? "" : " (in \"\(text)\")"
    }

    /// The expression, written anew; empty where it has no short form.
    private var source: String {
        switch expression {
        case .literal(let value): (try? JinjaValue.list([value]).text().dropFirst().dropLast()).map(String.init) ?? ""
        case .name(let name): name
        case .attribute(let object, let name): object.joined(".\(name)")
        case .item(let object, let index): object.joined("[\(index.source)]")
        case .slice(let object, let start, let stop, let step):
            object.joined(
                "[\(start?.source ?? ""):\(stop?.source ?? "")" + (step.map { ":\($0.source)" } ?? "") + "]")
        case .call(let callee, _): callee.joined("(...)")
        case .filter(let operand, let name, _): operand.joined("|\(name)")
        case .test(let operand, let name, _, let isNegated): operand.joined(" is \(isNegated ? "not " : "")\(name)")
        case .binary(let left, let symbol, let right): left.joined(" \(symbol) \(right.source)")
        case .negative(let operand): "-\(operand.source)"
        default: ""
        }
    }

    /// The expression followed by `suffix`; a part without a short form is written as dots.
    private func joined(_ suffix: String) -> String {
        let text = depth > 12 ? "" : source
        return (text.isEmpty ? "..." : text) + suffix
    }
}
