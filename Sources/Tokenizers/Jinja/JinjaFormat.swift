/// Python's two ways to put values into a string: `%` and `format`.
enum JinjaFormat {
    /// `"%s: %d" % (a, b)`, with flags, width and precision.
    static func percent(_ format: String, _ value: JinjaValue) throws -> String {
        var values: [JinjaValue] = [value]
        if case .tuple(let elements) = value { values = elements }
        var next = 0
        var result = String.UnicodeScalarView()
        var rest = format.unicodeScalars[...]
        while let scalar = rest.popFirst() {
            guard scalar == "%" else {
                result.append(scalar)
                continue
            }
            var argument: JinjaValue?
            if rest.first == "(" {
                let name = rest.dropFirst().prefix { $0 != ")" }
                rest = rest[name.endIndex...].dropFirst()
                guard case .dictionary(let pairs) = value else { throw TemplateError("%(name) needs a dictionary") }
                argument = pairs[String(name)]
                next = values.count
            }
            var specification = try Specification(&rest)
            guard let kind = rest.popFirst() else { throw TemplateError("a string ends within a % format") }
            if kind == "%" {
                result.append("%")
                continue
            }
            if argument == nil, values.indices.contains(next) {
                argument = values[next]
                next += 1
            }
            guard let argument else { throw TemplateError("there are not enough values for the % format") }
            specification.kind = kind
            result.append(contentsOf: try specification.apply(argument).unicodeScalars)
            guard result.count <= JinjaValue.sizeLimit else { throw TemplateError("a formatted string is too long") }
        }
        guard next >= values.count || isMapping(value) else {
            throw TemplateError("there are more values than the % format takes")
        }
        return String(result)
    }

    private static func isMapping(_ value: JinjaValue) -> Bool {
        if case .dictionary = value { true } else { false }
    }

    /// `"{}: {name:.2f}".format(a, name=b)`.
    static func braces(_ format: String, _ arguments: JinjaCallArguments) throws -> String {
        var next = 0
        var result = String.UnicodeScalarView()
        var rest = format.unicodeScalars[...]
        while let scalar = rest.popFirst() {
            guard scalar == "{" || scalar == "}" else {
                result.append(scalar)
                continue
            }
            if rest.first == scalar {
                result.append(scalar)
                rest.removeFirst()
                continue
            }
            let field = rest.prefix { $0 != "}" }
            guard scalar == "{", field.endIndex < rest.endIndex else {
                throw TemplateError("format() found a single \"\(scalar)\"")
            }
            rest = rest[field.endIndex...].dropFirst()
            let name = String(field.prefix { $0 != ":" })
            var argument: JinjaValue?
            if name.isEmpty || Int(name) != nil {
                let place = Int(name) ?? next
                next += 1
                argument = arguments.positional.indices.contains(place) ? arguments.positional[place] : nil
            } else {
                argument = arguments.named.first { $0.name.hasSameScalars(as: name) }?.value
            }
            guard let argument else { throw TemplateError("format() has no argument for {\(name)}") }
            var part = field.dropFirst(name.unicodeScalars.count + 1)
            var specification = try Specification(&part)
            specification.kind = part.popFirst()
            specification.alignsTextLeft = true
            guard part.isEmpty else { throw TemplateError("format() does not know {\(String(field))}") }
            result.append(contentsOf: try specification.apply(argument).unicodeScalars)
            guard result.count <= JinjaValue.sizeLimit else { throw TemplateError("a formatted string is too long") }
        }
        return String(result)
    }

    /// Flags, width, precision and kind of a field.
    private struct Specification {
        var flags: Set<Unicode.Scalar> = []
        var width = 0
        var precision: Int?
        var kind: Unicode.Scalar?
        var alignsTextLeft = false

        init(_ rest: inout Substring.UnicodeScalarView) throws {
            while let flag = rest.first, "-+ 0#<>".unicodeScalars.contains(flag) {
                flags.insert(flag)
                rest.removeFirst()
            }
            width = try Self.number(&rest) ?? 0
            if rest.first == "." {
                rest.removeFirst()
                precision = try Self.number(&rest) ?? 0
            }
        }

        private static func number(_ rest: inout Substring.UnicodeScalarView) throws -> Int? {
            let digits = rest.prefix(while: \.isDigit)
            guard !digits.isEmpty else { return nil }
            rest = rest[digits.endIndex...]
            guard let number = Int(String(digits)), number <= 10_000 else {
                throw TemplateError("a width or precision in a format is larger than 10000")
            }
            return number
        }

        func apply(_ value: JinjaValue) throws -> String {
            var isNumber = value.number != nil
            var body: String
            switch kind {
            case "d", "i", "u": body = String(try whole(value))
            case "x": body = String(try whole(value), radix: 16)
            case "X": body = String(try whole(value), radix: 16, uppercase: true)
            case "o": body = String(try whole(value), radix: 8)
            case "f", "F":
                guard let number = value.number else { throw TemplateError("a number is needed for %f") }
                body = fixed(number, digits: precision ?? 6)
            case "s", "r", nil:
                isNumber = kind == nil && isNumber && !value.isBoolean
                body =
                    kind == "r" ? String(try JinjaValue.list([value]).text().dropFirst().dropLast()) : try value.text()
                if let precision { body = String(body.unicodeScalars.prefix(precision)) }
            case let kind?: throw TemplateError("the format \"%\(kind)\" is not supported")
            }
            if isNumber, !body.hasPrefix("-") {
                if flags.contains("+") { body = "+" + body } else if flags.contains(" ") { body = " " + body }
            }
            return padded(body, isNumber: isNumber)
        }

        private func padded(_ body: String, isNumber: Bool) -> String {
            let missing = width - body.unicodeScalars.count
            guard missing > 0 else { return body }
            if isNumber, flags.contains("0"), !flags.contains("-") {
                let sign = body.prefix { "+- ".contains($0) }
                return sign + String(repeating: "0", count: missing) + body.dropFirst(sign.count)
            }
            let blanks = String(repeating: " ", count: missing)
            let isLeft =
                flags.contains("<") || (alignsTextLeft ? !isNumber && !flags.contains(">") : flags.contains("-"))
            return isLeft ? body + blanks : blanks + body
        }

        private func whole(_ value: JinjaValue) throws -> Int {
            if let number = value.wholeNumber { return number }
            if case .float(let number) = value, let whole = Int(exactly: number.rounded(.towardZero)) { return whole }
            throw TemplateError("a number is needed for %d, not \(value.kind)")
        }
    }
}
