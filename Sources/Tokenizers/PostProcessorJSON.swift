import Formats

/// Reads the post-processor of a tokenizer.json.
enum PostProcessorJSON {
    private static let supported = [
        "BertProcessing", "ByteLevel", "RobertaProcessing", "Sequence", "TemplateProcessing",
    ]

    static func processor(_ component: JSONComponent?) throws -> PostProcessor {
        guard let component else { return PostProcessor() }
        let steps = try steps(component)
        let templates = steps.filter { if case .template = $0 { true } else { false } }
        guard templates.count <= 1 else {
            throw component.error("more than one processor that adds tokens is not supported")
        }
        return PostProcessor(steps: steps)
    }

    private static func steps(_ component: JSONComponent) throws -> [PostProcessor.Step] {
        switch try component.type() {
        case "Sequence": return try component.components("processors").flatMap { try steps($0) }
        case "ByteLevel":
            guard try component.flag("trim_offsets", default: true) else { return [] }
            return [.trim(addPrefixSpace: try component.flag("add_prefix_space", default: true))]
        case "TemplateProcessing": return [.template(try template(component))]
        case "BertProcessing":
            let (cls, sep) = (try token(component, "cls"), try token(component, "sep"))
            let single: [PostTemplate.Piece] = [
                .special(ids: [cls], typeID: 0), .text(0, typeID: 0), .special(ids: [sep], typeID: 0),
            ]
            let second: [PostTemplate.Piece] = [.text(1, typeID: 1), .special(ids: [sep], typeID: 1)]
            return [.template(PostTemplate(single: single, pair: single + second))]
        case "RobertaProcessing":
            let (cls, sep) = (try token(component, "cls"), try token(component, "sep"))
            let single: [PostTemplate.Piece] = [
                .special(ids: [cls], typeID: 0), .text(0, typeID: 0), .special(ids: [sep], typeID: 0),
            ]
            let second: [PostTemplate.Piece] = [
                .special(ids: [sep], typeID: 0), .text(1, typeID: 0), .special(ids: [sep], typeID: 0),
            ]
            let trims = try component.flag("trim_offsets", default: true)
            let prefix = try component.flag("add_prefix_space", default: true)
            return (trims ? [.trim(addPrefixSpace: prefix)] : [])
                + [.template(PostTemplate(single: single, pair: single + second))]
        case let type: throw component.unsupported(type, supported: supported)
        }
    }

    /// `["[SEP]", 102]`.
    private static func token(_ component: JSONComponent, _ name: String) throws -> Int {
        guard let pair = component.json[name]?.array, pair.count == 2, pair[0].string != nil, let id = pair[1].int,
            id >= 0
        else { throw component.error(name, "expected a token and its number, such as [\"</s>\", 2]") }
        return id
    }

    private static func template(_ component: JSONComponent) throws -> PostTemplate {
        let single = try pieces(component, "single")
        let pair = try pieces(component, "pair")
        func hasText(_ number: Int, _ pieces: [PostTemplate.Piece]) -> Bool {
            pieces.contains { if case .text(number, _) = $0 { true } else { false } }
        }
        guard hasText(0, pair), hasText(1, pair) else {
            throw component.error("pair", "expected the sequences \"A\" and \"B\" among its items")
        }
        guard !hasText(1, single) else {
            throw component.error("single", "the sequence \"B\" is only there in a pair")
        }
        return PostTemplate(single: single, pair: pair)
    }

    private static func pieces(_ component: JSONComponent, _ name: String) throws -> [PostTemplate.Piece] {
        guard let list = component.json[name]?.array else { throw component.error(name, "expected a list") }
        return try list.map { item in
            if let text = item["Sequence"] {
                guard let id = text["id"]?.string, let number = ["A": 0, "B": 1][id], let type = text["type_id"]?.int
                else { throw component.error(name, "a Sequence needs an \"id\" of A or B and a \"type_id\"") }
                return .text(number, typeID: type)
            }
            guard let token = item["SpecialToken"], let id = token["id"]?.string, let type = token["type_id"]?.int
            else {
                throw component.error(
                    name, "each item must be a Sequence or a SpecialToken with \"id\" and \"type_id\"")
            }
            let ids = component.json["special_tokens"]?[id]?["ids"]?.array?.compactMap(\.int)
            guard let ids, ids.allSatisfy({ $0 >= 0 }), !ids.isEmpty else {
                throw component.error(
                    "special_tokens", "the token \(pythonRepr(id)) of the template has no numbers there")
            }
            return .special(ids: ids, typeID: type)
        }
    }
}
