import Graft

/// What was found at a path, as facts to print and the tensors behind them.
struct Inspection {
    /// A stored tensor, whatever the file's format.
    struct StoredTensor {
        let name: String
        let type: String
        let shape: [Int]
        let elements: Int
        let bytes: Int
    }

    /// Facts by name, in order.
    var facts: KeyedList<JSON>
    /// The tensors, where there are any.
    var tensors: [StoredTensor] = []

    /// Tensors, elements and bytes of each type, the largest first.
    private var types: [(name: String, tensors: Int, elements: Int, bytes: Int)] {
        Dictionary(grouping: tensors, by: \.type).map { name, group in
            (name, group.count, group.reduce(0) { $0 + $1.elements }, group.reduce(0) { $0 + $1.bytes })
        }.sorted { ($1.bytes, $0.name) < ($0.bytes, $1.name) }
    }

    /// The document of `--json`.
    func json(listsTensors: Bool) -> KeyedList<JSON> {
        var result = facts
        guard !tensors.isEmpty else { return result }
        result["tensors"] = JSON(tensors.count)
        result["tensor_bytes"] = JSON(tensors.reduce(0) { $0 + $1.bytes })
        result["tensors_by_type"] = JSON(
            types.map {
                [
                    "type": .string($0.name), "tensors": JSON($0.tensors), "elements": JSON($0.elements),
                    "bytes": JSON($0.bytes),
                ]
            })
        if listsTensors {
            result["tensor_list"] = JSON(
                tensors.map {
                    [
                        "name": .string($0.name), "type": .string($0.type), "shape": JSON($0.shape.map { JSON($0) }),
                        "bytes": JSON($0.bytes),
                    ]
                })
        }
        return result
    }

    /// The same to read.
    func text(listsTensors: Bool) -> String {
        let shown = facts.filter { !$0.value.isNull }
        var text = aligned(shown.map { ($0.key.replacing("_", with: " "), Self.plain($0.key, $0.value)) })
        guard !tensors.isEmpty else { return text }
        var table = TextTable(.left("type"), .right("tensors"), .right("elements"), .right("bytes"))
        for type in types {
            table.append([type.name, "\(type.tensors)", Units.count(type.elements), Units.bytes(type.bytes)])
        }
        text += "\n" + table.text()
        guard listsTensors else { return text }
        var list = TextTable(.left("tensor"), .left("type"), .left("shape"), .right("bytes"))
        for tensor in tensors {
            list.append([tensor.name, tensor.type, "\(tensor.shape)", Units.bytes(tensor.bytes)])
        }
        return text + "\n" + list.text()
    }

    private static func plain(_ key: String, _ value: JSON) -> String {
        switch value {
        case .string(let text): return text
        case .integer(let number) where key.hasSuffix("bytes"): return Units.bytes(Int(number))
        case .integer(let number) where number >= 100_000: return "\(number) (\(Units.count(Int(number))))"
        case .number(let number): return Units.loss(number)
        case .array(let items): return items.map { plain(key, $0) }.joined(separator: ", ")
        case .object(let pairs): return pairs.map { "\($0.key)=\(plain($0.key, $0.value))" }.joined(separator: " ")
        default: return value.compact
        }
    }
}
