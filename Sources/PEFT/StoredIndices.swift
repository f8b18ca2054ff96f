import Backbones
import Formats
import Torch

extension AttachPoints {
    /// Positions that an adapter's file holds: those of the folder that is being loaded, or drawn ones.
    ///
    /// - Parameters:
    ///   - name: The key in `adapter_model.safetensors`.
    ///   - bound: The number of positions that there are.
    ///   - count: How many are expected; nil: any number.
    ///   - drawn: The positions of an adapter that begins.
    /// - Returns: int64, one dimension.
    /// - Throws: `PEFTError` when the folder's are no distinct positions.
    func indices(
        _ name: String, below bound: Int, count: Int? = nil, drawn: () throws -> [Int]
    ) throws -> Tensor {
        guard let found = try folder?.tensor(name) else {
            let positions = try drawn()
            return try Tensor(positions, shape: [positions.count]).to(device: device)
        }
        let positions = found.dtype.isFloatingPoint || found.rank != 1 ? [-1] : try found.values(as: Int.self)
        guard positions.allSatisfy((0..<bound).contains), Set(positions).count == positions.count else {
            throw PEFTError(
                "\(name): expected distinct whole numbers in 0..<\(bound), found a tensor of \(found.dtype) with shape "
                    + "\(found.shape); the folder is of another model or damaged")
        }
        if let count, positions.count != count {
            throw PEFTError("\(name): expected \(count) positions, found \(positions.count)")
        }
        return try found.to(dtype: .int64, device: device)
    }
}

/// Some entries of a tensor, as a list of positions and one of values: what a file keeps of a sparse change.
struct SparseEntries {
    /// int64 `[k]`, ascending, in row-major order.
    let positions: Tensor
    /// fp32 `[k]`: the entries themselves, not differences.
    let values: Tensor

    /// The keys of the two lists in a file.
    static func names(_ key: String) -> (positions: String, values: String) { (key + ".indices", key + ".values") }

    /// The entries of a tensor where a mask of its shape is true.
    ///
    /// - Throws: `TorchError` when memory is short.
    init(of tensor: Tensor, where mask: Tensor) throws {
        positions = try callTensor("aten::nonzero", mask.reshaped([-1])).reshaped([-1])
        values = try tensor.detached().reshaped([-1]).gathered(positions)
    }

    /// The entries that the folder being loaded has for a key, or nil where it has none.
    ///
    /// - Throws: `PEFTError` when they do not fit a tensor of so many elements.
    init?(_ key: String, of count: Int, in points: AttachPoints) throws {
        let names = Self.names(key)
        guard let values = try points.folder?.tensor(names.values) else { return nil }
        positions = try points.indices(names.positions, below: count, count: values.count) { [] }
        guard positions.count == values.count else {
            throw PEFTError("\(names.positions): the positions of \(values.count) values are missing")
        }
        self.values = try values.to(dtype: .float32, device: points.device).reshaped([-1])
    }

    /// A copy of a tensor with these entries in their places.
    ///
    /// - Throws: `TorchError` when memory is short.
    func put(into tensor: Tensor) throws -> Tensor {
        let flat = try tensor.to(dtype: .float32).reshaped([-1])
        return try callTensor("aten::index_copy", flat, 0, positions, values).reshaped(tensor.shape)
    }
}
