import Formats
import Torch

/// The tensors of an adapter's folder, whichever file holds them.
enum StoredTensors {
    /// `adapter_model.safetensors`.
    case plain(SafetensorsFile)
    /// `adapter_model.ternary`.
    case ternary(TernaryFile)

    static let plainName = "adapter_model.safetensors"
    static let ternaryName = "adapter_model.ternary"
    private static let pickleName = "adapter_model.bin"

    /// Opens the one that is there.
    ///
    /// - Throws: `FormatError` when it is broken; `PEFTError` when there are two, or only a pickle.
    init(folder: String) throws {
        let (plain, ternary) = (joined(folder, Self.plainName), joined(folder, Self.ternaryName))
        let isPlain = PathKind(plain) != .missing
        if isPlain, PathKind(ternary) != .missing {
            throw PEFTError(
                "\(folder): there are \(Self.plainName) and \(Self.ternaryName), which are two adapters; remove one")
        }
        if PathKind(ternary) != .missing {
            self = .ternary(try TernaryFile(path: ternary))
            return
        }
        if !isPlain, PathKind(joined(folder, Self.pickleName)) == .file {
            throw PEFTError(
                "\(folder): \(Self.pickleName) is a pickle, which can run code when it is read; load it with peft "
                    + "and save_pretrained() it again as \(Self.plainName)")
        }
        self = .plain(try SafetensorsFile(path: plain))
    }

    /// Whether an adapter's folder is compressed and holds changes of what its tensors begin with on the base model.
    ///
    /// - Throws: As ``init(folder:)``.
    static func startsFromModel(_ folder: String) throws -> Bool {
        guard PathKind(joined(folder, ternaryName)) == .file else { return false }
        return try StoredTensors(folder: folder).startsFromModel
    }

    /// Whether tensors are changes of what they begin with on the base model.
    var startsFromModel: Bool {
        if case .ternary(let file) = self { file.tensors.values.contains { $0.start != .zero } } else { false }
    }

    /// The seed that random starts are drawn from, where there are some.
    var seed: Seed? {
        if case .ternary(let file) = self { file.seed.map { Seed($0) } } else { nil }
    }

    var path: String {
        switch self {
        case .plain(let file): file.file.path
        case .ternary(let file): file.path
        }
    }

    /// The tensors' names.
    var names: [String] {
        switch self {
        case .plain(let file): file.tensors.keys
        case .ternary(let file): file.tensors.keys
        }
    }

    /// Names and shapes.
    ///
    /// - Parameter wholeNumbers: The tensors that need not be of floating-point numbers.
    /// - Throws: `FormatError` for another tensor that is not.
    func shapes(wholeNumbers: Set<String> = []) throws -> KeyedList<[Int]> {
        var shapes = KeyedList<[Int]>()
        switch self {
        case .plain(let file):
            for (name, tensor) in file.tensors {
                guard let dtype = tensor.type.dtype, dtype.isFloatingPoint || wholeNumbers.contains(name) else {
                    throw FormatError(
                        file: path, place: .key(name),
                        "expected floating-point numbers, found dtype \(tensor.type.rawValue)")
                }
                shapes.appendIfNew(key: name, value: tensor.shape)
            }
        case .ternary(let file):
            for (name, tensor) in file.tensors { shapes.appendIfNew(key: name, value: tensor.shape) }
        }
        return shapes
    }

    /// The first tensor of whole numbers, such as positions, or nil.
    var firstOfWholeNumbers: String? {
        guard case .plain(let file) = self else { return nil }
        return file.tensors.first { $0.value.type.dtype.map { !$0.isFloatingPoint } ?? false }?.key
    }

    /// The number of values.
    var count: Double {
        switch self {
        case .plain(let file): file.tensors.reduce(0) { $0 + Double($1.value.elementCount) }
        case .ternary(let file): Double(file.vector.count)
        }
    }

    /// A tensor as the plain file has it; nil where there is none.
    ///
    /// - Throws: `FormatError` when the file is damaged.
    func tensorIfThere(_ name: String) throws -> Tensor? {
        if case .plain(let file) = self { try file.tensors[name]?.tensor() } else { nil }
    }

    /// A tensor's values.
    ///
    /// - Parameters:
    ///   - name: Its name.
    ///   - start: What the settings, the base model and ``seed`` start it with; nil where they are not there.
    /// - Throws: `FormatError` when it is not there; `PEFTError` when its start is another than it was compressed with.
    func tensor(_ name: String, start: Tensor?) throws -> Tensor {
        switch self {
        case .plain(let file): return try file.tensor(name).tensor()
        case .ternary(let file):
            guard let entry = file.tensors[name] else {
                throw FormatError(file: path, place: .key(name), "the file lacks this tensor")
            }
            let values = try Tensor.empty(entry.shape)
            try values.withUnsafeMutableBytes { try file.write(name, to: $0.bindMemory(to: Float.self)) }
            guard entry.start != .zero else { return values }
            guard let start else {
                throw PEFTError("\(path): \"\(name)\" is a change of what the base model begins with; name the model")
            }
            try requireStart(start, of: name, norm: entry.startNorm)
            return try values.to(device: start.device) + start.detached()
        }
    }

    /// Weights of another dtype have another norm in the last digits only.
    private func requireStart(_ start: Tensor, of name: String, norm: Float) throws {
        let found: Float = try start.detached().to(dtype: .float32).norm().item()
        guard abs(found - norm) <= 0x1p-6 * max(found, norm) else {
            throw PEFTError(
                "\(path): \"\(name)\" was compressed as a change of values with the norm \(norm), those of the model "
                    + "have \(found): the adapter was trained on another base model")
        }
    }
}
