#if canImport(Glibc)
import Glibc
#elseif canImport(Musl)
import Musl
#elseif canImport(Darwin)
import Darwin
#endif

/// What a launcher tells each of several processes that work together: torchrun's environment variables.
///
/// `RANK` is this process's number among `WORLD_SIZE`, `LOCAL_RANK` its number on this machine; all meet at
/// `MASTER_ADDR:MASTER_PORT`, where rank 0 answers, or torchrun's agent where `TORCHELASTIC_USE_AGENT_STORE` is `True`.
public struct LaunchEnvironment: Sendable, Equatable {
    /// This process's number, from 0.
    public let rank: Int
    /// How many processes work together, at least 2.
    public let worldSize: Int
    /// This process's number on its machine, which chooses its accelerator.
    public let localRank: Int
    /// The name or address of the machine where all meet.
    public let masterAddress: String
    /// The TCP port there.
    public let masterPort: Int
    /// Whether the launcher's agent answers at the port, instead of rank 0.
    public let usesAgentStore: Bool
    /// How often the launcher has started the processes anew.
    public let restartCount: Int
    /// How many seconds the others may take for their part of an exchange: `GRAFT_TIMEOUT`, by default 600.
    public let timeout: Int

    /// Reads the variables of this process; nil where it works alone.
    ///
    /// - Throws: ``ProcessGroupError`` naming the variable that is missing or wrong.
    public static func current() throws -> LaunchEnvironment? {
        try LaunchEnvironment { name in getenv(name).map { String(cString: $0) } }
    }

    /// Reads variables; nil where `WORLD_SIZE` is not set or 1.
    ///
    /// - Parameter variables: The values by name; an empty one counts as missing.
    /// - Throws: ``ProcessGroupError`` naming the variable that is missing or wrong.
    public init?(variables: [String: String]) throws {
        try self.init { variables[$0] }
    }

    private init?(_ read: (String) -> String?) throws {
        func value(_ name: String) -> String? {
            guard let text = read(name), !text.isEmpty else { return nil }
            return text
        }
        func number(_ name: String, _ range: ClosedRange<Int>, _ default: Int? = nil) throws -> Int {
            guard let text = value(name) else {
                if let `default` { return `default` }
                throw ProcessGroupError.launch(
                    "\(name) is not set, but WORLD_SIZE is; start every process with torchrun, or set RANK, WORLD_SIZE, "
                        + "MASTER_ADDR and MASTER_PORT")
            }
            guard let number = Int(text), range.contains(number) else {
                let end = range.upperBound == .max ? "" : " to \(range.upperBound)"
                throw ProcessGroupError.launch(
                    "\(name) is \"\(text)\"; expected a whole number from \(range.lowerBound)\(end)")
            }
            return number
        }
        guard value("WORLD_SIZE") != nil else { return nil }
        worldSize = try number("WORLD_SIZE", 1...(1 << 20))
        guard worldSize > 1 else { return nil }
        rank = try number("RANK", 0...(worldSize - 1))
        localRank = try number("LOCAL_RANK", 0...(worldSize - 1), 0)
        masterPort = try number("MASTER_PORT", 1...65_535)
        guard let address = value("MASTER_ADDR") else {
            throw ProcessGroupError.launch(
                "MASTER_ADDR is not set, but WORLD_SIZE is; give the name or address of the machine of rank 0")
        }
        masterAddress = address
        usesAgentStore = value("TORCHELASTIC_USE_AGENT_STORE")?.lowercased() == "true"
        restartCount = try number("TORCHELASTIC_RESTART_COUNT", 0...Int.max, 0)
        timeout = try number("GRAFT_TIMEOUT", 1...1_000_000, 600)
    }
}
