import Formats
import TestSupport
import Testing
import Training

@Suite struct TextTableTests {
    private let table = TextTable(
        [.left("method"), .right("parameters"), .right("loss")],
        rows: [["lora", "4.9M", "1.2345"], ["lorta", "1.2k", "12.5"], ["提示|x", "7"]])

    @Test func aTerminalGetsAlignedColumnsUnderARule() {
        #expect(
            table.text(indent: 2) == """
                  method  parameters    loss
                  ──────  ──────────  ──────
                  lora          4.9M  1.2345
                  lorta         1.2k    12.5
                  提示|x           7

                """)
    }

    @Test func markdownHasAlignmentMarksAndEscapedBars() {
        #expect(
            table.markdown() == """
                | method  | parameters |   loss |
                | ------- | ---------: | -----: |
                | lora    |       4.9M | 1.2345 |
                | lorta   |       1.2k |   12.5 |
                | 提示\\|x |          7 |        |

                """)
    }

    @Test func cellsCannotBreakTheTable() {
        var table = TextTable(.left("a"))
        table.append(["one\ntwo", "more\tstill"])
        #expect(table.text() == "a\n───────  ──────────\none two  more still\n")
    }

    @Test func anEmptyTableIsItsHeader() {
        #expect(TextTable(.left("name"), .right("n")).text() == "name  n\n────  ─\n")
        #expect(TextTable(.left("name"), .right("n")).markdown() == "| name |   n |\n| ---- | --: |\n")
    }

    @Test func widthsFollowUnicode() async throws {
        // Without emoji and without marks, whose clusters a terminal shows as one sign.
        let ranges: [ClosedRange<UInt32>] = [
            0x20...0x7E, 0xA1...0xAC, 0xAE...0x24F, 0x391...0x3A1, 0x410...0x44F, 0x3041...0x3096, 0x30A0...0x30FF,
            0x3105...0x312F, 0x3220...0x3250, 0x4E00...0x9FFF, 0xAC00...0xD7A3, 0xFF01...0xFF60, 0xFFE0...0xFFE6,
            0x20000...0x2A6DF,
        ]
        var generator = SeededGenerator(seed: 3)
        let texts = (0..<200).map { _ in
            String(
                String.UnicodeScalarView(
                    (0..<Int.random(in: 0...9, using: &generator)).compactMap { _ in
                        let range = ranges[Int.random(in: ranges.indices, using: &generator)]
                        return Unicode.Scalar(UInt32.random(in: range, using: &generator))
                    }))
        }
        let widths = try await Oracle.shared.call("report.widths", ["texts": .array(texts.map { JSON($0) })])
        #expect(texts.map(displayWidth) == widths.array?.compactMap(\.int))
        #expect(displayWidth("e\u{301}") == 1)
        #expect(displayWidth("👩‍👩‍👧 ✈️ \u{1B}") == 6)
    }
}
