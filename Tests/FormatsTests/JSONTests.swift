import Formats
import Foundation
import TestSupport
import Testing

private func randomString(_ generator: inout SeededGenerator) -> String {
    let alphabet: [Unicode.Scalar] = [
        "a", "b", "\"", "\\", "/", "\n", "\r", "\t", "\u{8}", "\u{c}", "\u{1}", "\u{1f}", "\u{7f}", "\u{80}", "é", "e",
        "\u{301}",
        "\u{2028}", "中", "\u{d7ff}", "\u{e000}", "\u{ffff}", "😀", "\u{10ffff}", " ", "0",
    ]
    var result = ""
    for _ in 0..<Int.random(in: 0..<8, using: &generator) {
        result.unicodeScalars.append(alphabet.randomElement(using: &generator) ?? "x")
    }
    return result
}

private func randomDouble(_ generator: inout SeededGenerator) -> Double {
    switch Int.random(in: 0..<5, using: &generator) {
    case 0: return Double(Int.random(in: -1000...1000, using: &generator)) / 8
    case 1:
        return Double(Int.random(in: -99999...99999, using: &generator))
            * pow(10, Double(Int.random(in: -12...18, using: &generator)))
    case 2: return Double.random(in: -1...1, using: &generator)
    case 3: return Double(Float.random(in: -1e6...1e6, using: &generator))
    default:
        let value = Double(bitPattern: generator.next())
        return value.isFinite ? value : 0.5
    }
}

private func randomValue(_ generator: inout SeededGenerator, depth: Int = 0) -> JSON {
    switch Int.random(in: 0..<(depth > 4 ? 6 : 9), using: &generator) {
    case 0: return .null
    case 1: return .bool(Bool.random(using: &generator))
    case 2: return .integer(Int64(bitPattern: generator.next()) >> Int64.random(in: 0..<64, using: &generator))
    case 3: return .number(randomDouble(&generator))
    case 4, 5: return .string(randomString(&generator))
    case 6:
        return .array(
            (0..<Int.random(in: 0..<5, using: &generator)).map { _ in randomValue(&generator, depth: depth + 1) })
    default:
        var pairs = KeyedList<JSON>()
        for _ in 0..<Int.random(in: 0..<14, using: &generator) {
            pairs.appendIfNew(key: randomString(&generator), value: randomValue(&generator, depth: depth + 1))
        }
        return .object(pairs)
    }
}

@Test func writesWhatPythonWrites() async throws {
    var generator = SeededGenerator(seed: 1)
    let values = (0..<300).map { _ in randomValue(&generator) }
    let texts: [JSON] = values.map { .string($0.pythonText(indent: nil)) }
    let expected = try #require(try await oracleAnswer("json_dumps", to: .array(texts)).array)
    try #require(expected.count == values.count)
    for (value, texts) in zip(values, expected) {
        #expect(value.pythonText(indent: 2, sortKeys: true) == texts[0]?.string)
        #expect(value.pythonText(indent: nil) == texts[1]?.string)
        let unicode = try #require(texts[2]?.string)
        #expect(Array(value.pythonText(indent: 4, ensureASCII: false).utf8) == Array(unicode.utf8))
        // Reading each of the texts gives the value back, keys in their order.
        let back = try JSON.parse(unicode)
        #expect(back == value)
        #expect(back.compact == value.compact)
        #expect(try JSON.parse(value.compact) == value)
    }
}

@Test func floatsAreWrittenAsPythonDoes() async throws {
    var generator = SeededGenerator(seed: 2)
    var values: [Double] = [
        0, -0.0, 1, 1e15, 1e16, 123456789012345680, 9999999999999998, 1e17, 0.0001, 0.00001, 6e-05, 1e-10,
        .leastNonzeroMagnitude, 1.7976931348623157e308,
        2.2250738585072014e-308, 0.1, 1 / 3, 1e22, 1e23, 100, -1.5, 4503599627370497.5, 9007199254740992,
    ]
    for _ in 0..<20000 { values.append(randomDouble(&generator)) }
    let texts = String(decoding: try await oracleAnswer("float_repr", to: Data(values: values)), as: UTF8.self)
    let expected = texts.split(separator: "\n").map(String.init)
    try #require(expected.count == values.count)
    for (value, text) in zip(values, expected) { #expect(pythonRepr(value) == text) }
    #expect(pythonRepr(.infinity) == "inf" && pythonRepr(-.infinity) == "-inf" && pythonRepr(.nan) == "nan")
    #expect(JSON.array([.number(.nan), .number(-.infinity)]).pythonText(indent: nil) == "[NaN, -Infinity]")
    #expect(JSON.array([.number(.nan), .number(-.infinity)]).compact == "[null,null]")
}

@Test func numbersAreReadExactly() async throws {
    var generator = SeededGenerator(seed: 3)
    var texts: [String] = [
        "0.1", "1e23", "8.5e-324", "9007199254740993.0", "123456789.123456789e-5", "1E+2", "1e-400", "-0.0",
    ]
    for _ in 0..<5000 {
        var text = Bool.random(using: &generator) ? "-" : ""
        text +=
            "\(UInt32.random(in: 0...UInt32.max, using: &generator) >> UInt32.random(in: 0..<32, using: &generator))."
        for _ in 0..<Int.random(in: 1..<22, using: &generator) { text += "\(Int.random(in: 0...9, using: &generator))" }
        if Bool.random(using: &generator) { text += "e\(Int.random(in: -330...290, using: &generator))" }
        texts.append(text)
    }
    let expected = try await oracleAnswer("float_parse", to: Data(texts.joined(separator: "\n").utf8)).values(
        as: Double.self)
    try #require(expected.count == texts.count)
    for (text, value) in zip(texts, expected) {
        #expect(try JSON.parse(text).double?.bitPattern == value.bitPattern, "\(text)")
    }
}

@Test func integersAreReadExactly() throws {
    #expect(try JSON.parse("9223372036854775807") == .integer(.max))
    #expect(try JSON.parse("-9223372036854775808") == .integer(.min))
    #expect(try JSON.parse("9223372036854775808") == .number(9223372036854775808))
    #expect(try JSON.parse("1000000000000000019884624838656") == .number(1e30))
    #expect(try JSON.parse("-0") == .integer(0))
    #expect(try JSON.parse("[NaN, Infinity, -Infinity]")[2] == .number(-.infinity))
    #expect(try JSON.parse("12").int == 12 && JSON.parse("12.0").int == nil && JSON.parse("12").double == 12)
}

@Test func acceptsWhatPythonAccepts() async throws {
    var generator = SeededGenerator(seed: 4)
    let pieces = [
        "{", "}", "[", "]", ",", ":", "\"a\"", "\"b\"", "1", "-", "0", ".", "5", "e", "+", "true", "null", "nul", " ",
        "\n", "\"\\u00e9\"",
        "\"\\x\"", "\"\\", "\"", "Infinity", "NaN", "\u{1}", "\u{a0}", "01", "1.5",
    ]
    var texts = [
        "", " ", "1 ", "[1,]", "{\"a\":1,}", "{,}", "[,1]", "\"a", "\"\t\"", "\"\\u12\"", "\"\\u12g4\"", "\"\\/\"",
        "1.", ".5", "1e", "1e+", "+1",
        "-", "--1", "00", "1 2", "{\"a\" 1}", "{\"a\":}", "{a:1}", "[1 2]", "\"\\u+123\"", "\"\u{fe0f}\"", "tru",
        "[1]x", "1.0.0", "-Infinity",
    ]
    for _ in 0..<4000 {
        texts.append(
            (0..<Int.random(in: 1..<7, using: &generator)).map { _ in pieces.randomElement(using: &generator) ?? "" }
                .joined())
    }
    let expected = try #require(try await oracleAnswer("json_accepts", to: JSON(texts.map { JSON($0) })).array)
    try #require(expected.count == texts.count)
    var accepted = 0
    for (text, verdict) in zip(texts, expected) {
        do {
            _ = try JSON.parse(text)
            accepted += 1
            #expect(verdict == .bool(true), "accepted \(text)")
        } catch let error as FormatError where error.message.contains("twice") {
            #expect(verdict == .bool(true), "\(text)")
        } catch {
            #expect(error is FormatError)
            #expect(verdict == .bool(false), "refused \(text): \(error)")
        }
    }
    #expect(accepted > 100)
}

@Test func mistakesAreLocated() throws {
    let error = try formatError { _ = try JSON.parse("{\n  \"é\": 1,\n  \"é\": [1, x]\n}", file: "a.json") }
    #expect(error.place == .line(3, column: 12, offset: 25))
    #expect(error.file == "a.json")
    #expect(error.description.hasPrefix("a.json, line 3 column 12 (byte 25): expected a value, found \"x\""))
    let twice = try formatError { _ = try JSON.parse("{\"a\": 1,\n \"b\": {\"c\": 2, \"c\": 3}}") }
    #expect(twice.place == .line(2, column: 16, offset: 24))
    #expect(twice.message.contains("\"c\" is there twice"))
    let open = try formatError { _ = try JSON.parse("[\"abc") }
    #expect(open.place == .line(1, column: 2, offset: 1))
}

@Test(arguments: [#""\ud800""#, #""\udc00""#, #""\ud800\u0041""#, #""\ud800x""#, "1e400", "-1e999"])
func refusesWhatHasNoValue(_ text: String) throws {
    _ = try formatError { _ = try JSON.parse(text) }
}

@Test func decodesEscapes() throws {
    #expect(try JSON.parse(#""\ud83d\ude00\u00e9\n\/\\\"\b\f\r\t""#).string == "😀é\n/\\\"\u{8}\u{c}\r\t")
    #expect(try JSON.parse("\u{feff}[]") == [])
}

@Test func refusesInvalidUTF8AndDepth() throws {
    for bytes: [UInt8] in [
        [0x22, 0xFF, 0x22], [0x22, 0xED, 0xA0, 0x80, 0x22], [0x22, 0xC0, 0x80, 0x22], [0x22, 0x5C, 0x6E, 0xC3, 0x22],
    ] {
        let error = try formatError { _ = try JSON.parse(Data(bytes)) }
        #expect(error.message.contains("UTF-8"))
    }
    let deep = String(repeating: "[", count: JSON.depthLimit) + String(repeating: "]", count: JSON.depthLimit)
    _ = try JSON.parse(deep)
    #expect(try formatError { _ = try JSON.parse("[" + deep + "]") }.message.contains("nested"))
    #expect(
        try formatError { _ = try JSON.parse(String(repeating: "[{\"a\":", count: 1_000_000)) }.message.contains(
            "nested"))
}

@Test func keysAreComparedByBytes() throws {
    // Two spellings of one character are different keys, although `==` on strings calls them equal.
    let value = try JSON.parse("{\"\u{e9}\": 1, \"e\u{301}\": 2}")
    #expect(value["\u{e9}"] == 1 && value["e\u{301}"] == 2)
    #expect(JSON.string("\u{e9}") != JSON.string("e\u{301}"))
    let ordered: JSON = ["a": 1, "b": 2]
    #expect(ordered == ["b": 2, "a": 1] && ordered != ["a": 1, "b": 3] && ordered != ["a": 1])
}

@Test func keyedListKeepsOrderAndFinds() {
    var generator = SeededGenerator(seed: 5)
    var list = KeyedList<Int>()
    var model: [String: Int] = [:]
    var order: [String] = []
    for step in 0..<3000 {
        let key = "k\(Int.random(in: 0..<700, using: &generator))"
        if Int.random(in: 0..<5, using: &generator) == 0 {
            list[key] = nil
            if model.removeValue(forKey: key) != nil { order.removeAll { $0 == key } }
        } else {
            list[key] = step
            if model.updateValue(step, forKey: key) == nil { order.append(key) }
        }
        #expect(list[key] == model[key])
    }
    #expect(list.keys == order)
    #expect(order.allSatisfy { list[$0] == model[$0] })
    #expect(list["missing"] == nil)
    #expect(list.sortedByKey().keys == order.sorted())
}

@Test func objectsCanBeChanged() {
    var value: JSON = nil
    value["a"] = 1
    value["b"] = ["c": [1.5, nil, true]]
    value["a"] = "x"
    #expect(value.compact == #"{"a":"x","b":{"c":[1.5,null,true]}}"#)
    value["a"] = nil
    #expect(value["b"]?["c"]?[0]?.double == 1.5 && value["b"]?["c"]?[9] == nil && value["a"] == nil)
    #expect(JSON([]).pythonText() == "[]" && JSON.object([:]).pythonText() == "{}")
}

@Test func readsLargeFiles() throws {
    // The shape of a large tokenizer.json: a vocabulary of 150,000 keys and as many merges.
    var text = "{\"vocab\":{"
    for id in 0..<150_000 { text += (id == 0 ? "" : ",") + "\"tok\\u00e9n \(id)\": \(id)" }
    text += "},\"merges\":["
    for id in 0..<150_000 { text += (id == 0 ? "" : ",") + "[\"left\(id)\", \"right\(id)\"]" }
    text += "]}"
    let value = try JSON.parse(text)
    #expect(value["vocab"]?["tokén 149999"] == 149_999)
    #expect(value["merges"]?[7]?[1]?.string == "right7")
}
