import Formats
import PEFT
import Torch

/// One process's part in a run that several processes share.
///
/// Every process holds the whole model and the whole adapter, and computes its share of a step's forward passes. The
/// gradients are added up once a step; then all take the same step. Only rank 0 writes.
final class DistributedRun {
    let group: ProcessGroup

    private init(_ environment: LaunchEnvironment) throws {
        group = try ProcessGroup(environment)
    }

    /// Whether this process writes the run folder and shows progress.
    var isWriter: Bool { group.rank == 0 }

    /// Runs `body` beside the other processes that the launcher started, or alone (nil) where there are none.
    ///
    /// - Parameter resumes: Whether this process was told to go on with a run.
    /// - Throws: What `body` throws, after the others were told; `ProcessGroupError` when the processes cannot meet, or
    ///   one is lost.
    static func run<Result>(resumes: Bool, _ body: (DistributedRun?) throws -> Result) throws -> Result {
        guard let environment = try LaunchEnvironment.current() else { return try body(nil) }
        let peers = try DistributedRun(environment)
        do {
            try peers.requireSameTask(resumes: resumes)
            return try withExtendedLifetime(peers) { try body(peers) }
        } catch {
            if !(error is ProcessGroupError) { peers.group.announceEnd("\(error)") }
            throw error
        }
    }

    // MARK: A step

    /// What a process would like to happen after a step.
    struct Wishes: Equatable {
        /// Whether the run should stop.
        var stop = false
        /// Whether a checkpoint is due by the clock.
        var save = false
    }

    /// The forward passes of a step that this process computes.
    func share(of plan: StepPlan) -> [MicroBatch] { plan.share(rank: group.rank, of: group.size) }

    /// Adds up sums and gradients over all processes.
    ///
    /// A trainable without a gradient counts as zeros where another process has one.
    ///
    /// - Parameters:
    ///   - sums: What this process's forward passes came to; afterwards those of the whole step.
    ///   - trainables: They get the gradient of the whole step.
    ///   - wishes: This process's.
    /// - Returns: Whether any process wishes to stop, and whether rank 0 wishes to save.
    /// - Throws: `ProcessGroupError` when a process is lost.
    func combine(_ sums: inout StepSums, _ trainables: [Trainable], _ wishes: Wishes) throws -> Wishes {
        let own: [Double] = [
            sums.loss, Double(sums.tokens), Double(sums.computedTokens), wishes.stop ? 1 : 0,
            wishes.save && isWriter ? 1 : 0,
        ]
        let all = try group.sum(own + sums.measures + trainables.map { $0.tensor.grad == nil ? 0 : 1 })
        // Counts of tokens are far below the whole numbers that a Double holds.
        (sums.loss, sums.tokens, sums.computedTokens) = (all[0], Int(all[1]), Int(all[2]))
        sums.measures = Array(all[own.count...].prefix(sums.measures.count))
        let present = zip(trainables, all.dropFirst(own.count + sums.measures.count)).filter { $0.1 > 0 }.map(
            \.0.tensor)
        for tensor in present where tensor.grad == nil { try tensor.setGrad(tensor.detached().zerosLike()) }
        try group.sum(present.compactMap(\.grad))
        return Wishes(stop: all[3] > 0, save: all[4] > 0)
    }

    // MARK: Evaluation

    /// Whether this process computes a forward pass of an evaluation.
    func takes(pass index: Int) -> Bool { index % group.size == group.rank }

    /// Puts the rows together that the processes have measured.
    ///
    /// - Parameters:
    ///   - rows: By place; nil where another process has measured.
    ///   - data: What was measured.
    /// - Throws: `ProcessGroupError` when a process is lost.
    func combine(_ rows: [Evaluation.Row?], of data: Dataset) throws -> [Evaluation.Row] {
        let losses = try group.sum(rows.map { $0?.loss ?? 0 })
        let tokens = try group.sum(rows.map { Int64($0?.tokens ?? 0) })
        // Every row has as many measures; a process that took no row learns from the others how many.
        let width = Int(
            try group.gather([UInt8(clamping: rows.lazy.compactMap { $0?.measures.count }.first ?? 0)])
                .compactMap(\.first).max() ?? 0)
        let none = [Double](repeating: 0, count: width)
        let measures = width == 0 ? [] : try group.sum(rows.flatMap { $0?.measures ?? none })
        return zip(losses, tokens).enumerated().map { index, row in
            Evaluation.Row(
                loss: row.0, tokens: Int(row.1), line: data[index].line,
                measures: Array(measures[(width * index)...].prefix(width)))
        }
    }
}

extension DistributedRun {
    /// The error that ends a run whose group broke: what happened, and how the run goes on.
    ///
    /// - Parameters:
    ///   - error: What broke the group.
    ///   - step: The steps taken.
    ///   - saved: The step of the newest checkpoint, if there is one.
    ///   - layout: The run folder.
    func ended(by error: ProcessGroupError, step: Int, saved: Int?, in layout: RunLayout) -> ProcessGroupError {
        let begin = "after step \(step): \(error)"
        let goOn = "to go on, with any number of processes: graft train --resume --output \(layout.path)"
        if isWriter, let saved, saved > 0 {
            return ProcessGroupError("\(begin); the checkpoint is \(layout.checkpoint(step: saved)); \(goOn)")
        }
        if error.ranks.contains(0) {
            let last = saved.map { $0 > 0 ? "that of step \($0)" : "none" } ?? "none"
            return ProcessGroupError(
                "\(begin); rank 0 writes the checkpoints, the last one is \(last), in \(layout.checkpointsFolder); \(goOn)"
            )
        }
        return ProcessGroupError("\(begin); rank 0 keeps the checkpoints in \(layout.checkpointsFolder); \(goOn)")
    }
}
