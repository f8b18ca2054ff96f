import Formats
import TestSupport

/// How a file is built, which decides what changes to it pay.
enum FileForm: Sendable {
    case bytes
    case text
    case json
    /// A JSON header behind its length in eight bytes, then data.
    case safetensors
}

/// Makes broken files out of good ones; the same seed gives the same file.
struct Mutator {
    private var random: SeededGenerator
    /// Words of the format, to be put in anywhere.
    private let words: [String]

    init(seed: UInt64, words: [String]) {
        random = SeededGenerator(seed: seed)
        self.words = words
    }

    private static let numbers = [
        "0", "-1", "1", "255", "65536", "2147483648", "4294967295", "4294967296", "9223372036854775807",
        "9223372036854775808", "18446744073709551615", "-9223372036854775808", "1e308", "1e999", "-0.0", "1e-400",
        "0.5", "99999999999999999999999999", "1000000000000",
    ]

    private static let strings = [
        "", "..", "../x", "../../outside.safetensors", "/etc/passwd", "a/../../outside.safetensors", "..\u{2F}\u{301}x",
        "x\u{0}y", "\u{FEFF}", "e\u{301}", "\u{E9}", "\u{1F468}\u{200D}\u{1F469}", "\u{202E}", "-", "*", "(", "[",
        "(a+)+$",
        "\\", "\"", "'", "{{", "{%", "%s", "~", "<s>", "null", "NaN",
    ]

    /// One file made from others by one to four changes.
    mutating func file(from seeds: [[UInt8]], form: FileForm) -> [UInt8] {
        var bytes = pick(seeds) ?? []
        for _ in 0..<Int.random(in: 1...4, using: &random) {
            switch form {
            case .json where chance(2): bytes = tree(bytes)
            case .safetensors where !chance(4): bytes = header(bytes)
            case .text, .json: bytes = chance(3) ? binary(bytes, seeds) : textual(bytes)
            default: bytes = chance(5) ? textual(bytes) : binary(bytes, seeds)
            }
        }
        return bytes
    }

    // MARK: Bytes

    private mutating func binary(_ old: [UInt8], _ seeds: [[UInt8]]) -> [UInt8] {
        var bytes = old
        guard !bytes.isEmpty else { return [UInt8.random(in: 0...255, using: &random)] }
        let place = Int.random(in: 0..<bytes.count, using: &random)
        switch Int.random(in: 0..<9, using: &random) {
        case 0: bytes[place] ^= 1 << UInt8.random(in: 0..<8, using: &random)
        case 1: bytes[place] = pick([0, 1, 0x7F, 0x80, 0xC0, 0xED, 0xF4, 0xFF, 0x0A, 0x22]) ?? 0
        case 2: bytes.removeSubrange(range(from: place, bytes.count))
        case 3: bytes.insert(contentsOf: bytes[range(from: place, bytes.count)], at: place)
        case 4: bytes.removeSubrange(place...)
        case 5:
            let other = pick(seeds) ?? []
            if !other.isEmpty {
                let from = Int.random(in: 0..<other.count, using: &random)
                bytes = Array(bytes[..<place]) + other[from...]
            }
        case 6:
            bytes.insert(
                contentsOf: (0..<Int.random(in: 1...16, using: &random)).map { _ in
                    UInt8.random(in: 0...255, using: &random)
                }, at: place)
        default:
            // A number in two, four or eight bytes: a length, an offset, a count.
            let value: UInt64 =
                pick([
                    0, 1, UInt64(old.count), UInt64(old.count) &+ 1, 0x7F, 0xFF, 0xFFFF, 0x7FFF_FFFF, 0x8000_0000,
                    0xFFFF_FFFF,
                    0x1_0000_0000, UInt64(Int64.max), 0x8000_0000_0000_0000, .max, .max - 7, 1 << 40, 1 << 62,
                ]) ?? 0
            let width = pick([2, 4, 8, 8]) ?? 8
            let start = chance(2) ? place & ~3 : place
            for (offset, byte) in (0..<width).map({ UInt8(truncatingIfNeeded: value >> (8 * UInt64($0))) }).enumerated()
            where start + offset < bytes.count { bytes[start + offset] = byte }
        }
        return bytes
    }

    // MARK: Text

    private mutating func textual(_ old: [UInt8]) -> [UInt8] {
        var bytes = old
        let place = Int.random(in: 0...bytes.count, using: &random)
        switch Int.random(in: 0..<7, using: &random) {
        case 0, 1:
            let runs = self.runs(of: bytes) { (0x30...0x39).contains($0) }
            guard let run = pick(runs) else { return bytes }
            bytes.replaceSubrange(run, with: (pick(Self.numbers) ?? "").utf8)
        case 2:
            let runs = self.runs(of: bytes) { $0 >= 0x80 || ($0 | 0x20) >= 0x61 && ($0 | 0x20) <= 0x7A || $0 == 0x5F }
            guard let run = pick(runs) else { return bytes }
            bytes.replaceSubrange(run, with: word().utf8)
        case 3: bytes.insert(contentsOf: word().utf8, at: place)
        case 4:
            let opening = pick(["[", "{", "(", "{\"a\":", "[[", "- ", "{% if 1 %}", "not ", "{{ (", "*", "&a "]) ?? "["
            let count = pick([3, 40, 300, 3000, 20_000]) ?? 3
            bytes.insert(contentsOf: String(repeating: opening, count: count).utf8, at: place)
        case 5:
            // A line or a part is there twice, or moves.
            let lines = bytes.split(separator: 0x0A, omittingEmptySubsequences: false).map(Array.init)
            guard var line = pick(lines) else { return bytes }
            if chance(2) { line = Array(line.shuffled(using: &random)) }
            var all = lines
            all.insert(line, at: Int.random(in: 0...all.count, using: &random))
            bytes = Array(all.joined(separator: [0x0A]))
        default: bytes.insert(contentsOf: (pick(Self.strings) ?? "").utf8, at: place)
        }
        return bytes
    }

    private func runs(of bytes: [UInt8], _ belongs: (UInt8) -> Bool) -> [Range<Int>] {
        var runs: [Range<Int>] = []
        var start: Int?
        for index in bytes.indices {
            if belongs(bytes[index]) {
                start = start ?? index
            } else if let begin = start {
                runs.append(begin..<index)
                start = nil
            }
        }
        if let start { runs.append(start..<bytes.count) }
        return runs
    }

    private mutating func word() -> String {
        switch Int.random(in: 0..<4, using: &random) {
        case 0: pick(Self.strings) ?? ""
        case 1: pick(Self.numbers) ?? ""
        case 2: random.text(length: Int.random(in: 0...12, using: &random))
        default: pick(words) ?? ""
        }
    }

    // MARK: JSON

    private mutating func tree(_ bytes: [UInt8]) -> [UInt8] {
        guard let json = try? JSON.parse(String(decoding: bytes, as: UTF8.self)) else { return textual(bytes) }
        var left = Int.random(in: 0..<max(1, count(json)), using: &random)
        return Array(changed(json, &left).compact.utf8)
    }

    private func count(_ json: JSON) -> Int {
        switch json {
        case .array(let values): values.reduce(1) { $0 + count($1) }
        case .object(let pairs): pairs.reduce(1) { $0 + count($1.value) }
        default: 1
        }
    }

    /// The value with its node number `left` replaced.
    private mutating func changed(_ json: JSON, _ left: inout Int) -> JSON {
        guard left >= 0 else { return json }
        left -= 1
        if left < 0 { return replacement(json) }
        switch json {
        case .array(let values): return .array(values.map { changed($0, &left) })
        case .object(let pairs):
            var result = KeyedList<JSON>()
            for pair in pairs { result.appendIfNew(key: pair.key, value: changed(pair.value, &left)) }
            return .object(result)
        default: return json
        }
    }

    private mutating func replacement(_ json: JSON) -> JSON {
        switch (Int.random(in: 0..<6, using: &random), json) {
        case (0, .array(let values)): return .array(values + values)
        case (1, .array(let values)): return .array(Array(values.dropLast()))
        case (0, .object(var pairs)), (1, .object(var pairs)):
            if !pairs.isEmpty, chance(2) { pairs.remove(at: Int.random(in: 0..<pairs.count, using: &random)) }
            pairs[word()] = value()
            return .object(pairs)
        case (2, .integer(let number)): return .integer(number &+ (pick([-1, 1, 2, 1 << 31, 1 << 40]) ?? 1))
        case (2, .string(let text)): return .string(text + word())
        default: return value()
        }
    }

    private mutating func value() -> JSON {
        switch Int.random(in: 0..<9, using: &random) {
        case 0: return nil
        case 1: return JSON(chance(2))
        case 2: return .integer(pick([0, 1, -1, 7, 1 << 31, 1 << 40, .max, .min]) ?? 0)
        case 3: return .number(pick([0.5, -0.0, 1e300, -1e-300, 3.0]) ?? 0.5)
        case 4: return []
        case 5: return [:]
        case 6: return .array((0..<3).map { _ in .string(word()) })
        default: return .string(word())
        }
    }

    /// Changes the header of a safetensors file; its length is put right most of the time.
    private mutating func header(_ bytes: [UInt8]) -> [UInt8] {
        guard bytes.count > 8 else { return binary(bytes, [bytes]) }
        let length = min(bytes.count - 8, bytes[..<8].reversed().reduce(0) { ($0 & 0xFF_FFFF) << 8 | Int($1) })
        var text = Array(bytes[8..<8 + length])
        text = chance(2) ? tree(text) : textual(text)
        let stated = chance(5) ? UInt64(text.count) &+ (pick([1, 8, .max, 1 << 32, 1 << 62]) ?? 1) : UInt64(text.count)
        return (0..<8).map { UInt8(truncatingIfNeeded: stated >> (8 * $0)) } + text + bytes[(8 + length)...]
    }

    // MARK: Choice

    private mutating func chance(_ oneIn: Int) -> Bool { Int.random(in: 0..<oneIn, using: &random) == 0 }

    private mutating func pick<Value>(_ values: [Value]) -> Value? { values.randomElement(using: &random) }

    private mutating func range(from place: Int, _ count: Int) -> Range<Int> {
        place..<min(count, place + Int.random(in: 1...32, using: &random))
    }
}
