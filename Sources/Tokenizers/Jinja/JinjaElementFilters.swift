/// The filters that apply a filter or a test to every element: map, select, reject, selectattr, rejectattr.
enum JinjaElementFilters {
    static func apply(
        _ name: String, _ value: JinjaValue, _ arguments: JinjaCallArguments
    ) throws -> JinjaValue {
        guard let elements = value.elements else {
            throw TemplateError("the filter \"\(name)\" works on a sequence, not on \(value.kind)")
        }
        if name == "map" { return .list(try map(elements, arguments)) }
        guard arguments.named.isEmpty else {
            throw TemplateError("the filter \"\(name)\" has no argument \"\(arguments.named[0].name)\"")
        }
        var rest = arguments.positional[...]
        var extract: (JinjaValue) throws -> JinjaValue = { $0 }
        if name.hasSuffix("attr") {
            guard let path = rest.popFirst() else { throw TemplateError("the filter \"\(name)\" needs an attribute") }
            extract = attribute(path)
        }
        let test = try rest.popFirst().map { try requiredText($0, name) }
        if let test { try JinjaTests.check(test, line: nil) }
        let keeps = name.hasPrefix("select")
        return .list(
            try elements.filter { element in
                let extracted = try extract(element)
                let holds = try test.map { try JinjaTests.apply($0, extracted, Array(rest)) } ?? extracted.isTrue
                return holds == keeps
            })
    }

    private static func map(_ elements: [JinjaValue], _ arguments: JinjaCallArguments) throws -> [JinjaValue] {
        if let first = arguments.positional.first {
            let name = try requiredText(first, "map")
            try JinjaFilters.check(name, line: nil)
            let rest = JinjaCallArguments(
                positional: Array(arguments.positional.dropFirst()), named: arguments.named)
            return try elements.map { try JinjaFilters.apply(name, $0, rest) }
        }
        let given = try arguments.bound(to: ["attribute", "default"], of: "the filter \"map\"")
        guard let path = given[0] else { throw TemplateError("the filter \"map\" needs an attribute or a filter") }
        return try elements.map(attribute(path, default: given[1]))
    }

    /// Follows a dotted path like `function.name`, or takes an element by its number; a default stands for what a step
    /// does not find.
    static func attribute(
        _ path: JinjaValue, default fallback: JinjaValue? = nil
    ) -> (JinjaValue) throws -> JinjaValue {
        let steps: [JinjaValue]
        if case .string(let text, _) = path {
            steps = text.split(by: ".").map { part in Int(part).map { .integer($0) } ?? .string(part) }
        } else {
            steps = [path]
        }
        return { value in
            try steps.reduce(value) { value, step in
                let next = try value.item(step)
                return next.isUndefined ? fallback ?? next : next
            }
        }
    }
}
