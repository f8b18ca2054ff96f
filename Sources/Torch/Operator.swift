import CTorch
import Synchronization

/// A value that can be an argument of an operator.
public protocol OperatorArgument {
    /// The form that crosses into C++.
    var argument: Argument { get }
}

/// An argument of an operator, in the forms that operator schemas know.
public enum Argument: OperatorArgument {
    case none
    case tensor(Tensor)
    case tensors([Tensor?])
    case integer(Int)
    case real(Double)
    case bool(Bool)
    case integers([Int])
    case reals([Double])
    case string(String)
    case device(Device)
    case generator(Generator)
    /// The schema's default value.
    case `default`

    /// Itself.
    public var argument: Argument { self }
}

/// A value that operators also take lists of.
public protocol OperatorListItem: OperatorArgument {
    /// The form in which a list crosses into C++.
    static func argument(listing items: [Self]) -> Argument
}

/// A number beside a tensor; an integer leaves a tensor of integers one, a real number makes it real.
public protocol OperatorNumber: OperatorArgument {}

extension Tensor: OperatorListItem {
    /// The tensor.
    public var argument: Argument { .tensor(self) }
    /// A list of tensors.
    public static func argument(listing items: [Tensor]) -> Argument { .tensors(items) }
}
extension Int: OperatorListItem, OperatorNumber {
    /// An integer, or a real number where the schema asks for one.
    public var argument: Argument { .integer(self) }
    /// A list of integers, or of real numbers where the schema asks for them.
    public static func argument(listing items: [Int]) -> Argument { .integers(items) }
}
extension Double: OperatorListItem, OperatorNumber {
    /// A real number.
    public var argument: Argument { .real(self) }
    /// A list of real numbers.
    public static func argument(listing items: [Double]) -> Argument { .reals(items) }
}
extension Float: OperatorNumber {
    /// A real number.
    public var argument: Argument { .real(Double(self)) }
}
extension Bool: OperatorListItem {
    /// A truth value.
    public var argument: Argument { .bool(self) }
    /// A list of truth values.
    public static func argument(listing items: [Bool]) -> Argument { .integers(items.map { $0 ? 1 : 0 }) }
}
extension String: OperatorArgument {
    /// A string.
    public var argument: Argument { .string(self) }
}
extension DType: OperatorArgument {
    /// LibTorch's number of the dtype.
    public var argument: Argument { .integer(Int(rawValue)) }
}
extension Device: OperatorArgument {
    /// The device.
    public var argument: Argument { .device(self) }
}
extension Generator: OperatorArgument {
    /// The generator.
    public var argument: Argument { .generator(self) }
}
extension Array: OperatorArgument where Element: OperatorListItem {
    /// A list of tensors, numbers or truth values, also where it is empty.
    public var argument: Argument { Element.argument(listing: self) }
}
extension Optional: OperatorArgument where Wrapped: OperatorArgument {
    /// The value, or none.
    public var argument: Argument { self?.argument ?? .none }
}
extension Optional: OperatorListItem where Wrapped == Tensor {
    /// A list of tensors of which some are absent.
    public static func argument(listing items: [Tensor?]) -> Argument { .tensors(items) }
}

/// A result of an operator.
public enum OperatorResult {
    case none
    case tensor(Tensor)
    case tensors([Tensor])
    case integer(Int)
    case real(Double)
    case bool(Bool)
    case integers([Int])
}

/// Calls an operator of LibTorch, or one of Graft's own, by its schema name and positional arguments.
///
/// Arguments left out at the end take the schema's defaults; `Argument.default` does so in the middle.
///
/// - Parameters:
///   - name: The operator, such as `aten::mm` or, with its overload, `aten::sum.dim_IntList`.
///   - arguments: The arguments in the schema's order.
/// - Returns: What the operator returns.
/// - Throws: `TorchError` with the operator's name, its arguments' shapes and dtypes, and LibTorch's reason.
@discardableResult
public func call(_ name: StaticString, _ arguments: any OperatorArgument...) throws -> [OperatorResult] {
    try OperatorTable.call(name, arguments)
}

/// Calls an operator that returns one tensor.
///
/// - Throws: `TorchError` as ``call(_:_:)`` does, and when the first result is not a tensor.
public func callTensor(_ name: StaticString, _ arguments: any OperatorArgument...) throws -> Tensor {
    guard case .tensor(let tensor)? = try OperatorTable.call(name, arguments).first else {
        throw TorchError("\(name): the result is not a tensor")
    }
    return tensor
}

/// Calls an operator that returns several tensors, as separate results or as one list.
///
/// - Throws: `TorchError` as ``call(_:_:)`` does, and when the results are not tensors.
public func callTensors(_ name: StaticString, _ arguments: any OperatorArgument...) throws -> [Tensor] {
    let results = try OperatorTable.call(name, arguments)
    if case .tensors(let list)? = results.first { return list }
    return try results.map {
        guard case .tensor(let tensor) = $0 else { throw TorchError("\(name): a result is not a tensor") }
        return tensor
    }
}

/// Operators already looked up, by the address of the name in the program.
private enum OperatorTable {
    private struct Handle: @unchecked Sendable {
        let pointer: CTOperator
    }
    private static let handles = Mutex<[UInt: Handle]>([:])
    private static let resultCapacity = 8

    static func call(_ name: StaticString, _ arguments: [any OperatorArgument]) throws -> [OperatorResult] {
        let api = try Engine.api()
        let handle = try find(name, api)
        let forms = arguments.map(\.argument)
        let frame = CallFrame(forms)
        defer { frame.free() }
        return try withUnsafeTemporaryAllocation(of: CTValue.self, capacity: resultCapacity) { results in
            guard let base = results.baseAddress else { return [] }
            let written = withExtendedLifetime(forms) {
                api.call(handle.pointer, frame.values, Int32(forms.count), base, Int32(resultCapacity))
            }
            try Engine.check(written)
            return (0..<Int(written)).map { decode(results[$0], api) }
        }
    }

    private static func find(_ name: StaticString, _ api: CTorchAPI) throws -> Handle {
        let key = UInt(bitPattern: name.utf8Start)
        if let known = handles.withLock({ $0[key] }) { return known }
        let text = name.description
        let dot = text.firstIndex(of: ".") ?? text.endIndex
        let overload = text[dot...].dropFirst()
        guard let found = api.findOperator(String(text[..<dot]), String(overload)) else { throw Engine.lastError() }
        let handle = Handle(pointer: found)
        handles.withLock { $0[key] = handle }
        return handle
    }

    private static func decode(_ value: CTValue, _ api: CTorchAPI) -> OperatorResult {
        switch Int(value.kind) {
        case Int(CT_TENSOR.rawValue):
            guard let pointer = value.pointer else { return .none }
            return .tensor(Tensor(owning: OpaquePointer(pointer)))
        case Int(CT_INTEGER.rawValue): return .integer(Int(value.integer))
        case Int(CT_REAL.rawValue): return .real(value.real)
        case Int(CT_BOOL.rawValue): return .bool(value.integer != 0)
        case Int(CT_TENSORS.rawValue):
            defer { api.freeList(value.pointer) }
            let items = value.pointer?.assumingMemoryBound(to: CTTensor?.self)
            return .tensors((0..<Int(value.count)).compactMap { items?[$0].map(Tensor.init(owning:)) })
        case Int(CT_INTEGERS.rawValue):
            defer { api.freeList(value.pointer) }
            let items = value.pointer?.assumingMemoryBound(to: Int64.self)
            return .integers((0..<Int(value.count)).compactMap { items?[$0] }.map(Int.init))
        default: return .none
        }
    }
}

/// The arguments of one call in C form; lists live in memory of their own until `free`.
private struct CallFrame {
    let values: UnsafeMutablePointer<CTValue>
    private let count: Int
    private var lists: [UnsafeMutableRawPointer] = []

    init(_ arguments: [Argument]) {
        count = arguments.count
        values = .allocate(capacity: max(count, 1))
        for (index, argument) in arguments.enumerated() {
            values.advanced(by: index).initialize(to: encode(argument))
        }
    }

    func free() {
        lists.forEach { $0.deallocate() }
        values.deallocate()
    }

    private mutating func list<Item>(_ items: [Item]) -> UnsafeMutableRawPointer {
        let memory = UnsafeMutablePointer<Item>.allocate(capacity: max(items.count, 1))
        memory.initialize(from: items, count: items.count)
        lists.append(UnsafeMutableRawPointer(memory))
        return UnsafeMutableRawPointer(memory)
    }

    private mutating func encode(_ argument: Argument) -> CTValue {
        var value = CTValue()
        func kind(_ kind: CTKind) { value.kind = Int32(kind.rawValue) }
        switch argument {
        case .none: kind(CT_NONE)
        case .default: kind(CT_DEFAULT)
        case .tensor(let tensor):
            kind(CT_TENSOR)
            value.pointer = UnsafeMutableRawPointer(tensor.handle)
        case .tensors(let tensors):
            kind(CT_TENSORS)
            value.pointer = list(tensors.map { $0?.handle })
            value.count = Int64(tensors.count)
        case .integer(let integer):
            kind(CT_INTEGER)
            value.integer = Int64(integer)
        case .real(let real):
            kind(CT_REAL)
            value.real = real
        case .bool(let bool):
            kind(CT_BOOL)
            value.integer = bool ? 1 : 0
        case .integers(let integers):
            kind(CT_INTEGERS)
            value.pointer = list(integers.map(Int64.init))
            value.count = Int64(integers.count)
        case .reals(let reals):
            kind(CT_REALS)
            value.pointer = list(reals)
            value.count = Int64(reals.count)
        case .string(let string):
            let bytes = Array(string.utf8)
            kind(CT_STRING)
            value.pointer = list(bytes)
            value.count = Int64(bytes.count)
        case .device(let device):
            kind(CT_DEVICE)
            value.integer = Int64(device.code)
        case .generator(let generator):
            kind(CT_GENERATOR)
            value.pointer = UnsafeMutableRawPointer(generator.handle)
        }
        return value
    }
}
