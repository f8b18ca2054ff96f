import Backbones
import Formats
import PEFT
import Torch

/// Trains an adapter by a recipe and keeps the run folder.
///
/// A run that is killed, or stopped by Ctrl-C, goes on from its newest whole checkpoint and then computes, on the CPU
/// with as many threads, bit for bit what it would have computed without the break.
///
/// Under torchrun, or another launcher that sets its variables, the processes share each step's rows and learn what one
/// process would; see `LaunchEnvironment`.
public final class Trainer {
    private let setup: TrainingSetup
    private let recipe: Recipe
    private let model: LanguageModel
    private let adapter: Adapter
    private let data: Dataset
    private let evalData: Dataset?
    /// The run folder; nil in the processes that do not write.
    private let folder: RunFolder?
    private let layout: RunLayout
    private let report: RunReport?
    /// The other processes of the run; nil where there are none.
    private let peers: DistributedRun?
    /// What the processes agreed on in the last step.
    private var agreed = DistributedRun.Wishes()
    private let optimiser: AdamW
    private let schedule: Schedule
    private let lossFunction: LossFunction
    private let gradientStep: GradientStep
    private let totalSteps: Int
    private var order: DataOrder
    private var state: TrainingCheckpoint
    private var gradientCheck = GradientCheck()
    private var lastLoss: Double?
    /// The last step whose evaluation is in the report.
    private var evaluatedStep: Int?
    private var savedStep: Int?
    private var savedTime = ContinuousClock.now
    /// The best evaluation so far.
    private var best: BestAdapter?
    /// What one of the steps takes, where that was asked for.
    private var profile: StepProfile?

    /// Trains from the first step in a new run folder.
    ///
    /// - Parameters:
    ///   - recipe: What to train on what, and how.
    ///   - output: The run folder, which is new or empty.
    ///   - showsProgress: Whether progress is written to standard error.
    ///   - profile: Gets what one of the first steps takes, which also goes into the run folder.
    /// - Returns: What the run has come to; see ``TrainingResult/isInterrupted``.
    /// - Throws: What is wrong with the recipe, the model, the data or the folder; ``TrainingFailure`` when a loss or a
    ///   gradient is no finite number; ``TrainingError`` when the run cannot go on for another reason.
    @discardableResult
    public static func run(
        _ recipe: Recipe, output: String, showsProgress: Bool = true, profile: StepProfile? = nil
    ) throws -> TrainingResult {
        try recipe.validate()
        return try DistributedRun.run(resumes: false) { peers in
            if let peers, try peers.startsAgain(in: RunLayout(output)) {
                return try resume(output, recipe, peers, showsProgress: showsProgress)
            }
            return try run(in: output, peers, showsProgress: showsProgress, profile) { try TrainingSetup(recipe) }
        }
    }

    /// Trains in a new run folder what `setup` makes, beside the other processes of the run.
    static func run(
        in output: String, _ peers: DistributedRun?, showsProgress: Bool, _ profile: StepProfile? = nil,
        _ setup: () throws -> TrainingSetup
    ) throws -> TrainingResult {
        let folder = peers?.isWriter == false ? nil : try RunFolder.create(output)
        defer { folder?.close() }
        let trainer = try Trainer(
            setup(), in: folder, RunLayout(output), peers, resumes: false, showsProgress: showsProgress)
        trainer.profile = profile
        return try trainer.run()
    }

    /// Goes on with the run of a folder.
    ///
    /// - Parameters:
    ///   - output: The run folder.
    ///   - recipe: A recipe that may differ from the run's in what does not change what it learns; nil: the run's own.
    ///   - showsProgress: Whether progress is written to standard error.
    /// - Returns: What the run has come to.
    /// - Throws: ``TrainingError`` naming the first setting that differs, or what changed in the data; else as
    ///   ``run(_:output:showsProgress:)``.
    @discardableResult
    public static func resume(
        _ output: String, recipe: Recipe? = nil, showsProgress: Bool = true
    ) throws -> TrainingResult {
        try DistributedRun.run(resumes: true) { try resume(output, recipe, $0, showsProgress: showsProgress) }
    }

    private static func resume(
        _ output: String, _ recipe: Recipe?, _ peers: DistributedRun?, showsProgress: Bool
    ) throws -> TrainingResult {
        let folder = peers?.isWriter == false ? nil : try RunFolder.resume(output)
        defer { folder?.close() }
        let layout = RunLayout(output)
        func recipes() throws -> (begun: Recipe, wanted: Recipe) {
            let begun = try Recipe(path: layout.recipe)
            return (begun, recipe ?? begun)
        }
        let (begun, wanted) = try peers?.share(recipes) ?? recipes()
        let setup = try TrainingSetup(wanted)
        try setup.recipe.requireSame(as: begun)
        let trainer = try Trainer(setup, in: folder, layout, peers, resumes: true, showsProgress: showsProgress)
        setup.recipe.versionNote(since: begun).map { trainer.report?.note($0) }
        return try trainer.run()
    }

    private init(
        _ setup: TrainingSetup, in folder: RunFolder?, _ layout: RunLayout, _ peers: DistributedRun?, resumes: Bool,
        showsProgress: Bool
    ) throws {
        try peers?.requireSame(setup)
        self.setup = setup
        recipe = setup.recipe
        model = setup.model
        adapter = setup.adapter
        data = setup.data
        evalData = setup.evalData
        self.folder = folder
        self.layout = layout
        self.peers = peers
        order = setup.order
        lossFunction = try recipe.lossFunction()
        gradientStep = GradientStep(
            model, data, layout: recipe.layout, seed: Seed(UInt64(recipe.seed)), lossFunction: lossFunction)
        totalSteps = try setup.totalSteps()
        schedule = try recipe.makeSchedule(totalSteps: totalSteps)
        var settings = AdamW.Settings()
        settings.beta1 = recipe.adamBeta1
        settings.beta2 = recipe.adamBeta2
        settings.epsilon = recipe.adamEpsilon
        settings.weightDecay = recipe.weightDecay
        optimiser = try AdamW(adapter.trainables, settings: settings)
        state = TrainingCheckpoint(recipe: recipe.fixedDigest, data: data.digest)
        var notes = try data.trainingNotes + (evalData?.notes ?? []) + [adapter.zeroWeightNote()].compactMap { $0 }
        if resumes, let folder { notes += try state.restoreNewest(from: folder, adapter, optimiser) }
        if let peers { state.follow(step: try peers.share(step: state.step, adapter, optimiser)) }
        guard state.step <= totalSteps else {
            throw TrainingError(
                "the run is at step \(state.step), beyond the \(totalSteps) steps that are asked for; ask for more steps"
            )
        }
        if resumes { savedStep = state.step }
        guard let folder else {
            report = nil
            return
        }
        try AtomicFile.write(recipe.yaml(), to: layout.recipe)
        try RunData(setup).write(to: layout.data)
        if resumes {
            layout.removeFailure()
            best = try evalData.flatMap { try BestAdapter(in: layout, data: $0.digest) }
            try folder.removeCheckpoints(after: state.step)
            if PathKind(layout.metrics) == .file {
                let earlier = try MetricsLog.read(path: layout.metrics).filter { [state] in $0.step <= state.step }
                evaluatedStep = earlier.last { $0.evalLoss != nil }?.step
                lastLoss = earlier.last { $0.loss != nil }?.loss
            }
        }
        let report = try RunReport(
            in: layout, title: "\(recipe.method) on \(model.name)", subtitle: data.path, totalSteps: totalSteps,
            resumedStep: resumes ? state.step : nil, showsProgress: showsProgress)
        notes.forEach(report.note)
        self.report = report
        if state.step == 0, let first = order.rows(step: 0).first {
            let row = try MarkedRow(data[first], of: data, tokenizer: model.tokenizer)
            report.show(row, as: "the first row of step 1")
        }
    }

    // MARK: The loop

    private func run() throws -> TrainingResult {
        do {
            return try Memory.keepingBlocks { try setup.checkpointing(runToTheEnd) }
        } catch let error as ProcessGroupError {
            // A step is taken by all or none, so the state is that of the last whole step.
            if folder != nil, state.step > 0, savedStep != state.step {
                try writeCheckpoint(keep: recipe.saveTotalLimit)
            }
            throw peers?.ended(by: error, step: state.step, saved: savedStep, in: layout) ?? error
        }
    }

    private func runToTheEnd() throws -> TrainingResult {
        let interruption = Interruption(endsAtSecond: peers == nil)
        try adapter.trainingBegins(totalSteps: totalSteps, probe: gradientStep.probe(setup.probeRows))
        let before = state.step == 0 ? try evaluate() : nil
        while state.step < totalSteps, !(peers == nil ? interruption.isRequested : agreed.stop) {
            try takeProfiledStep(interruption)
            if state.step < totalSteps {
                if isDue(recipe.evalSteps) { try evaluate() }
                if isSaveDue { try save() }
            }
        }
        if state.step > 0 { try save() }
        guard state.step == totalSteps else {
            report?.note(
                "stopped after step \(state.step) of \(totalSteps); to go on: graft train --resume --output "
                    + layout.path)
            return try finish(TrainingResult(before: before))
        }
        let after = try evaluate()
        try peers?.requireSameAdapter(adapter, step: state.step)
        try writeAdapter()
        return try finish(TrainingResult(adapter: layout.adapter, before: before, after: after))
    }

    /// One optimiser step, measured where its turn has come.
    private func takeProfiledStep(_ interruption: Interruption) throws {
        guard let profile, state.step == StepProfile.step(of: totalSteps) else { return try takeStep(interruption) }
        let before = state.tokens
        try profile.measure { try takeStep(interruption) }
        try profile.measureProducts(of: model.backbone, tokens: state.tokens - before)
        if folder != nil { try profile.write(to: layout) }
    }

    /// One optimiser step: gradients of all its rows, clipping, update.
    private func takeStep(_ interruption: Interruption) throws {
        let start = ContinuousClock.now
        try adapter.stepBegins(state.step)
        let plan = order.plan(step: state.step, layout: recipe.layout) { data.length(at: $0) }
        var sums: StepSums
        do {
            sums = try gradientStep.addGradients(of: plan, share: peers?.share(of: plan))
        } catch let loss as NonFiniteLoss {
            throw try stop(nonFiniteGuard.explain(loss, in: plan))
        }
        if let peers {
            let wishes = DistributedRun.Wishes(stop: interruption.isRequested, save: isSaveDueByClock)
            agreed = try peers.combine(&sums, adapter.trainables, wishes)
        }
        let penalty = try addPenalty()
        let learningRate = recipe.learningRate * schedule.factor(at: state.step)
        let warning = try gradientCheck.check(adapter, step: state.step + 1, learningRate: learningRate)
        warning.map { report?.note($0) }
        try adapter.gradientsAreReady(state.step)
        let gradients = adapter.trainables.compactMap(\.tensor.grad)
        let norm = try clipNorm(of: gradients, to: recipe.maxGradNorm)
        guard norm.isFinite else { throw try stop(nonFiniteGuard.explain(gradientNorm: norm, in: plan)) }
        try optimiser.step(learningRate: learningRate)
        try adapter.stepEnded(state.step)
        for trainable in adapter.trainables { try trainable.tensor.setGrad(nil) }

        state.countStep(
            tokens: sums.tokens, lossSum: sums.loss, supervised: sums.supervised,
            seconds: start.duration(to: .now) / .seconds(1))
        if isDue(recipe.loggingSteps) || state.step == totalSteps { try record(sums, learningRate, norm, penalty) }
    }

    /// Adds the gradient of what the method adds to the loss; every process of a run computes the same.
    private func addPenalty() throws -> Double? {
        guard let penalty = try adapter.penalty() else { return nil }
        try penalty.backward()
        return try penalty.item()
    }

    private var nonFiniteGuard: NonFiniteGuard {
        NonFiniteGuard(model: model, adapter: adapter, data: data, gradientStep: gradientStep)
    }

    /// Keeps what shows a failure again: the state before the step, in which nothing of it is, and `failure.json`.
    private func stop(_ failure: TrainingFailure) throws -> TrainingFailure {
        // Rank 0 keeps the state when it hears of another's failure.
        guard folder != nil else { return failure }
        if state.step > 0, savedStep != state.step, try adapter.trainables.allSatisfy({ try $0.tensor.isAllFinite() }) {
            try writeCheckpoint(keep: nil)
        }
        try failure.write(to: layout, recipe, rows: failure.rows.map { data[$0] })
        try report?.finish()
        return failure
    }

    private var isSaveDue: Bool {
        recipe.saveSteps == nil ? (peers == nil ? isSaveDueByClock : agreed.save) : isDue(recipe.saveSteps)
    }

    private var isSaveDueByClock: Bool { savedTime.duration(to: .now) >= .seconds(600) }

    private func isDue(_ interval: Int?) -> Bool { interval.map { state.step % $0 == 0 } ?? false }

    // MARK: Reports

    private func record(_ sums: StepSums, _ learningRate: Double, _ norm: Double, _ penalty: Double?) throws {
        var metrics = Metrics(step: state.step)
        let loss = state.unreportedLoss / Double(max(state.unreportedTargets, 1))
        metrics.epoch = order.epochs(steps: state.step)
        metrics.loss = loss
        metrics.learningRate = learningRate
        metrics.gradNorm = norm
        metrics.tokens = state.tokens
        metrics.tokensPerSecond =
            state.unreportedSeconds > 0
            ? Double(state.unreportedTokens) / state.unreportedSeconds : nil
        metrics.peakMemoryBytes = try Memory.peak(on: model.backbone.device)
        metrics.others["penalty"] = penalty
        for (name, value) in zip(lossFunction.measures, sums.measures) { metrics.others[name] = value }
        if sums.paddingShare > 0 { metrics.others["padding_share"] = sums.paddingShare }
        try report?.record(metrics)
        lastLoss = loss
        state.reported()
    }

    /// Measures the held-out rows, where there are any.
    @discardableResult
    private func evaluate() throws -> Evaluation? {
        guard let evalData else { return nil }
        let evaluator = Evaluator(model, layout: recipe.evalLayout, lossFunction: lossFunction)
        let evaluation = try evaluator.evaluate(evalData, with: peers)
        guard evaluatedStep != state.step else { return evaluation }
        var metrics = Metrics(step: state.step)
        metrics.epoch = order.epochs(steps: state.step)
        metrics.evalLoss = evaluation.loss
        if evaluation.hasPerplexity { metrics.others["eval_perplexity"] = evaluation.perplexity }
        for (name, value) in evaluation.measures { metrics.others["eval_" + name] = value }
        try report?.record(metrics)
        evaluatedStep = state.step
        if state.step > 0 { try keepIfBest(evaluation.loss, on: evalData) }
        return evaluation
    }

    /// Writes the adapter to `best/` when no evaluation of the run had a lower loss.
    private func keepIfBest(_ loss: Double, on evalData: Dataset) throws {
        guard loss.isFinite, best.map({ loss < $0.loss }) ?? true else { return }
        let new = BestAdapter(step: state.step, loss: loss, data: evalData.digest)
        try folder?.writeBest { try new.write(to: $0, adapter: adapter, model: model.name) }
        best = new
    }

    /// Writes the adapter that the run ends with.
    private func writeAdapter() throws {
        guard let folder else { return }
        guard recipe.loadBestModelAtEnd, let best, best.step != state.step else {
            return try folder.writeAdapter { try adapter.save(to: $0, baseModel: model.name) }
        }
        try folder.writeAdapter { try BestAdapter.copyAdapter(of: layout, to: $0) }
        report?.note("the adapter is that of step \(best.step), whose held-out loss was \(Units.loss(best.loss))")
    }

    /// Writes a checkpoint, unless the newest is of this step.
    private func save() throws {
        guard savedStep != state.step else { return }
        try peers?.requireSameAdapter(adapter, step: state.step)
        try writeCheckpoint(keep: recipe.saveTotalLimit)
    }

    private func writeCheckpoint(keep: Int?) throws {
        try folder?.writeCheckpoint(step: state.step, keep: keep, keeping: best?.step) {
            try state.write(to: $0, adapter: adapter, model: model.name, optimiser: optimiser)
        }
        savedStep = state.step
        savedTime = .now
    }

    /// Ends the report and completes the result.
    private func finish(_ outcome: TrainingResult) throws -> TrainingResult {
        // Nobody is done before rank 0 has written everything.
        try report?.finish()
        try peers?.group.barrier()
        var result = outcome
        result.output = layout.path
        result.steps = state.step
        result.totalSteps = totalSteps
        result.loss = lastLoss
        result.trainableParameters = adapter.parameterCount
        result.tokens = state.tokens
        result.seconds = state.seconds
        result.peakMemoryBytes = try Memory.peak(on: model.backbone.device)
        return result
    }
}
