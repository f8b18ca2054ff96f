/// The arguments of a call, evaluated.
struct JinjaCallArguments {
    var positional: [JinjaValue] = []
    var named: [(name: String, value: JinjaValue)] = []

    /// The arguments in the order of `parameters`, nil where one is not given.
    func bound(to parameters: [String], of function: String) throws -> [JinjaValue?] {
        guard positional.count <= parameters.count else {
            throw TemplateError("\(function) takes at most \(parameters.count) arguments, not \(positional.count)")
        }
        var values: [JinjaValue?] = positional
        values += Array(repeating: nil, count: parameters.count - positional.count)
        for (name, value) in named {
            guard let place = parameters.firstIndex(of: name) else {
                throw TemplateError("\(function) has no argument \"\(name)\"; it has \(parameters)")
            }
            guard values[place] == nil else { throw TemplateError("\(function) got the argument \"\(name)\" twice") }
            values[place] = value
        }
        return values
    }

    /// The arguments in the order of `parameters`, and what is left over.
    func boundLoosely(to parameters: [String]) -> (values: [JinjaValue?], rest: JinjaCallArguments) {
        var values: [JinjaValue?] = Array(positional.prefix(parameters.count))
        values += Array(repeating: nil, count: parameters.count - values.count)
        var rest = JinjaCallArguments(positional: Array(positional.dropFirst(parameters.count)))
        for (name, value) in named {
            if let place = parameters.firstIndex(of: name), values[place] == nil {
                values[place] = value
            } else {
                rest.named.append((name, value))
            }
        }
        return (values, rest)
    }
}

/// The string that an argument must be.
func requiredText(_ value: JinjaValue?, _ function: String) throws -> String {
    try requiredMarkedText(value, function).text
}

/// The string that an argument must be, with its marks.
func requiredMarkedText(_ value: JinjaValue?, _ function: String) throws -> JinjaText {
    guard case .string(let text, let marks) = value else {
        throw TemplateError("\(function) needs a string, not \(value?.kind ?? "nothing")")
    }
    return JinjaText(text, marks: marks)
}

/// The string that an argument is, or nil where it is missing or none.
func optionalText(_ value: JinjaValue?, _ function: String) throws -> String? {
    guard let value, !value.isNone else { return nil }
    return try requiredText(value, function)
}
