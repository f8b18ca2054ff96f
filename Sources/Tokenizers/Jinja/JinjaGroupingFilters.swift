/// The filters that look at a sequence as a whole: batch, slice, groupby, max, min, sum.
enum JinjaGroupingFilters {
    static func apply(_ name: String, _ value: JinjaValue, _ given: [JinjaValue?]) throws -> JinjaValue {
        guard let elements = value.elements else {
            throw TemplateError("the filter \"\(name)\" works on a sequence, not on \(value.kind)")
        }
        switch name {
        case "batch": return try batches(elements, given)
        case "slice": return try slices(elements, given)
        case "groupby": return try groups(elements, given)
        case "sum":
            let extract = given[0].flatMap { $0.isNone ? nil : JinjaElementFilters.attribute($0) } ?? { $0 }
            return try elements.reduce(given[1] ?? .integer(0)) { try $0.applying("+", extract($1)) }
        default:
            let isCaseSensitive = given[0]?.isTrue ?? false
            var best: (value: JinjaValue, key: JinjaValue)?
            for element in elements {
                let key = try JinjaFilters.key(of: element, attribute: given[1], isCaseSensitive: isCaseSensitive)
                guard let old = best else {
                    best = (element, key)
                    continue
                }
                if name == "max" ? try old.key.precedes(key) : try key.precedes(old.key) { best = (element, key) }
            }
            return best?.value ?? .undefined("the sequence is empty and has no \(name)")
        }
    }

    private static func batches(_ elements: [JinjaValue], _ given: [JinjaValue?]) throws -> JinjaValue {
        guard let count = given[0]?.wholeNumber, count > 0 else { throw TemplateError("batch needs a count above 0") }
        var batches = stride(from: 0, to: elements.count, by: min(count, max(1, elements.count))).map {
            Array(elements[$0..<min(elements.count, $0 + min(count, elements.count))])
        }
        if let filler = given[1], !filler.isNone, let last = batches.popLast() {
            try JinjaValue.checkSize(count)
            batches.append(last + Array(repeating: filler, count: count - last.count))
        }
        return .list(batches.map { .list($0) })
    }

    private static func slices(_ elements: [JinjaValue], _ given: [JinjaValue?]) throws -> JinjaValue {
        guard let count = given[0]?.wholeNumber, count > 0 else { throw TemplateError("slice needs a count above 0") }
        try JinjaValue.checkSize(count)
        let (length, longer) = (elements.count / count, elements.count % count)
        var start = 0
        return .list(
            (0..<count).map { index in
                let end = start + length + (index < longer ? 1 : 0)
                var part = Array(elements[start..<end])
                start = end
                if let filler = given[1], !filler.isNone, index >= longer { part.append(filler) }
                return .list(part)
            })
    }

    private static func groups(_ elements: [JinjaValue], _ given: [JinjaValue?]) throws -> JinjaValue {
        guard let attribute = given[0] else { throw TemplateError("groupby needs an attribute") }
        let extract = JinjaElementFilters.attribute(attribute, default: given[1])
        let isCaseSensitive = given[2]?.isTrue ?? false
        let named = try elements.map { element in
            let name = try extract(element)
            return (name: name, key: try JinjaFilters.key(of: name, attribute: nil, isCaseSensitive: isCaseSensitive))
        }
        let order = try JinjaFilters.sorted(
            elements.indices.map { .integer($0) }, by: named.map(\.key), isReversed: false)
        var groups: [(name: JinjaValue, key: JinjaValue, members: [JinjaValue])] = []
        for place in order.compactMap(\.wholeNumber) {
            if let last = groups.last, last.key.isEqual(to: named[place].key) {
                groups[groups.count - 1].members.append(elements[place])
            } else {
                groups.append((named[place].name, named[place].key, [elements[place]]))
            }
        }
        return .list(groups.map { .tuple([$0.name, .list($0.members)]) })
    }
}
