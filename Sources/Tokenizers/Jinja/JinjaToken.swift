/// A lexical element of a template.
struct JinjaToken {
    enum Kind: Equatable {
        /// Text between tags, given out as it is.
        case text(String)
        /// `{{`
        case outputBegin
        /// `}}`
        case outputEnd
        /// `{%`
        case blockBegin
        /// `%}`
        case blockEnd
        case name(String)
        case string(String)
        case integer(Int)
        case float(Double)
        /// An operator or a bracket.
        case symbol(String)
        /// The end of the template.
        case end

        /// The element in words, for messages.
        var description: String {
            switch self {
            case .text: "text"
            case .outputBegin: "\"{{\""
            case .outputEnd: "\"}}\""
            case .blockBegin: "\"{%\""
            case .blockEnd: "\"%}\""
            case .name(let name): "\"\(name)\""
            case .string(let value): "the string \(pythonRepr(value))"
            case .integer(let value): "\(value)"
            case .float(let value): "\(value)"
            case .symbol(let symbol): "\"\(symbol)\""
            case .end: "the end of the template"
            }
        }
    }

    let kind: Kind
    let line: Int
}
