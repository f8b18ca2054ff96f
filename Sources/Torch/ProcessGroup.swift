import CTorch
import Synchronization

#if canImport(Glibc)
import Glibc
#elseif canImport(Musl)
import Musl
#elseif canImport(Darwin)
import Darwin
#endif

/// Processes that work together, on one machine or many, over LibTorch's Gloo.
///
/// Every process makes the same calls in the same order; a call returns when all have made it. When a process is lost,
/// the calls of the others fail within seconds with an error that names it. Tensors of an accelerator pass through
/// main memory.
public final class ProcessGroup {
    /// What the launcher said.
    public let environment: LaunchEnvironment
    private let handle: CTGroup
    private let api: CTorchAPI

    /// This process's number, from 0.
    public var rank: Int { environment.rank }
    /// How many processes there are.
    public var size: Int { environment.worldSize }

    /// After how long without a sign of life a process counts as lost, in seconds.
    private static let silence = 30
    /// Groups that meet at one port one after the other are told apart by their number.
    private static let groups = Atomic<Int>(0)

    /// Why processes cannot work together here, or nil where they can.
    ///
    /// - Throws: `TorchError` when the engine cannot be loaded.
    public static func obstacle() throws -> String? {
        try Engine.api().groupObstacle().map { String(cString: $0) }
    }

    /// Meets the other processes.
    ///
    /// - Throws: ``ProcessGroupError`` when they do not come, or the engine has no process groups; `TorchError` when the
    ///   engine cannot be loaded.
    public convenience init(_ environment: LaunchEnvironment) throws {
        try self.init(environment, number: Self.groups.add(1, ordering: .relaxed).oldValue)
    }

    /// As the public form; `number` tells groups apart that meet at one port.
    package init(_ environment: LaunchEnvironment, number: Int) throws {
        self.environment = environment
        let api = try Engine.api()
        self.api = api
        if let obstacle = try Self.obstacle() { throw ProcessGroupError(obstacle) }
        let prefix = "graft/\(environment.restartCount)/\(number)"
        let opened = environment.masterAddress.withCString { host in
            prefix.withCString { prefix in
                var options = CTGroupOptions(
                    host: host, port: Int32(environment.masterPort), rank: Int32(environment.rank),
                    size: Int32(environment.worldSize), isServer: environment.rank == 0 && !environment.usesAgentStore,
                    prefix: prefix, timeoutMilliseconds: Int64(environment.timeout) * 1000,
                    silenceMilliseconds: Int64(Self.silence) * 1000)
                return api.openGroup(&options)
            }
        }
        guard let opened else {
            throw ProcessGroupError(
                "the other processes cannot be met at \(environment.masterAddress):\(environment.masterPort) "
                    + "(MASTER_ADDR, MASTER_PORT): \(Engine.lastError())")
        }
        handle = opened
    }

    deinit { api.closeGroup(handle) }

    // MARK: Exchanges

    /// Adds up the tensors of all processes, in place.
    ///
    /// - Parameter tensor: Of the same shape and dtype everywhere.
    /// - Throws: ``ProcessGroupError`` when a process is lost; `TorchError` when memory is short.
    public func sum(_ tensor: Tensor) throws {
        try exchange(tensor) { api.groupSum(handle, $0.handle) }
    }

    /// Adds up the tensors of all processes in place, in one exchange in fp32.
    ///
    /// - Parameter tensors: Of the same shapes in the same order everywhere.
    /// - Throws: As ``sum(_:)``.
    public func sum(_ tensors: [Tensor]) throws {
        guard let first = tensors.first else { return }
        try withoutGrad {
            let flat = try Tensor.concatenate(
                tensors.map { try $0.detached().to(dtype: .float32, device: first.device).reshaped([-1]) })
            try sum(flat)
            var start = 0
            for tensor in tensors {
                let count = tensor.count
                try tensor.detached().copy(from: flat.narrowed(0, start: start, length: count).reshaped(tensor.shape))
                start += count
            }
        }
    }

    /// Copies the tensors of one process into those of the others.
    ///
    /// - Parameters:
    ///   - tensors: Of the same shapes and dtypes in the same order everywhere.
    ///   - root: The rank whose values count.
    /// - Throws: As ``sum(_:)``.
    public func broadcast(_ tensors: [Tensor], from root: Int = 0) throws {
        for tensor in tensors where tensor.count > 0 {
            try exchange(tensor) { api.groupBroadcast(handle, $0.handle, Int32(clamping: root)) }
        }
    }

    /// Tells all processes the bytes of one.
    ///
    /// - Parameters:
    ///   - bytes: What the process `root` says; others give anything.
    ///   - root: The rank that speaks.
    /// - Returns: The bytes of `root`.
    /// - Throws: As ``sum(_:)``.
    public func broadcast(_ bytes: [UInt8], from root: Int = 0) throws -> [UInt8] {
        let count = try Tensor([Int64(bytes.count)])
        try broadcast([count], from: root)
        let length = Int(try count.item(as: Int64.self))
        guard length > 0 else { return [] }
        let data = try rank == root ? Tensor(bytes) : Tensor.zeros([length], dtype: .uint8)
        try broadcast([data], from: root)
        return try data.values()
    }

    /// Tells all processes the bytes of each; meant for few.
    ///
    /// - Returns: The bytes by rank.
    /// - Throws: As ``sum(_:)``.
    public func gather(_ bytes: [UInt8]) throws -> [[UInt8]] {
        var counts = [Int64](repeating: 0, count: size)
        counts[rank] = Int64(bytes.count)
        let lengths = try sum(counts).map { Int($0) }
        // Each adds its bytes where the others have zeros.
        let before = lengths[..<rank].reduce(0, +)
        let after = lengths[(rank + 1)...].reduce(0, +)
        let all = try Tensor(
            [UInt8](repeating: 0, count: before) + bytes + [UInt8](repeating: 0, count: after))
        if all.count > 0 { try sum(all) }
        let values = try all.values(as: UInt8.self)
        var start = 0
        return lengths.map { length in
            defer { start += length }
            return Array(values[start..<(start + length)])
        }
    }

    /// Adds up numbers over all processes, place by place.
    ///
    /// - Throws: As ``sum(_:)``.
    public func sum<Scalar: TensorScalar>(_ values: [Scalar]) throws -> [Scalar] {
        guard !values.isEmpty else { return [] }
        let tensor = try Tensor(values)
        try sum(tensor)
        return try tensor.values()
    }

    /// Returns when every process has called it.
    ///
    /// - Throws: As ``sum(_:)``.
    public func barrier() throws { _ = try sum([0 as Float]) }

    /// Runs an exchange over memory that Gloo can use.
    private func exchange(_ tensor: Tensor, _ body: (Tensor) -> Int32) throws {
        try withoutGrad {
            let plain = try tensor.detached().to(device: .cpu).contiguous()
            let status = withExtendedLifetime(plain) { body(plain) }
            if status < 0 { throw failure(Engine.lastError()) }
            if !plain.sharesStorage(with: tensor) { try tensor.detached().copy(from: plain) }
        }
    }

    // MARK: Failures

    /// Tells the others that this process ends, so that their errors can say why.
    public func announceEnd(_ reason: String) { api.groupAnnounce(handle, reason) }

    /// The error that says what broke the group.
    private func failure(_ error: TorchError) -> ProcessGroupError {
        guard let verdict = api.groupVerdict(handle, true) else { return ProcessGroupError("\(error)") }
        defer { api.freeList(verdict) }
        return ProcessGroupError(verdict: String(cString: verdict), error, environment)
    }
}

/// Processes that cannot work together, or no longer: which rank, why, and what to do.
public struct ProcessGroupError: Error, CustomStringConvertible, Sendable, Equatable {
    /// One sentence.
    public let description: String
    /// The ranks that are gone or too slow; empty where none is known.
    public private(set) var ranks: [Int] = []
    /// Whether what the launcher said is wrong, so that nothing has begun.
    public private(set) var isOfLaunch = false

    /// Makes an error from a sentence.
    public init(_ description: String) {
        self.description = description
    }

    /// An error in what the launcher said.
    static func launch(_ description: String) -> ProcessGroupError {
        var error = ProcessGroupError(description)
        error.isOfLaunch = true
        return error
    }

    /// Puts the engine's finding into a sentence.
    fileprivate init(verdict: String, _ error: TorchError, _ environment: LaunchEnvironment) {
        let words = verdict.split(separator: " ", maxSplits: 2).map(String.init)
        let ranks = words.dropFirst().first.map { $0.split(separator: ",").compactMap { Int($0) } } ?? []
        let names = (ranks.count == 1 ? "rank " : "ranks ") + ranks.map { "\($0)" }.joined(separator: ", ")
        let (verb, reach) = ranks.count == 1 ? ("is", "has") : ("are", "have")
        switch words.first {
        case "lost":
            self.init("\(names) \(verb) gone: no sign of life, and the connection is broken")
        case "slow":
            self.init(
                "\(names) \(reach) not come to the same exchange within \(environment.timeout) s; set GRAFT_TIMEOUT to more "
                    + "seconds where that is to be expected")
        case "ended":
            self.init("\(names) ended: \(words.count > 2 ? words[2] : "no reason given")")
        case "store":
            let holder = environment.usesAgentStore ? "the launcher's agent" : "rank 0"
            self.init(
                "\(holder) is gone: nobody answers at \(environment.masterAddress):\(environment.masterPort) any more")
        default:
            self.init("an exchange between the processes failed: \(error)")
        }
        self.ranks = words.first == "store" && !environment.usesAgentStore ? [0] : ranks
    }
}
