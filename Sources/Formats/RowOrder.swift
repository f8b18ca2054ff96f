/// In which order the rows of a stored matrix are read.
///
/// GGUF files of the architecture `llama` hold the rows of the query and key projections with the two halves of each
/// head interleaved; Hugging Face's layout keeps the halves apart.
public enum RowOrder: Sendable, Equatable {
    /// As they are stored.
    case stored
    /// Undoes the interleaving of so many heads (query heads for `attn_q`, key/value heads for `attn_k`).
    case splittingHeads(Int)

    /// Tells whether a matrix of so many rows can be read in this order.
    public func fits(rows: Int) -> Bool {
        switch self {
        case .stored: true
        case .splittingHeads(let heads): heads > 0 && rows > 0 && rows % heads == 0 && rows / heads % 2 == 0
        }
    }

    /// The stored row that belongs at row `row` of the result.
    ///
    /// `rows` must fit this order.
    public func sourceRow(of row: Int, rows: Int) -> Int {
        guard case .splittingHeads(let heads) = self else { return row }
        let size = rows / heads
        let (head, position) = row.quotientAndRemainder(dividingBy: size)
        let (half, pair) = position.quotientAndRemainder(dividingBy: size / 2)
        return head * size + pair * 2 + half
    }
}
