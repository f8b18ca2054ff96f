import Formats

/// Reads a tokenizer.json; each kind of component has its own reader, so that a new one has its one place.
struct TokenizerJSONReader {
    let path: String
    let json: JSON

    func parts() throws -> Tokenizer.Parts {
        guard json.object != nil else { throw TokenizerError("\(path): expected an object, found \(json.kind)") }
        let root = JSONComponent(path: path, key: "", json: json)
        guard let modelComponent = root.component("model") else { throw root.error("model", "expected an object") }
        let preTokenizer = try root.component("pre_tokenizer").map { try PreTokenizerJSON.preTokenizer($0) }
        let splitter: PieceSplitter
        do {
            splitter = try PieceSplitter(
                preTokenizer, allowsRawBytes: try BytePairReader.canTakeBytes(modelComponent))
        } catch let problem as RegexError {
            throw root.error("pre_tokenizer", problem.message)
        }
        let model = try ModelJSON.model(modelComponent, .init(isByteLevel: splitter.leavesRawBytes))
        var parts = Tokenizer.Parts(model: model, preTokenizer: preTokenizer, splitter: splitter)
        parts.addedTokens = try addedTokens(root, model)
        parts.normalizer = try root.component("normalizer").map { try NormalizerJSON.normalizer($0) }
        parts.postProcessor = try PostProcessorJSON.processor(root.component("post_processor"))
        let known = max(model.vocabulary.count, (parts.addedTokens.map(\.id).max() ?? -1) + 1)
        if let around = parts.postProcessor.template?.around,
            let id = (around.before + around.after).first(where: { $0 >= known })
        {
            throw root.error("post_processor", "the template's token \(id) is not in the vocabulary of \(known) tokens")
        }
        parts.decoder = try DecoderJSON.steps(root.component("decoder"))
        parts.truncation = try root.component("truncation").map { try Truncation($0) }
        parts.padding = try root.component("padding").map { try Padding($0) }
        return parts
    }

    private func addedTokens(_ root: JSONComponent, _ model: any TokenizerModel) throws -> [AddedToken] {
        guard let list = json["added_tokens"], !list.isNull else { return [] }
        let components = try root.components("added_tokens")
        let limit = model.vocabulary.count + 4 * components.count + 65_536
        var owners: [Int: String] = [:]
        return try components.map { token in
            guard let id = token.json["id"]?.int, (0..<limit).contains(id),
                let content = token.json["content"]?.string, !content.utf8.isEmpty
            else {
                throw token.error("each token needs an \"id\" from 0 to \(limit - 1) and a \"content\"")
            }
            // As in the reference, a token that the model has too keeps the model's number.
            let number = model.vocabulary.number(of: content) ?? id
            if let owner = owners.updateValue(content, forKey: number), !owner.hasSameScalars(as: content) {
                throw token.error("\(pythonRepr(owner)) and \(pythonRepr(content)) both have the number \(number)")
            }
            let isSpecial = try token.flag("special", default: false)
            return AddedToken(
                id: number, content: content, isSpecial: isSpecial,
                singleWord: try token.flag("single_word", default: false),
                lstrip: try token.flag("lstrip", default: false), rstrip: try token.flag("rstrip", default: false),
                normalized: try token.flag("normalized", default: !isSpecial))
        }
    }
}
