// Views, copies and indexing.

/// One step of an index into a tensor, as in NumPy.
public enum TensorIndex {
    /// `:`
    case all
    /// `...`
    case ellipsis
    /// `None`: a new dimension of size 1.
    case newAxis
    /// One position; negative counts from the end. The dimension goes.
    case at(Int)
    /// `start:end:step`; nil start and end are the ends, negative values count from the end.
    case slice(Int?, Int?, step: Int = 1)
    /// Positions (int64) or a mask (bool).
    case tensor(Tensor)

    /// The positions of a Swift range.
    public static func range(_ range: Range<Int>) -> TensorIndex { .slice(range.lowerBound, range.upperBound) }
}

extension Tensor {
    /// A view with other sizes where the memory allows, else a copy; one size may be -1.
    ///
    /// - Throws: `TorchError` when the element counts differ.
    public func reshaped(_ shape: [Int]) throws -> Tensor { try callTensor("aten::reshape", self, shape) }

    /// A view with two dimensions exchanged.
    ///
    /// - Throws: `TorchError` when there is no such dimension.
    public func transposed(_ first: Int = -2, _ second: Int = -1) throws -> Tensor {
        try callTensor("aten::transpose.int", self, first, second)
    }

    /// A view with the dimensions in another order.
    ///
    /// - Throws: `TorchError` when `order` is not a permutation of the dimensions.
    public func permuted(_ order: [Int]) throws -> Tensor { try callTensor("aten::permute", self, order) }

    /// A view repeated along dimensions of size 1; -1 keeps a size.
    ///
    /// - Throws: `TorchError` when a size neither is 1 nor agrees.
    public func expanded(_ shape: [Int]) throws -> Tensor { try callTensor("aten::expand", self, shape) }

    /// A view with a new dimension of size 1.
    ///
    /// - Throws: `TorchError` when the position is out of range.
    public func unsqueezed(_ dimension: Int) throws -> Tensor { try callTensor("aten::unsqueeze", self, dimension) }

    /// A view without a dimension of size 1.
    ///
    /// - Throws: `TorchError` when there is no such dimension.
    public func squeezed(_ dimension: Int) throws -> Tensor { try callTensor("aten::squeeze.dim", self, dimension) }

    /// A view of `length` positions of one dimension from `start`.
    ///
    /// - Throws: `TorchError` when the positions are out of range.
    public func narrowed(_ dimension: Int, start: Int, length: Int) throws -> Tensor {
        try callTensor("aten::narrow", self, dimension, start, length)
    }

    /// A view of one position of one dimension, which goes.
    ///
    /// - Throws: `TorchError` when the position is out of range.
    public func selected(_ dimension: Int, _ index: Int) throws -> Tensor {
        try callTensor("aten::select.int", self, dimension, index)
    }

    /// The rows (or other slices) at the given positions.
    ///
    /// - Parameters:
    ///   - indices: int64 positions, one dimension.
    ///   - dimension: The dimension that they index.
    /// - Throws: `TorchError` when a position is out of range.
    public func gathered(_ indices: Tensor, dimension: Int = 0) throws -> Tensor {
        try callTensor("aten::index_select", self, dimension, indices)
    }

    /// Views of pieces of the given sizes along one dimension.
    ///
    /// - Throws: `TorchError` when the sizes do not add up.
    public func split(_ sizes: [Int], dimension: Int = -1) throws -> [Tensor] {
        try callTensors("aten::split_with_sizes", self, sizes, dimension)
    }

    /// The upper triangle of the last two dimensions, zero elsewhere.
    ///
    /// - Throws: `TorchError` when there are fewer than two dimensions.
    public func upperTriangle(diagonal: Int = 0) throws -> Tensor { try callTensor("aten::triu", self, diagonal) }

    /// Itself where contiguous, else a contiguous copy.
    ///
    /// - Throws: `TorchError` when memory is short.
    public func contiguous() throws -> Tensor { isContiguous ? self : try callTensor("aten::contiguous", self) }

    /// A copy with memory of its own.
    ///
    /// - Throws: `TorchError` when memory is short.
    public func cloned() throws -> Tensor { try callTensor("aten::clone", self) }

    /// Itself where dtype and device agree, else a converted copy.
    ///
    /// - Throws: `TorchError` when the device is not there or memory is short.
    public func to(dtype: DType? = nil, device: Device? = nil) throws -> Tensor {
        let dtype = dtype ?? self.dtype
        let device = device ?? self.device
        if dtype == self.dtype && device == self.device { return self }
        return try callTensor("aten::to.device", self, device, dtype)
    }

    /// A part of the tensor, by NumPy's rules; a view unless a tensor indexes.
    ///
    /// - Throws: `TorchError` when there are too many indices or one is out of range.
    public func indexed(_ indices: TensorIndex...) throws -> Tensor { try indexed(by: indices) }

    /// As ``indexed(_:)``, for a list of indices.
    ///
    /// - Throws: `TorchError` as ``indexed(_:)`` does.
    public func indexed(by indices: [TensorIndex]) throws -> Tensor {
        let (view, tensors) = try applyingViews(indices)
        return tensors.contains { $0 != nil }
            ? try callTensor("aten::index.Tensor", view, Argument.tensors(tensors)) : view
    }

    /// Writes `value`, broadcast, into a part of the tensor.
    ///
    /// - Throws: `TorchError` as ``indexed(_:)`` does, and when the value does not broadcast.
    public func assign(_ value: Tensor, at indices: TensorIndex...) throws { try assign(value, at: indices) }

    /// Writes `value`, broadcast, into the part that a list of indices names.
    ///
    /// - Throws: `TorchError` as ``indexed(_:)`` does, and when the value does not broadcast.
    public func assign(_ value: Tensor, at indices: [TensorIndex]) throws {
        let (view, tensors) = try applyingViews(indices)
        if tensors.contains(where: { $0 != nil }) {
            try call("aten::index_put_", view, Argument.tensors(tensors), value)
        } else {
            try call("aten::copy_", view, value)
        }
    }

    /// Applies all indices but tensors as views; what is left are tensors by dimension of the view.
    private func applyingViews(_ indices: [TensorIndex]) throws -> (view: Tensor, tensors: [Tensor?]) {
        var consumed = 0
        var ellipses = 0
        for index in indices {
            switch index {
            case .newAxis: break
            case .ellipsis: ellipses += 1
            case .tensor(let mask) where mask.dtype == .bool: consumed += mask.rank
            default: consumed += 1
            }
        }
        guard ellipses <= 1 else {
            throw TorchError("an index of \(self) has \(ellipses) ellipses, at most one is allowed")
        }
        guard consumed <= rank else {
            throw TorchError("\(consumed) indices for \(self), which has \(rank) dimensions")
        }
        var view = self
        var dimension = 0
        var tensors: [Tensor?] = []
        func keep() {
            tensors.append(nil)
            dimension += 1
        }
        for index in indices {
            switch index {
            case .all: keep()
            case .ellipsis: for _ in 0..<(rank - consumed) { keep() }
            case .newAxis:
                view = try view.unsqueezed(dimension)
                keep()
            case .at(let position): view = try view.selected(dimension, position)
            case .slice(let start, let end, let step):
                view = try callTensor("aten::slice.Tensor", view, dimension, start, end, step)
                keep()
            case .tensor(let mask) where mask.dtype == .bool && mask.rank == 0:
                // One truth value takes all or nothing along a new dimension.
                view = try view.unsqueezed(dimension)
                tensors.append(try mask.reshaped([1]))
                dimension += 1
            case .tensor(let tensor):
                tensors.append(tensor)
                dimension += tensor.dtype == .bool ? tensor.rank : 1
            }
        }
        return (view, tensors)
    }
}
