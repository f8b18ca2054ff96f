import Formats

/// One object of a tokenizer.json with its file and key, so that every complaint about it can name both.
struct JSONComponent {
    /// The file.
    let path: String
    /// The key, such as `pre_tokenizer.pretokenizers[1]`.
    let key: String
    let json: JSON

    /// The kind that the object names.
    func type() throws -> String {
        guard let type = json["type"]?.string else { throw error("expected an object with a \"type\"") }
        return type
    }

    /// The object under a key, or nil when there is nothing or null.
    func component(_ name: String) -> JSONComponent? {
        guard let value = json[name], !value.isNull else { return nil }
        return JSONComponent(path: path, key: key.isEmpty ? name : "\(key).\(name)", json: value)
    }

    /// The objects of a list under a key, which must be there.
    func components(_ name: String) throws -> [JSONComponent] {
        guard let list = json[name]?.array else { throw error(name, "expected a list") }
        return list.enumerated().map { index, json in
            JSONComponent(path: path, key: (key.isEmpty ? name : "\(key).\(name)") + "[\(index)]", json: json)
        }
    }

    /// A truth value, which may be left out when there is a `default`.
    func flag(_ name: String, default fallback: Bool? = nil) throws -> Bool {
        guard let value = json[name], !value.isNull else {
            if let fallback { return fallback }
            throw error(name, "expected true or false, found nothing")
        }
        guard let flag = value.bool else { throw error(name, "expected true or false, found \(value.kind)") }
        return flag
    }

    /// A text, which must be there.
    func string(_ name: String) throws -> String {
        guard let text = try optionalString(name) else { throw error(name, "expected a string, found nothing") }
        return text
    }

    /// A text, or nil when there is nothing or null.
    func optionalString(_ name: String) throws -> String? {
        guard let value = json[name], !value.isNull else { return nil }
        guard let text = value.string else { throw error(name, "expected a string, found \(value.kind)") }
        return text
    }

    /// A text of one character, which must be there unless there is a `default`.
    func scalar(_ name: String, default fallback: Unicode.Scalar? = nil) throws -> Unicode.Scalar {
        guard let text = try optionalString(name) else {
            if let fallback { return fallback }
            throw error(name, "expected one character, found nothing")
        }
        guard text.unicodeScalars.count == 1, let scalar = text.unicodeScalars.first else {
            throw error(name, "expected one character, found \(pythonRepr(text))")
        }
        return scalar
    }

    /// A number from 0 on, which must be there unless there is a `default`.
    func count(_ name: String, default fallback: Int? = nil) throws -> Int {
        guard let value = json[name], !value.isNull else {
            if let fallback { return fallback }
            throw error(name, "expected a number from 0 on, found nothing")
        }
        guard let count = value.int, (0...Int(UInt32.max)).contains(count) else {
            throw error(name, "expected a number from 0 on, found \(value.compact)")
        }
        return count
    }

    /// A complaint about the object.
    func error(_ message: String) -> TokenizerError {
        TokenizerError("\(path), \"\(key)\": \(message)")
    }

    /// A complaint about what is under a key of the object.
    func error(_ name: String, _ message: String) -> TokenizerError {
        TokenizerError("\(path), \"\(key.isEmpty ? name : "\(key).\(name)")\": \(message)")
    }

    /// The complaint about a kind of component that there is no code for.
    func unsupported(_ type: String, supported: [String]) -> TokenizerError {
        error("\(pythonRepr(type)) is not supported; supported are \(supported.sorted().joined(separator: ", "))")
    }
}
