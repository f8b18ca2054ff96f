import Formats
import Torch

/// A checkpoint whose linear layers were quantised and unpacked again: the weights that training over them has seen.
struct DequantisedSource: WeightSource {
    let whole: any WeightSource
    let form: WeightForm
    /// The weights that ``WeightForm`` quantises.
    let quantised: Set<String>

    var path: String { whole.path }
    var names: [String] { whole.names }
    func shape(of name: String) -> [Int]? { whole.shape(of: name) }
    func storedDType(of name: String) -> DType? { whole.storedDType(of: name) }

    func tensor(_ name: String, dtype: DType) throws -> Tensor {
        guard quantised.contains(name), let packed = try form.quantised(whole.tensor(name, dtype: .float32)) else {
            return try whole.tensor(name, dtype: dtype)
        }
        return try packed.values(dtype: .float32).to(dtype: dtype)
    }
}

extension Checkpoint {
    /// The tensors as a model of a form has them, in plain numbers.
    ///
    /// - Throws: `ModelError` when a tensor is missing, superfluous or of another shape than the configuration says.
    package func source(dequantising form: WeightForm) throws -> any WeightSource {
        let weights = try outline().linears.filter { $0.role != .head }.map(\.weight.path)
        return DequantisedSource(whole: source, form: form, quantised: Set(weights))
    }
}
