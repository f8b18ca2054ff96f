import Backbones
import Formats
import PEFT
import Torch

/// Trains an adapter by a recipe and keeps the run folder.
///
/// A run that is killed, or stopped by Ctrl-C, goes on from its newest whole checkpoint and then computes, on the CPU
/// with as many threads, bit for bit what it would have computed without the break.
public final class Trainer {
    private let recipe: Recipe
    private let model: LanguageModel
    private let adapter: Adapter
    private let data: Dataset
    private let evalData: Dataset?
    private let folder: RunFolder
    private let report: RunReport
    private let optimiser: AdamW
    private let schedule: Schedule
    private let gradientStep: GradientStep
    private let totalSteps: Int
    private var order: DataOrder
    private var state: TrainingCheckpoint
    /// Whether this process has seen that every trainable gets a gradient.
    private var hasCheckedGradients = false
    private var lastLoss: Double?
    /// The last step whose evaluation is in the report.
    private var evaluatedStep: Int?
    private var savedStep: Int?
    private var savedTime = ContinuousClock.now
    /// The best evaluation so far.
    private var best: BestAdapter?

    /// Trains from the first step in a new run folder.
    ///
    /// - Parameters:
    ///   - recipe: What to train on what, and how.
    ///   - output: The run folder, which is new or empty.
    ///   - showsProgress: Whether progress is written to standard error.
    /// - Returns: What the run has come to; see ``TrainingResult/isInterrupted``.
    /// - Throws: What is wrong with the recipe, the model, the data or the folder; ``TrainingError`` when the run cannot
    ///   go on.
    @discardableResult
    public static func run(
        _ recipe: Recipe, output: String, showsProgress: Bool = true
    ) throws -> TrainingResult {
        try recipe.validate()
        let folder = try RunFolder.create(output)
        defer { folder.close() }
        return try Trainer(TrainingSetup(recipe), in: folder, resumes: false, showsProgress: showsProgress).run()
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
        let folder = try RunFolder.resume(output)
        defer { folder.close() }
        let begun = try Recipe(path: folder.layout.recipe)
        let setup = try TrainingSetup(recipe ?? begun)
        try setup.recipe.requireSame(as: begun)
        return try Trainer(setup, in: folder, resumes: true, showsProgress: showsProgress).run()
    }

    init(_ setup: TrainingSetup, in folder: RunFolder, resumes: Bool, showsProgress: Bool) throws {
        recipe = setup.recipe
        model = setup.model
        adapter = setup.adapter
        data = setup.data
        evalData = setup.evalData
        self.folder = folder
        order = setup.order
        gradientStep = GradientStep(model, data, layout: recipe.layout, seed: Seed(UInt64(recipe.seed)))
        totalSteps = try setup.totalSteps()
        schedule = try recipe.makeSchedule(totalSteps: totalSteps)
        var settings = AdamW.Settings()
        settings.beta1 = recipe.adamBeta1
        settings.beta2 = recipe.adamBeta2
        settings.epsilon = recipe.adamEpsilon
        settings.weightDecay = recipe.weightDecay
        optimiser = try AdamW(adapter.trainables, settings: settings)
        state = TrainingCheckpoint(recipe: recipe.fixedDigest, data: data.digest)
        var notes = data.notes + (evalData?.notes ?? [])
        if resumes { notes += try Self.restore(&state, from: folder, adapter, optimiser) }
        guard state.step <= totalSteps else {
            throw TrainingError(
                "the run is at step \(state.step), beyond the \(totalSteps) steps that are asked for; ask for more steps"
            )
        }
        try AtomicFile.write(recipe.yaml(), to: folder.layout.recipe)
        try RunData(setup).write(to: folder.layout.data)
        if resumes {
            best = try evalData.flatMap { try BestAdapter(in: folder.layout, data: $0.digest) }
            try folder.removeCheckpoints(after: state.step)
            if PathKind(folder.layout.metrics) == .file {
                let earlier = try MetricsLog.read(path: folder.layout.metrics).filter { [state] in $0.step <= state.step
                }
                evaluatedStep = earlier.last { $0.evalLoss != nil }?.step
                lastLoss = earlier.last { $0.loss != nil }?.loss
            }
            savedStep = state.step
        }
        report = try RunReport(
            in: folder.layout, title: "\(recipe.method) on \(model.name)", subtitle: data.path, totalSteps: totalSteps,
            resumedStep: resumes ? state.step : nil, showsProgress: showsProgress)
        notes.forEach(report.note)
        if state.step == 0, let first = order.rows(step: 0).first {
            let row = try MarkedRow(data[first], of: data, tokenizer: model.tokenizer)
            report.show(row, as: "the first row of step 1")
        }
    }

    /// Goes to the newest whole checkpoint; without any the run begins anew.
    ///
    /// - Returns: What there is to say about it.
    private static func restore(
        _ state: inout TrainingCheckpoint, from folder: RunFolder, _ adapter: Adapter, _ optimiser: AdamW
    ) throws -> [String] {
        var notes: [String] = []
        for place in try folder.layout.checkpoints().reversed() {
            let found: TrainingCheckpoint
            do {
                found = try TrainingCheckpoint(folder: place.path)
            } catch {
                notes.append("\(place.path) is passed over: \(error)")
                continue
            }
            guard found.data == state.data else {
                throw TrainingError(
                    "the data have changed since \(place.path) was written; resume with the same rows, or begin another run"
                )
            }
            guard found.recipe == state.recipe else {
                throw TrainingError(
                    "\(place.path) was written under another recipe than \(folder.layout.recipe) says; undo the change, or "
                        + "begin another run")
            }
            try found.restore(from: place.path, adapter: adapter, optimiser: optimiser)
            state = found
            return notes + ["resumed after step \(found.step)"]
        }
        return notes + ["there is no whole checkpoint; the run begins anew"]
    }

    // MARK: The loop

    func run() throws -> TrainingResult { try Memory.keepingBlocks(runToTheEnd) }

    private func runToTheEnd() throws -> TrainingResult {
        let interruption = Interruption()
        let before = state.step == 0 ? try evaluate() : nil
        while state.step < totalSteps, !interruption.isRequested {
            try takeStep()
            if state.step < totalSteps {
                if isDue(recipe.evalSteps) { try evaluate() }
                if isSaveDue { try save() }
            }
        }
        if state.step > 0 { try save() }
        guard state.step == totalSteps else {
            report.note(
                "stopped after step \(state.step) of \(totalSteps); to go on: graft train --resume --output "
                    + folder.layout.path)
            return try finish(TrainingResult(before: before))
        }
        let after = try evaluate()
        try writeAdapter()
        return try finish(TrainingResult(adapter: folder.layout.adapter, before: before, after: after))
    }

    /// One optimiser step: gradients of all its rows, clipping, update.
    private func takeStep() throws {
        let start = ContinuousClock.now
        let plan = order.plan(step: state.step, layout: recipe.layout) { data.length(at: $0) }
        let sums = try addGradients(plan)
        if !hasCheckedGradients { try requireGradients() }
        try adapter.prepareStep()
        let gradients = adapter.trainables.compactMap(\.tensor.grad)
        let norm = try clipNorm(of: gradients, to: recipe.maxGradNorm)
        guard norm.isFinite else { throw try nonFiniteGradient(norm) }
        let learningRate = recipe.learningRate * schedule.factor(at: state.step)
        try optimiser.step(learningRate: learningRate)
        for trainable in adapter.trainables { try trainable.tensor.setGrad(nil) }

        state.countStep(
            tokens: sums.tokens, lossSum: sums.loss, supervised: sums.supervised,
            seconds: start.duration(to: .now) / .seconds(1))
        if isDue(recipe.loggingSteps) || state.step == totalSteps { try record(learningRate, norm) }
    }

    private func addGradients(_ plan: StepPlan) throws -> StepSums {
        do {
            return try gradientStep.addGradients(of: plan)
        } catch let error as NonFiniteLoss {
            throw TrainingError(
                "step \(state.step + 1): the loss is \(error.value) for the rows at lines "
                    + "\(error.pass.rows.map { "\(data[$0].line)" }.joined(separator: ", ")) of \(data.path); lower "
                    + "learning_rate" + (model.backbone.dtype == .float32 ? "" : ", or use dtype float32"))
        }
    }

    /// A trainable that nothing depends on would be saved as it began, without a word.
    private func requireGradients() throws {
        let missing = adapter.trainables.filter { $0.tensor.grad == nil }.map(\.name)
        if let first = missing.first {
            throw TrainingError(
                "step \(state.step + 1): \(missing.count) of \(adapter.trainables.count) trainable tensors get no gradient, "
                    + "the first is \(first); the method does not use them in this model")
        }
        hasCheckedGradients = true
    }

    private func nonFiniteGradient(_ norm: Double) throws -> TrainingError {
        let culprit = try adapter.trainables.first { try $0.tensor.grad?.isAllFinite() == false }?.name
        return TrainingError(
            "step \(state.step + 1): the norm of the gradients is \(norm)"
                + (culprit.map { "; the gradient of \($0) is not finite" } ?? "") + "; lower learning_rate"
                + (model.backbone.dtype == .float32 ? "" : ", or use dtype float32"))
    }

    private var isSaveDue: Bool {
        recipe.saveSteps == nil ? savedTime.duration(to: .now) >= .seconds(600) : isDue(recipe.saveSteps)
    }

    private func isDue(_ interval: Int?) -> Bool { interval.map { state.step % $0 == 0 } ?? false }

    // MARK: Reports

    private func record(_ learningRate: Double, _ norm: Double) throws {
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
        try report.record(metrics)
        lastLoss = loss
        state.reported()
    }

    /// Measures the held-out rows, where there are any.
    @discardableResult
    private func evaluate() throws -> Evaluation? {
        guard let evalData else { return nil }
        let evaluation = try Evaluator(model, layout: recipe.evalLayout).evaluate(evalData)
        guard evaluatedStep != state.step else { return evaluation }
        var metrics = Metrics(step: state.step)
        metrics.epoch = order.epochs(steps: state.step)
        metrics.evalLoss = evaluation.loss
        metrics.others["eval_perplexity"] = evaluation.perplexity
        try report.record(metrics)
        evaluatedStep = state.step
        if state.step > 0 { try keepIfBest(evaluation.loss, on: evalData) }
        return evaluation
    }

    /// Writes the adapter to `best/` when no evaluation of the run had a lower loss.
    private func keepIfBest(_ loss: Double, on evalData: Dataset) throws {
        guard loss.isFinite, best.map({ loss < $0.loss }) ?? true else { return }
        let new = BestAdapter(step: state.step, loss: loss, data: evalData.digest)
        try folder.writeBest { try new.write(to: $0, adapter: adapter, model: model.name) }
        best = new
    }

    /// Writes the adapter that the run ends with.
    private func writeAdapter() throws {
        guard recipe.loadBestModelAtEnd, let best, best.step != state.step else {
            return try folder.writeAdapter { try adapter.save(to: $0, baseModel: model.name) }
        }
        try folder.writeAdapter { try BestAdapter.copyAdapter(of: folder.layout, to: $0) }
        report.note("the adapter is that of step \(best.step), whose held-out loss was \(Units.loss(best.loss))")
    }

    /// Writes a checkpoint, unless the newest is of this step.
    private func save() throws {
        guard savedStep != state.step else { return }
        try folder.writeCheckpoint(step: state.step, keep: recipe.saveTotalLimit, keeping: best?.step) {
            try state.write(to: $0, adapter: adapter, model: model.name, optimiser: optimiser)
        }
        savedStep = state.step
        savedTime = .now
    }

    /// Ends the report and completes the result.
    private func finish(_ outcome: TrainingResult) throws -> TrainingResult {
        try report.finish()
        var result = outcome
        result.output = folder.layout.path
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
