import Formats
import TestSupport
import Testing
import Torch

/// What live PyTorch computes; see `torch_oracle.py`.
enum Reference {
    /// The tensors that a Python expression over the named tensors gives.
    static func evaluate(_ expression: String, _ tensors: [String: Tensor]) async throws -> [Tensor] {
        let request: KeyedList<JSON> = ["expression": JSON(expression), "tensors": try json(tensors)]
        return try self.tensors(of: try await Oracle.shared.call("torch.evaluate", request))
    }

    /// One of the tensors after a Python statement that changes it.
    static func assign(_ statement: String, _ tensors: [String: Tensor], _ name: String) async throws -> Tensor {
        let request: KeyedList<JSON> = [
            "statement": JSON(statement), "tensors": try json(tensors), "name": JSON(name),
        ]
        return try tensor(of: try await Oracle.shared.call("torch.assign", request))
    }

    /// The gradients of the sum of the cosines of all results of an expression.
    static func gradients(
        _ expression: String, _ tensors: [String: Tensor], with wanted: [String]
    ) async throws -> [Tensor] {
        let request: KeyedList<JSON> = [
            "expression": JSON(expression), "tensors": try json(tensors), "wanted": .array(wanted.map { JSON($0) }),
        ]
        return try self.tensors(of: try await Oracle.shared.call("torch.gradients", request))
    }

    private static func json(_ tensors: [String: Tensor]) throws -> JSON {
        var object = KeyedList<JSON>()
        for (name, tensor) in tensors.sorted(by: { $0.key < $1.key }) { object[name] = try json(tensor) }
        return .object(object)
    }

    private static func json(_ tensor: Tensor) throws -> JSON {
        let values: [JSON] =
            tensor.dtype.isFloatingPoint
            ? try tensor.values(as: Double.self).map { JSON($0) } : try tensor.values(as: Int.self).map { JSON($0) }
        return [
            "dtype": JSON(tensor.dtype.description), "shape": .array(tensor.shape.map { JSON($0) }),
            "values": .array(values),
        ]
    }

    private static func tensors(of answer: JSON) throws -> [Tensor] {
        try #require(answer.array).map(tensor(of:))
    }

    private static func tensor(of answer: JSON) throws -> Tensor {
        let dtype = try #require(DType(name: answer["dtype"]?.string ?? ""))
        let shape = try #require(answer["shape"]?.array).map { try #require($0.int) }
        let values = try #require(answer["values"]?.array)
        let wide =
            dtype.isFloatingPoint
            ? try Tensor(values.map { try #require($0.double) }, shape: shape)
            : try Tensor(values.map { try #require($0.int) }, shape: shape)
        return try wide.to(dtype: dtype)
    }
}

extension Tensor {
    /// Normally distributed numbers, of float64 unless said otherwise.
    static func random(
        _ shape: [Int], _ generator: inout SeededGenerator, dtype: DType = .float64
    ) throws -> Tensor {
        try Tensor((0..<shape.reduce(1, *)).map { _ in generator.normal() }, shape: shape).to(dtype: dtype)
    }

    /// The largest absolute difference; infinite where shapes or dtypes differ.
    func difference(from other: Tensor) throws -> Double {
        guard shape == other.shape, dtype == other.dtype else { return .infinity }
        let pairs = zip(try values(as: Double.self), try other.values(as: Double.self))
        return pairs.reduce(0) { worst, pair in
            let difference = abs(pair.0 - pair.1)
            return difference.isNaN ? .infinity : max(worst, difference)
        }
    }
}

/// The message of the error that `body` throws.
func message(_ body: () throws -> Void) -> String {
    do {
        try body()
        return ""
    } catch {
        return "\(error)"
    }
}
