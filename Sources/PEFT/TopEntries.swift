import Torch

/// Marks the largest entries of several tensors together, exactly so many; of equal ones those that come first.
///
/// - Parameters:
///   - count: How many; all where there are fewer.
///   - scores: Numbers without NaN; negative infinity is never marked.
/// - Returns: bool, a tensor of the same shape for each.
/// - Throws: `TorchError` when memory is short.
func topEntries(_ count: Int, of scores: [Tensor]) throws -> [Tensor] {
    let flat = try scores.map { try $0.reshaped([-1]) }
    let limit = try largest(count, of: flat)
    guard let limit else { return try scores.map { try Tensor.zeros($0.shape, dtype: .bool, device: $0.device) } }
    var marks = try flat.map { try callTensor("aten::gt.Scalar", $0, limit) }
    var missing = try marks.reduce(count) { $0 - (try $1.sum().item(as: Int.self)) }
    for (index, scores) in flat.enumerated() where missing > 0 && limit > -.infinity {
        let equal = try callTensor("aten::nonzero", callTensor("aten::eq.Scalar", scores, limit)).reshaped([-1])
        let taken = try equal.narrowed(0, start: 0, length: min(missing, equal.count))
        marks[index] = try callTensor("aten::index_fill.int_Scalar", marks[index], 0, taken, 1)
        missing -= taken.count
    }
    return try zip(marks, scores).map { try $0.reshaped($1.shape) }
}

/// The smallest of the `count` largest entries, or nil where there is none.
private func largest(_ count: Int, of tensors: [Tensor]) throws -> Double? {
    guard count > 0 else { return nil }
    var best: Tensor?
    // In parts: the operator needs 16 bytes for each entry that it looks at.
    for part in try tensors.flatMap({ try callTensors("aten::split.Tensor", $0, 1 << 20, 0) }) {
        var found = part
        if let best, best.count == count {
            let smallest: Double = try callTensor("aten::min", best).item()
            found = try callTensor("aten::masked_select", part, callTensor("aten::gt.Scalar", part, smallest))
            if found.count == 0 { continue }
        }
        let all = try best.map { try Tensor.concatenate([$0, found]) } ?? found
        best = try callTensors("aten::topk", all, min(count, all.count), 0, true, false)[0]
    }
    return try best.map { try callTensor("aten::min", $0).item() }
}
