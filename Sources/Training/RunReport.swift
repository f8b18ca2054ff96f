import Formats
import Foundation

/// All that a run reports with, behind one call a step.
///
/// Each measurement goes to `metrics.jsonl`, the TensorBoard file and the progress line; `loss.svg` is drawn anew at each
/// evaluation, every half minute, and at the end.
public final class RunReport {
    private let layout: RunLayout
    private let log: MetricsLog
    private let events: EventFile
    private let progress: ProgressLine?
    private let isColoured: Bool
    private let total: Int
    private let now: () -> Double
    private var plot: LossPlot
    private var lastDrawn: Double

    /// Begins the report of a run, or goes on with that of an interrupted one.
    ///
    /// - Parameters:
    ///   - layout: The run folder, which the caller holds.
    ///   - title: The heading of the picture.
    ///   - subtitle: A second heading, such as the model, the method and the data.
    ///   - totalSteps: The optimiser steps of the whole run.
    ///   - resumedStep: The step after which a resumed run goes on; what was reported of later steps is dropped.
    ///   - showsProgress: Whether progress is written to standard error.
    /// - Throws: `FormatError` when a file cannot be made, or the log to go on with is damaged.
    public convenience init(
        in layout: RunLayout, title: String, subtitle: String = "", totalSteps: Int, resumedStep: Int? = nil,
        showsProgress: Bool = true
    ) throws {
        let output = showsProgress ? ProgressLine.Output.standardError() : nil
        try self.init(
            in: layout, title: title, subtitle: subtitle, totalSteps: totalSteps, resumedStep: resumedStep,
            output: output, now: { Date().timeIntervalSince1970 })
    }

    /// The same with a progress output (`nil`: none) and a wall clock of one's own.
    package init(
        in layout: RunLayout, title: String, subtitle: String = "", totalSteps: Int, resumedStep: Int?,
        output: ProgressLine.Output?, now: @escaping () -> Double
    ) throws {
        self.layout = layout
        self.now = now
        total = totalSteps
        log = try MetricsLog(path: layout.metrics, resumedStep: resumedStep)
        events = try EventFile(in: layout.path, resumedStep: resumedStep, now: now)
        let earlier = resumedStep == nil ? [] : try MetricsLog.read(path: layout.metrics)
        plot = LossPlot(title: title, subtitle: subtitle, metrics: earlier)
        progress = output.map { ProgressLine(total: totalSteps, startingAt: resumedStep ?? 0, output: $0) }
        isColoured = output?.isColoured == true
        lastDrawn = now()
    }

    /// Records what was measured at a step, in training or in an evaluation.
    ///
    /// - Parameter metrics: The measures; the time is filled in where it is missing.
    /// - Throws: `FormatError` when a file cannot be written.
    public func record(_ metrics: Metrics) throws {
        var metrics = metrics
        metrics.time = metrics.time ?? now()
        try log.append(metrics)
        try events.append(metrics.scalars, step: metrics.step)
        if let loss = metrics.loss {
            plot.training.append(LossPlot.Point(step: metrics.step, loss: loss))
            progress?.update(ProgressLine.State(metrics))
        }
        if let loss = metrics.evalLoss {
            plot.evaluation.append(LossPlot.Point(step: metrics.step, loss: loss))
            progress?.message(evaluationLine(metrics, loss: loss))
        }
        if metrics.evalLoss != nil || now() - lastDrawn >= 30 { try draw() }
    }

    /// Shows a line, such as that a checkpoint was written, without disturbing the progress line.
    public func note(_ line: String) { progress?.message(line) }

    /// Shows a row with the tokens that are learnt marked: coloured on a terminal, else in `[[` and `]]`.
    public func show(_ row: MarkedRow, as title: String) {
        progress?.message(row.heading(title, isColoured: isColoured) + "\n" + row.text(isColoured: isColoured))
    }

    /// Draws the final picture and ends the progress line.
    ///
    /// - Throws: `FormatError` when the picture cannot be written.
    public func finish() throws {
        progress?.finish()
        try draw()
    }

    private func draw() throws {
        lastDrawn = now()
        try AtomicFile.write(plot.svg(), to: layout.lossPlot)
    }

    private func evaluationLine(_ metrics: Metrics, loss: Double) -> String {
        let others = metrics.others.sorted { $0.key < $1.key }.map { name, value in
            "  \(name.replacingOccurrences(of: "_", with: " ")) \(Units.loss(value))"
        }
        return "step \(metrics.step)/\(total)  eval loss \(Units.loss(loss))" + others.joined()
    }
}

extension Metrics {
    /// The curves for TensorBoard: `train/loss`, `eval/loss`, `train/learning_rate` and so on.
    package var scalars: [(key: String, value: Double)] {
        let known: [(String, Double?)] = [
            ("train/loss", loss), ("eval/loss", evalLoss), ("train/learning_rate", learningRate),
            ("train/grad_norm", gradNorm), ("train/tokens_per_second", tokensPerSecond),
            ("train/peak_memory_bytes", peakMemoryBytes.map(Double.init)),
            ("train/epoch", loss == nil ? nil : epoch),
        ]
        // `eval_accuracy` belongs beside `eval/loss`.
        let more = others.sorted { $0.key < $1.key }.map { name, value in
            (key: name.hasPrefix("eval_") ? "eval/" + name.dropFirst(5) : "train/" + name, value: value)
        }
        return known.compactMap { name, value in value.map { (key: name, value: $0) } } + more
    }
}

extension ProgressLine.State {
    /// The measures that the progress line shows.
    fileprivate init(_ metrics: Metrics) {
        self.init(
            step: metrics.step, epoch: metrics.epoch, loss: metrics.loss, learningRate: metrics.learningRate,
            tokensPerSecond: metrics.tokensPerSecond, memoryBytes: metrics.peakMemoryBytes)
    }
}
