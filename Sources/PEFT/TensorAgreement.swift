import Formats
import Torch

/// The comparison of a file's tensors with those that an adapter has.
struct TensorAgreement {
    private let foundCount: Int
    private let expectedNames: [String]
    private let unknown: [String]
    private let missing: [String]
    private let misshapen: [(name: String, found: [Int], expected: [Int])]
    private let agreeing: Int

    init(found: KeyedList<[Int]>, expected: KeyedList<Tensor>) {
        foundCount = found.count
        expectedNames = expected.keys
        unknown = found.keys.filter { expected.position(of: $0) == nil }
        missing = expected.keys.filter { found.position(of: $0) == nil }
        misshapen = expected.compactMap { name, tensor in
            guard let shape = found[name], shape != tensor.shape else { return nil }
            return (name, shape, tensor.shape)
        }
        agreeing = expected.count - missing.count - misshapen.count
    }

    /// Refuses any difference: a tensor that is not used, or one that would stay as it was initialised, is an adapter
    /// that does not do what it was trained to do.
    ///
    /// - Parameters:
    ///   - file: Where the tensors come from.
    ///   - blocks: The number of the model's blocks.
    /// - Throws: `PEFTError` with the three counts and the first name of every kind of difference.
    func require(in file: String, blocks: Int) throws {
        guard foundCount > 0 else { throw PEFTError("\(file): the adapter is empty; the file holds no tensor") }
        if unknown.isEmpty, missing.isEmpty, misshapen.isEmpty { return }
        var sentence =
            "\(file): \(foundCount) tensors in the file, \(expectedNames.count) in the adapter, \(agreeing) agree"
        if let first = misshapen.first {
            sentence +=
                "; \(counted(misshapen.count, "has another shape", "have other shapes")), first \"\(first.name)\": "
                + "\(first.found) in the file, \(first.expected) by adapter_config.json and the model"
        }
        if let first = unknown.first {
            let near = closestMatch(to: first, in: missing.isEmpty ? expectedNames : missing)
            sentence +=
                "; \(counted(unknown.count, "is unknown", "are unknown")), first \"\(first)\""
                + (near.map { " (did you mean \"\($0)\"?)" } ?? "")
        }
        if let first = missing.first {
            sentence += "; \(counted(missing.count, "is missing", "are missing")), first \"\(first)\""
        }
        throw PEFTError(sentence + reason(blocks: blocks))
    }

    private func counted(_ count: Int, _ one: String, _ many: String) -> String {
        count == 1 ? "1 \(one)" : "\(count) \(many)"
    }

    /// The likely cause, where the names or shapes tell.
    private func reason(blocks: Int) -> String {
        let highest = unknown.compactMap(Self.block).max() ?? -1
        if highest >= blocks {
            return ": the adapter is for a model of at least \(highest + 1) blocks, this one has \(blocks)"
        }
        return misshapen.isEmpty ? "" : ": the adapter is for a model of other sizes, or was saved with other settings"
    }

    /// The number behind `layers.` in a key; none where it can be no block's.
    private static func block(_ name: String) -> Int? {
        let parts = name.split(separator: ".")
        guard let position = parts.firstIndex(of: "layers"), position + 1 < parts.count else { return nil }
        return Int(parts[position + 1]).flatMap { $0 < 1_000_000 ? $0 : nil }
    }
}
