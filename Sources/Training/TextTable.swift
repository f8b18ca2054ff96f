/// A small table of text: aligned columns under a ruled header for a terminal, or the same rows as Markdown.
package struct TextTable: Sendable {
    /// The side of its column to which a cell is pushed.
    package enum Alignment: Sendable {
        case left, right
    }

    /// A column: its heading and the side its cells keep to.
    package struct Column: Sendable {
        let title: String
        let alignment: Alignment

        /// A column of words.
        package static func left(_ title: String) -> Column { Column(title: title, alignment: .left) }

        /// A column of numbers.
        package static func right(_ title: String) -> Column { Column(title: title, alignment: .right) }
    }

    private var columns: [Column]
    private var rows: [[String]] = []

    /// A table without rows.
    package init(_ columns: Column...) { self.columns = columns }

    /// A table with rows; see ``append(_:)``.
    package init(_ columns: [Column], rows: [[String]] = []) {
        self.columns = columns
        for row in rows { append(row) }
    }

    /// Adds a row at the end.
    ///
    /// Missing cells are empty; cells beyond the last column open columns without a heading. Line breaks and tabs in a
    /// cell become spaces.
    package mutating func append(_ cells: [String]) {
        while columns.count < cells.count { columns.append(.left("")) }
        rows.append(cells.map { String($0.map { $0.isNewline || $0 == "\t" ? " " : $0 }) })
    }

    /// The table for a terminal, every line ended by a line break and none by spaces.
    ///
    /// - Parameter indent: Spaces before each line.
    package func text(indent: Int = 0) -> String {
        let margin = String(repeating: " ", count: max(0, indent))
        let widths = widths(of: [columns.map(\.title)] + rows)
        let rule = widths.map { String(repeating: "─", count: $0) }
        return ([columns.map(\.title), rule] + rows).map { cells in
            let line = padded(cells, to: widths).joined(separator: "  ")
            let end = line.lastIndex { $0 != " " }
            return end.map { margin + line[...$0] + "\n" } ?? "\n"
        }.joined()
    }

    /// The table in GitHub's Markdown, padded so that its source lines up too.
    package func markdown() -> String {
        let cells = ([columns.map(\.title)] + rows).map { $0.map(Self.escaped) }
        let widths = widths(of: cells).map { max($0, 3) }
        let rule = zip(columns, widths).map { column, width in
            let dashes = String(repeating: "-", count: width - 1)
            return column.alignment == .left ? dashes + "-" : dashes + ":"
        }
        return (cells.prefix(1) + [rule] + cells.dropFirst()).map { cells in
            "| " + padded(cells, to: widths).joined(separator: " | ") + " |\n"
        }.joined()
    }

    private func widths(of rows: [[String]]) -> [Int] {
        columns.indices.map { index in
            rows.map { index < $0.count ? displayWidth($0[index]) : 0 }.max() ?? 0
        }
    }

    private func padded(_ cells: [String], to widths: [Int]) -> [String] {
        columns.indices.map { index in
            let cell = index < cells.count ? cells[index] : ""
            let space = String(repeating: " ", count: max(0, widths[index] - displayWidth(cell)))
            return columns[index].alignment == .left ? cell + space : space + cell
        }
    }

    private static func escaped(_ cell: String) -> String {
        cell.split(separator: "|", omittingEmptySubsequences: false).joined(separator: "\\|")
    }
}

/// The columns that a text takes on a terminal: two for East Asian wide characters and emoji, none for controls.
package func displayWidth(_ text: String) -> Int {
    text.reduce(0) { $0 + displayWidth($1) }
}

private func displayWidth(_ character: Character) -> Int {
    guard let first = character.unicodeScalars.first else { return 0 }
    switch first.properties.generalCategory {
    case .control, .format, .lineSeparator, .paragraphSeparator, .nonspacingMark, .enclosingMark: return 0
    default: break
    }
    // A variation selector 16 asks for the wide, coloured form of a sign that is also plain text.
    let isEmoji = first.properties.isEmojiPresentation || character.unicodeScalars.contains("\u{FE0F}")
    return isEmoji || wideRanges.contains { $0.contains(first.value) } ? 2 : 1
}

/// The blocks whose characters are "wide" or "full-width" in Unicode's annex 11.
private let wideRanges: [ClosedRange<UInt32>] = [
    0x1100...0x115F, 0x2E80...0x303E, 0x3041...0x3247, 0x3250...0x4DBF, 0x4E00...0x9FFF, 0xA000...0xA4CF,
    0xA960...0xA97C, 0xAC00...0xD7A3, 0xF900...0xFAFF, 0xFE30...0xFE6B, 0xFF01...0xFF60, 0xFFE0...0xFFE6,
    0x17000...0x18CD5, 0x1B000...0x1B2FB, 0x20000...0x3FFFD,
]
