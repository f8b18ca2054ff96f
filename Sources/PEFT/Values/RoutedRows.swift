import Backbones
import Torch

/// The rows of a batch or of a packed sequence, apart by the adapter that they use.
struct RoutedRows {
    /// Rows of one adapter: their indices along the dimension, int64.
    struct Group {
        let adapter: (any RoutedAdapter)?
        let index: Tensor
    }

    let groups: [Group]
    /// 0 for the rows of a batch, 1 for the tokens of a packed sequence.
    let dimension: Int
    /// The place of each index among those of all groups one behind the other.
    private let inverse: Tensor
    private let segments: Segments?

    /// Sorts the rows of a tensor.
    ///
    /// - Parameters:
    ///   - routing: The adapters of the rows.
    ///   - tensor: `[batch, time, features]`.
    ///   - context: The forward pass.
    ///   - path: The place, for errors.
    /// - Throws: `PEFTError` when the tensor has not as many rows as the routing.
    static func of(_ routing: Routing, _ tensor: Tensor, _ context: Context, path: String) throws -> RoutedRows {
        let (lengths, shape) = (context.segments?.lengths, tensor.shape)
        let fits = lengths.map { shape.count == 3 && $0.reduce(0, +) == shape[1] } ?? (shape.count == 3)
        let found = lengths?.count ?? shape[0]
        guard fits, found == routing.rows.count else {
            throw PEFTError(
                "\(path): adapters are chosen for \(routing.rows.count) rows, but the pass has "
                    + (fits ? "\(found)" : "values of shape \(shape), whose rows cannot be told"))
        }
        let rows = try routing.memory.value(for: routing.memory) {
            try RoutedRows(routing, segments: context.segments, device: tensor.device)
        }
        guard rows.segments == context.segments else {
            return try RoutedRows(routing, segments: context.segments, device: tensor.device)
        }
        return rows
    }

    private init(_ routing: Routing, segments: Segments?, device: Device) throws {
        self.segments = segments
        dimension = segments == nil ? 0 : 1
        var starts = [0]
        for length in segments?.lengths ?? [] { starts.append(starts[starts.count - 1] + length) }
        let lists = routing.groups.map { group in
            (group.adapter, segments == nil ? group.rows : group.rows.flatMap { Array(starts[$0]..<starts[$0 + 1]) })
        }
        groups = try lists.map { Group(adapter: $0, index: try Tensor($1).to(device: device)) }
        let order = lists.flatMap(\.1)
        var inverse = [Int](repeating: 0, count: order.count)
        for (place, index) in order.enumerated() { inverse[index] = place }
        self.inverse = try Tensor(inverse).to(device: device)
    }

    /// The results of groups as one tensor, in the order of the rows.
    ///
    /// - Parameters:
    ///   - tensors: `[batch, time, features]` each; a group gets its rows of each.
    ///   - body: Gives the result of a group.
    func map(
        _ tensors: [Tensor], _ body: ((any RoutedAdapter)?, [Tensor]) throws -> Tensor
    ) throws -> Tensor {
        let results = try groups.map { group in
            try body(group.adapter, tensors.map { try $0.gathered(group.index, dimension: dimension) })
        }
        return try Tensor.concatenate(results, dimension: dimension).gathered(inverse, dimension: dimension)
    }
}

extension Context {
    /// The adapters of the rows.
    ///
    /// - Throws: `PEFTError` when the pass does not say.
    func requiredRouting(at path: String) throws -> Routing {
        guard let routing else {
            throw PEFTError(
                "\(path): several adapters share the model; say in the context's routing which row uses which, or turn "
                    + "adapters off")
        }
        return routing
    }
}
