import Foundation
import TestSupport

/// Lines on which tokenizers differ from their reference if anything is wrong with them.
///
/// Prose, code, more than 30 scripts, emoji and joiners, combining marks, odd white space, digits, control characters,
/// special tokens inside text, and lines that are no UTF-8.
struct TortureCorpus {
    /// The lines as bytes.
    let lines: [[UInt8]]

    /// Takes lines.
    init(lines: [[UInt8]]) { self.lines = lines }

    /// Makes `count` lines from a seed; every 20th or so is no UTF-8.
    ///
    /// - Parameter specials: Texts of special tokens to put into lines.
    init(seed: UInt64, count: Int, specials: [String]) {
        var generator = LineGenerator(seed: seed, specials: specials)
        var random = SeededGenerator(seed: seed ^ 0x5EED)
        lines = (0..<count).map { number in
            let fragments = [3, 6, 6, 12][number % 4]
            let line = Array(generator.line(fragments: fragments).utf8)
            return Int.random(in: 0..<20, using: &random) == 0 ? Self.broken(line, &random) : line
        }
    }

    /// A line with bytes put in, taken out or changed.
    private static func broken(_ line: [UInt8], _ random: inout SeededGenerator) -> [UInt8] {
        let strays: [[UInt8]] = [
            [0x80], [0xBF, 0xBF], [0xC0, 0xAF], [0xC3], [0xE2, 0x82], [0xED, 0xA0, 0x80], [0xF0, 0x9F, 0x98],
            [0xF4, 0x90],
            [0xFE, 0xFF], [0xE2, 0x28, 0xA1], [0xF8, 0x88, 0x80, 0x80, 0x80], [0x00, 0xFF],
        ]
        var line = line
        for _ in 0..<Int.random(in: 1...3, using: &random) {
            let place = Int.random(in: 0...line.count, using: &random)
            switch Int.random(in: 0..<3, using: &random) {
            case 0 where place < line.count: line.remove(at: place)
            case 1 where place < line.count: line[place] = UInt8.random(in: 0x80...0xFF, using: &random)
            default: line.insert(contentsOf: strays[Int.random(in: strays.indices, using: &random)], at: place)
            }
        }
        return line
    }

    /// The lines one after the other, each after its length as u32.
    var file: Data {
        var data = Data()
        for line in lines {
            withUnsafeBytes(of: UInt32(truncatingIfNeeded: line.count).littleEndian) { data.append(contentsOf: $0) }
            data.append(contentsOf: line)
        }
        return data
    }
}

/// What the reference library makes of a line.
struct ReferenceLine {
    var ids: [Int]
    var ranges: [Range<Int>]
    var decoded: [UInt8]
    var decodedWithoutSpecials: [UInt8]

    /// Reads the file that the oracle writes for a corpus.
    static func read(_ data: Data) -> [ReferenceLine] {
        var lines: [ReferenceLine] = []
        data.withUnsafeBytes { bytes in
            var place = 0
            func number() -> Int {
                defer { place += 4 }
                return Int(Int32(littleEndian: bytes.loadUnaligned(fromByteOffset: place, as: Int32.self)))
            }
            func text() -> [UInt8] {
                let count = number()
                defer { place += count }
                return Array(bytes[place..<place + count])
            }
            while place < bytes.count {
                let count = number()
                let ids = (0..<count).map { _ in number() }
                let starts = (0..<count).map { _ in number() }
                let ranges = starts.map { start in start..<max(start, number()) }
                lines.append(
                    ReferenceLine(ids: ids, ranges: ranges, decoded: text(), decodedWithoutSpecials: text()))
            }
        }
        return lines
    }
}
