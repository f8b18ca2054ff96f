extension Dataset {
    /// More labels than this are taken for a mistake: every one costs a row of the head.
    static let mostLabels = 65_536

    /// The names of labels by their numbers.
    static func labels(_ found: [String]) throws -> [String] {
        let names = Set(found)
        let numbers = names.compactMap { name in Int(name).flatMap { "\($0)" == name && $0 >= 0 ? $0 : nil } }
        guard numbers.count == names.count, let largest = numbers.max() else {
            return names.sorted { $0.unicodeScalars.lexicographicallyPrecedes($1.unicodeScalars) }
        }
        guard largest < mostLabels else {
            throw TrainingError(
                "the label \(largest) is too large: labels that are whole numbers are the rows of the head, from 0 to the "
                    + "largest; number them anew, or write them as names")
        }
        return (0...largest).map { "\($0)" }
    }

    /// For each file the numbers of its labels.
    static func numbers(of parts: [DatasetPart], _ labels: [String]) throws -> [[Int]] {
        let numbers = Dictionary(labels.enumerated().map { ($1, $0) }) { first, _ in first }
        return try parts.map { part in
            try part.labels.map { label in
                guard let number = numbers[label] else {
                    throw TrainingError(
                        "\(part.summary.source.path): the label \"\(label)\" is not one that the model knows; it knows "
                            + labels.prefix(20).map { "\"\($0)\"" }.joined(separator: ", "))
                }
                return number
            }
        }
    }

    /// Refuses rows to learn from that have fewer than two labels.
    ///
    /// - Throws: ``TrainingError`` naming the one.
    func requireLabels() throws {
        guard kind == .labelled, labels.count < 2 else { return }
        throw TrainingError(
            "\(path): all rows have the label \"\(labels.first ?? "")\", so there is nothing to tell apart")
    }
}
