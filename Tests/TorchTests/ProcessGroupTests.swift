import Foundation
import Synchronization
import TestSupport
import Testing
import Torch

/// What launchers say, and exchanges between processes (here: threads, which meet in the same way).
@Suite struct ProcessGroupTests {
    private static let variables = [
        "RANK": "1", "WORLD_SIZE": "3", "LOCAL_RANK": "1", "MASTER_ADDR": "node-0", "MASTER_PORT": "29500",
        "GROUP_RANK": "7", "ROLE_RANK": "x",
    ]

    @Test func readsTheVariablesOfTorchrun() throws {
        let found = try #require(try LaunchEnvironment(variables: Self.variables))
        #expect(found.rank == 1 && found.worldSize == 3 && found.localRank == 1)
        #expect(found.masterAddress == "node-0" && found.masterPort == 29_500)
        #expect(!found.usesAgentStore && found.restartCount == 0 && found.timeout == 600)
        let more = ["TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "2", "GRAFT_TIMEOUT": "5"]
        let elastic = try #require(try LaunchEnvironment(variables: Self.variables.merging(more) { $1 }))
        #expect(elastic.usesAgentStore && elastic.restartCount == 2 && elastic.timeout == 5)
        #expect(try LaunchEnvironment(variables: [:]) == nil)
        #expect(try LaunchEnvironment(variables: ["RANK": "3"]) == nil)
        #expect(try LaunchEnvironment(variables: ["WORLD_SIZE": "1", "RANK": "x"]) == nil)
    }

    @Test(arguments: [
        ("RANK", "", "is not set"), ("RANK", "3", "from 0 to 2"), ("RANK", "-1", "from 0 to 2"),
        ("RANK", "1.0", "from 0 to 2"), ("WORLD_SIZE", "0", "from 1"), ("WORLD_SIZE", "many", "from 1"),
        ("LOCAL_RANK", "9", "from 0 to 2"), ("MASTER_ADDR", "", "is not set"), ("MASTER_PORT", "", "is not set"),
        ("MASTER_PORT", "65536", "from 1 to 65535"), ("TORCHELASTIC_RESTART_COUNT", "-2", "from 0"),
        ("GRAFT_TIMEOUT", "soon", "from 1"),
    ])
    func wrongVariablesAreNamed(name: String, value: String, words: String) {
        let variables = Self.variables.merging([name: value]) { $1 }
        do {
            _ = try LaunchEnvironment(variables: variables)
            Issue.record("\(name)=\(value) was taken")
        } catch {
            #expect("\(error)".hasPrefix(name + " is ") && "\(error)".contains(words), "\(error)")
        }
    }

    @Test(arguments: [2, 3, 5])
    func exchangesReachEveryProcess(size: Int) throws {
        let seed = UInt64.random(in: 0...(.max))
        try Self.inGroup(of: size) { group in
            // What each process gives is known to all, so that each can check what it gets.
            let given = (0..<size).map { rank in
                var generator = SeededGenerator(seed: seed &+ UInt64(rank))
                return (0..<60).map { _ in Float.random(in: -1...1, using: &generator) }
            }
            let own = try Tensor(given[group.rank])
            let parts = [
                try own.narrowed(0, start: 0, length: 24).reshaped([2, 12]), try Tensor([] as [Float]),
                try own.narrowed(0, start: 24, length: 36).reshaped([6, 6]).transposed(0, 1),
            ]
            try group.sum(parts)
            let sums = try parts[0].values(as: Float.self) + parts[2].transposed(0, 1).values(as: Float.self)
            for (index, sum) in sums.enumerated() {
                #expect(abs(sum - given.reduce(0) { $0 + $1[index] }) < 1e-5)
            }
            #expect(try group.sum([Double(group.rank), 1]) == [Double(size * (size - 1) / 2), Double(size)])

            let copy = try Tensor(given[group.rank])
            try group.broadcast([copy], from: size - 1)
            #expect(try copy.values(as: Float.self) == given[size - 1])

            let texts = (0..<size).map { Array(String(repeating: "é\($0)", count: $0).utf8) }
            #expect(try group.gather(texts[group.rank]) == texts)
            #expect(try group.broadcast(texts[group.rank], from: 1) == texts[1])
            #expect(try group.broadcast([], from: 0).isEmpty)
            try group.barrier()
        }
    }

    @Test func theEndOfOneIsTheErrorOfTheOthers() throws {
        let messages = Mutex<[Int: String]>([:])
        try Self.inGroup(of: 3) { group in
            if group.rank == 1 { return group.announceEnd("the disk is full") }
            do {
                try group.barrier()
                Issue.record("rank \(group.rank) went on")
            } catch let error as ProcessGroupError {
                #expect(error.ranks == [1])
                messages.withLock { $0[group.rank] = "\(error)" }
            }
        }
        let sentence = "rank 1 ended: the disk is full"
        #expect(messages.withLock { $0 } == [0: sentence, 2: sentence])
    }

    @Test func slowAndMissingProcessesAreNamed() throws {
        let messages = Mutex<[Int: String]>([:])
        let isDone = Mutex(false)
        // Rank 1 has to be heard of before rank 0 gives up, also while the machine pauses for seconds.
        try Self.inGroup(of: 3, timeout: 6) { group in
            if group.rank == 2 {
                // Alive, but not at the exchange.
                while !isDone.withLock({ $0 }) { Thread.sleep(forTimeInterval: 0.01) }
                return
            }
            defer { if group.rank == 0 { isDone.withLock { $0 = true } } }
            do {
                try group.barrier()
            } catch {
                messages.withLock { $0[group.rank] = "\(error)" }
            }
        }
        let found = messages.withLock { $0 }
        #expect(
            found[0]?.contains("rank 2 has not come") == true && found[0]?.contains("GRAFT_TIMEOUT") == true, "\(found)"
        )
        #expect(found[1]?.contains("rank 2 has not come") == true, "\(found)")

        let alone = try Self.environment(rank: 0, size: 4, port: freePort(), timeout: 1)
        do {
            _ = try ProcessGroup(alone)
            Issue.record("a group of one was made")
        } catch {
            #expect("\(error)".contains("not come within 1 s: 1,2,3"), "\(error)")
        }
    }

    // MARK: Support

    private static func environment(rank: Int, size: Int, port: Int, timeout: Int) throws -> LaunchEnvironment {
        try #require(
            try LaunchEnvironment(variables: [
                "RANK": "\(rank)", "WORLD_SIZE": "\(size)", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "\(port)",
                "GRAFT_TIMEOUT": "\(timeout)",
            ]))
    }

    /// Runs `body` as every rank of a group, each in a thread of its own.
    private static func inGroup(
        of size: Int, timeout: Int = 60, _ body: @escaping @Sendable (ProcessGroup) throws -> Void
    ) throws {
        let port = try freePort()
        let ends = DispatchGroup()
        for rank in 0..<size {
            let environment = try environment(rank: rank, size: size, port: port, timeout: timeout)
            ends.enter()
            Thread.detachNewThread {
                defer { ends.leave() }
                do {
                    try body(ProcessGroup(environment, number: 0))
                } catch {
                    Issue.record("rank \(rank): \(error)")
                }
            }
        }
        ends.wait()
    }
}
