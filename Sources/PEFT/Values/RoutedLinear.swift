import Backbones
import Torch

/// Stands in a linear layer for several adapters: each row's output is that of its own adapter.
///
/// Where the adapters only add low-rank products, the frozen product is one for all rows, and so are the low-rank ones
/// of a step that has few tokens a row.
final class RoutedLinear: LinearAdapter {
    func output(for input: Tensor, of linear: Linear, in context: Context) throws -> Tensor {
        let routing = try context.requiredRouting(at: linear.path)
        let own = context.unrouted
        func adapted(_ adapter: (any RoutedAdapter)?, _ input: Tensor) throws -> Tensor {
            guard let occupant = Self.occupant(adapter, of: linear) else { return try linear.base(input) }
            return try occupant.output(for: input, of: linear, in: own)
        }
        if let common = routing.common { return try adapted(common, input) }
        let rows = try RoutedRows.of(routing, input, context, path: linear.path)
        guard let terms = try terms(of: rows, for: input, of: linear, in: own) else {
            return try rows.map([input]) { try adapted($0, $1[0]) }
        }
        let isShort = rows.dimension == 0 && input.size(1) <= Self.fewTokens
        return try routing.form == .gathered || routing.form == .automatic && isShort
            ? gathered(terms, rows, linear.base(input), input, linear, routing)
            : grouped(terms, rows, linear.base(input), input)
    }

    func lowRankTerm(for input: Tensor, of linear: Linear, in context: Context) throws -> LowRankTerm? {
        guard let common = try context.requiredRouting(at: linear.path).common else { return nil }
        return try Self.occupant(common, of: linear)?.lowRankTerm(for: input, of: linear, in: context.unrouted)
    }

    /// Up to so many tokens a row, a product for each row costs less than one for each adapter.
    private static let fewTokens = 4

    private typealias Terms = [(index: Tensor, term: LowRankTerm)]

    private static func occupant(_ adapter: (any RoutedAdapter)?, of linear: Linear) -> (any LinearAdapter)? {
        adapter?.occupant(of: linear) as? any LinearAdapter
    }

    /// What each group adds to the frozen product; nil where one does more than that, or drops elements.
    private func terms(
        of rows: RoutedRows, for input: Tensor, of linear: Linear, in context: Context
    ) throws -> Terms? {
        guard context.dropout == nil else { return nil }
        var terms: Terms = []
        for group in rows.groups {
            guard let adapter = Self.occupant(group.adapter, of: linear) else { continue }
            guard let term = try adapter.lowRankTerm(for: input, of: linear, in: context), term.mask == nil else {
                return nil
            }
            terms.append((group.index, term))
        }
        return terms
    }

    /// The rows of each adapter by themselves.
    private func grouped(_ terms: Terms, _ rows: RoutedRows, _ frozen: Tensor, _ input: Tensor) throws -> Tensor {
        try terms.reduce(frozen) { output, part in
            let own = try input.gathered(part.index, dimension: rows.dimension)
            let inner = try Torch.linear(own, part.term.down.to(dtype: input.dtype)) * part.term.scale
            let change = try Torch.linear(inner, part.term.up.to(dtype: input.dtype))
            return try callTensor("aten::index_add", output, rows.dimension, part.index, change, 1.0)
        }
    }

    /// The factors of all adapters, filled up to one rank, and for each row with an adapter its own among them.
    private struct Stack {
        /// int64: the rows that have an adapter, and the number of it.
        let rows: Tensor
        let numbers: Tensor
        /// `[adapters, in, rank]` and `[adapters, rank, out]`, the scale in the second.
        let down: Tensor
        let up: Tensor
    }

    /// All rows in one product, each with its own factors.
    private func gathered(
        _ terms: Terms, _ rows: RoutedRows, _ frozen: Tensor, _ input: Tensor, _ linear: Linear, _ routing: Routing
    ) throws -> Tensor {
        guard !terms.isEmpty else { return frozen }
        guard rows.dimension == 0 else { return try grouped(terms, rows, frozen, input) }
        let make = { try Self.stack(terms, dtype: input.dtype) }
        // What training changes must not be remembered.
        let stack = try isGradEnabled ? make() : routing.memory.value(for: linear, make)
        let own = try input.gathered(stack.rows)
        let inner = try own.matmul(stack.down.gathered(stack.numbers))
        let change = try inner.matmul(stack.up.gathered(stack.numbers))
        return try callTensor("aten::index_add", frozen, 0, stack.rows, change, 1.0)
    }

    private static func stack(_ terms: Terms, dtype: DType) throws -> Stack {
        let rank = terms.map { $0.term.down.size(0) }.max() ?? 0
        func filled(_ tensor: Tensor, _ dimension: Int) throws -> Tensor {
            var shape = tensor.shape
            shape[dimension] = rank - shape[dimension]
            guard shape[dimension] > 0 else { return tensor }
            let zeros = try Tensor.zeros(shape, dtype: tensor.dtype, device: tensor.device)
            return try Tensor.concatenate([tensor, zeros], dimension: dimension)
        }
        let numbers = try terms.enumerated().map { number, part in
            try Tensor.full(part.index.shape, Double(number), dtype: .int64, device: part.index.device)
        }
        return Stack(
            rows: try Tensor.concatenate(terms.map(\.index)), numbers: try Tensor.concatenate(numbers),
            down: try Tensor.stack(terms.map { try filled($0.term.down, 0).transposed(0, 1) }).to(dtype: dtype),
            up: try Tensor.stack(terms.map { try filled($0.term.up * $0.term.scale, 1).transposed(0, 1) })
                .to(dtype: dtype))
    }
}
