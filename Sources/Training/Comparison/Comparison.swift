import Crypto
import Formats
import Foundation
import PEFT

/// Methods side by side on one task at equal effort: the same rows, steps and batch, a small search for each method's
/// learning rate on a part of the training rows, and several seeds with the best one.
///
/// Each trial is a line of `trials.jsonl` in the output folder; one that is there is not trained again, so that an
/// interrupted comparison goes on and a longer list of methods adds to it.
public struct Comparison {
    /// A method with its settings.
    public struct Arm: Sendable {
        /// A name of the registry.
        public let method: String
        /// Hyper-parameters that differ from the defaults.
        public let settings: KeyedList<JSON>

        /// Makes an arm.
        public init(method: String, settings: KeyedList<JSON> = [:]) {
            self.method = method
            self.settings = settings
        }

        /// The name, with the settings behind it where there are some.
        public var name: String {
            let changes = settings.map { "\($0.key) \($0.value.compact)" }.joined(separator: ", ")
            return changes.isEmpty ? method : "\(method) (\(changes))"
        }
    }

    /// Trains by a recipe in a folder that is not there yet, and returns what `graft train --json` prints.
    public typealias Runner = (_ recipe: Recipe, _ folder: String) throws -> JSON

    /// What all trials share; its method, settings, learning rate and seed are not used.
    public var recipe: Recipe
    /// What is compared.
    public var arms: [Arm]
    /// The learning rates to begin with, ascending.
    public var learningRates = [3e-4, 2e-3, 1e-2]
    /// The seeds of the results.
    public var seeds = [1, 2, 3]
    /// The share of the training rows on which learning rates are judged.
    public var searchShare = 0.2
    /// What is compared: a key of the evaluation, such as `loss` or `accuracy`.
    public var metric = "loss"
    /// The folder of the comparison.
    public var output: String
    /// How often the search goes on beyond its best value at an end of the list.
    public var extensions = 2

    /// Prepares a comparison.
    public init(_ recipe: Recipe, arms: [Arm], output: String) {
        self.recipe = recipe
        self.arms = arms
        self.output = output
    }

    /// Whether a smaller value of the metric is better.
    public var lessIsBetter: Bool { metric.hasSuffix("loss") || metric == "perplexity" }

    /// Refuses settings that make no comparison.
    ///
    /// - Throws: ``TrainingError`` or `PEFTError` naming what is wrong.
    public func validate() throws {
        guard !arms.isEmpty else { throw TrainingError("a comparison needs methods; name at least one") }
        for arm in arms {
            _ = try AdapterConfiguration(method: arm.method, settings: arm.settings)
            guard arms.count(where: { $0.name == arm.name }) == 1 else {
                throw TrainingError("the method \(arm.name) is named twice; name it once, or give it other settings")
            }
        }
        guard recipe.dataSources.count == 1 else {
            throw TrainingError("a comparison takes one file of training rows, found \(recipe.dataSources.count)")
        }
        guard recipe.evalData != nil else {
            throw TrainingError("a comparison needs held-out rows; give eval_data")
        }
        guard !learningRates.isEmpty, learningRates.allSatisfy({ $0 > 0 && $0.isFinite }), !seeds.isEmpty else {
            throw TrainingError("a comparison needs positive learning rates and at least one seed")
        }
        guard searchShare > 0, searchShare <= 0.5 else {
            throw TrainingError("the share of rows for the search is \(searchShare); expected a number in 0...0.5")
        }
    }

    /// Trains what is not trained yet.
    ///
    /// - Parameters:
    ///   - train: Trains one trial.
    ///   - note: Gets a line for each finished trial.
    /// - Returns: All trials of the comparison.
    /// - Throws: ``TrainingError`` when the comparison itself is wrong; `FormatError` when a file cannot be read or
    ///   written. A trial that fails is noted and not tried again with the same settings.
    public func run(_ train: Runner, note: (String) -> Void = { _ in }) throws -> [ComparisonTrial] {
        try validate()
        try makeFolder(output)
        let lock = try FolderLock(folder: output)
        defer { lock.release() }
        let search = try writeSearchRows()
        let log = try ComparisonLog(path: joined(output, "trials.jsonl"))
        var trials: [ComparisonTrial] = []
        func trial(_ arm: Arm, _ phase: ComparisonTrial.Phase, rate: Double, seed: Int) throws -> ComparisonTrial {
            let recipe = trialRecipe(arm, phase, rate: rate, seed: seed, search)
            var trial = ComparisonTrial(
                arm: arm.name, phase: phase, learningRate: rate, seed: seed, digest: try digest(of: recipe))
            if let known = log.trial(digest: trial.digest) {
                trials.append(known)
                return known
            }
            try finish(&trial, recipe, train)
            try log.append(trial)
            trials.append(trial)
            note(line(for: trial))
            return trial
        }
        for arm in arms {
            guard let rate = try bestRate({ try trial(arm, .search, rate: $0, seed: seeds[0]) }) else { continue }
            for seed in seeds { _ = try trial(arm, .final, rate: rate, seed: seed) }
        }
        return trials
    }

    /// The learning rate with the best value; nil where none can be trained with.
    private func bestRate(_ trial: (Double) throws -> ComparisonTrial) throws -> Double? {
        // Nothing is to be chosen from one.
        if learningRates.count == 1 { return learningRates[0] }
        var found: [(rate: Double, value: Double)] = []
        func measure(_ rate: Double) throws {
            let value = try trial(rate).value
            found.append((rate, value.map { lessIsBetter ? $0 : -$0 } ?? .infinity))
            found.sort { $0.rate < $1.rate }
        }
        for rate in learningRates.sorted() { try measure(rate) }
        let factor = 5.0
        for _ in 0..<extensions {
            guard let best = found.indices.min(by: { found[$0].value < found[$1].value }) else { break }
            guard found[best].value.isFinite, best == 0 || best == found.count - 1 else { break }
            try measure(best == 0 ? found[best].rate / factor : found[best].rate * factor)
        }
        return found.filter { $0.value.isFinite }.min { $0.value < $1.value }?.rate
    }

    // MARK: One trial

    private func trialRecipe(
        _ arm: Arm, _ phase: ComparisonTrial.Phase, rate: Double, seed: Int, _ search: (train: String, eval: String)
    ) -> Recipe {
        var recipe = recipe
        recipe.method = arm.method
        for (key, value) in arm.settings { recipe.settings[key] = value }
        recipe.learningRate = rate
        recipe.seed = seed
        if phase == .search {
            recipe.dataSources = [DataSource(search.train)]
            recipe.evalData = search.eval
        }
        return recipe
    }

    /// All that the result depends on: the recipe, the rows, and what is measured.
    private func digest(of recipe: Recipe) throws -> String {
        var text = metric + "\n"
        for field in Recipe.fields where !["data", "eval_data", "versions", "threads", "cache"].contains(field.name) {
            text += "\(field.name)=\(field.read(recipe).compact)\n"
        }
        for path in recipe.dataSources.map(\.path) + [recipe.evalData].compactMap({ $0 }) {
            text += try FileDigests.digest(ofContent: path) + "\n"
        }
        return hexadecimal(SHA256.hash(data: Array(text.utf8)))
    }

    private func finish(_ trial: inout ComparisonTrial, _ recipe: Recipe, _ train: Runner) throws {
        let folder = joined(output, "running")
        try? FileManager.default.removeItem(atPath: folder)
        defer { try? FileManager.default.removeItem(atPath: folder) }
        do {
            let result = try train(recipe, folder)
            guard let evaluation = result["eval_after"], let value = evaluation[metric]?.double else {
                let keys = result["eval_after"]?.object.map { $0.keys.joined(separator: ", ") } ?? "nothing"
                throw TrainingError("the evaluation has no \"\(metric)\"; it has \(keys)")
            }
            trial.value = value
            trial.parameters = result["trainable_parameters"]?.int ?? 0
            trial.peakBytes = result["peak_memory_bytes"]?.int ?? 0
            trial.secondsPerStep = (result["seconds"]?.double ?? 0) / Double(max(1, result["steps"]?.int ?? 1))
            let layout = RunLayout(folder)
            trial.adapterBytes = try Self.bytes(of: layout.adapter)
            trial.curve = try MetricsLog.read(path: layout.metrics).compactMap { line in
                line.loss.map { LossPlot.Point(step: line.step, loss: $0) }
            }
        } catch let error as ComparisonInterrupted {
            throw error
        } catch {
            trial.failure = "\(error)"
        }
    }

    private func line(for trial: ComparisonTrial) -> String {
        let what = "\(trial.arm), \(trial.phase.rawValue), learning rate \(trial.learningRate), seed \(trial.seed): "
        if let failure = trial.failure { return what + "failed: " + failure }
        let time = Units.fixed(trial.secondsPerStep, decimals: 2)
        return what + "\(metric) \(Units.loss(trial.value ?? .nan)), \(time) s a step"
    }

    // MARK: Files

    /// Divides the training rows into those that the search learns from and those that it judges by.
    private func writeSearchRows() throws -> (train: String, eval: String) {
        let files = (train: joined(output, "search-train.jsonl"), eval: joined(output, "search-eval.jsonl"))
        let period = max(2, Int((1 / searchShare).rounded()))
        var (train, eval, index) = ("", "", 0)
        try RowFile(path: recipe.dataSources[0].path).forEach { row in
            let text = try row.value.get().compact + "\n"
            if index % period == period - 1 { eval += text } else { train += text }
            index += 1
        }
        guard index >= period else {
            throw TrainingError("\(recipe.data): \(index) rows are too few for the search; expected at least \(period)")
        }
        try AtomicFile.write(train, to: files.train)
        try AtomicFile.write(eval, to: files.eval)
        return files
    }

    private func makeFolder(_ path: String) throws {
        do {
            try FileManager.default.createDirectory(atPath: path, withIntermediateDirectories: true)
        } catch {
            throw FormatError(writing: path, "cannot make this folder; check that you may")
        }
    }

    private static func bytes(of folder: String) throws -> Int {
        try RunLayout.names(in: folder).reduce(0) { sum, name in
            let attributes = try? FileManager.default.attributesOfItem(atPath: joined(folder, name))
            return sum + ((attributes?[.size] as? Int) ?? 0)
        }
    }
}

/// The user ended the comparison; the trial under way is trained anew when it goes on.
public struct ComparisonInterrupted: Error, CustomStringConvertible {
    /// Makes the error.
    public init() {}
    /// One sentence.
    public var description: String { "interrupted; the same command goes on with the trials that are missing" }
}

/// The file of finished trials.
private final class ComparisonLog {
    private let file: AppendFile
    private var trials: [String: ComparisonTrial] = [:]

    init(path: String) throws {
        var text = ""
        for line in try PathKind(path) == .missing ? [] : Self.lines(of: path) {
            // A torn last line, which a killed run leaves, is a trial that is trained again.
            guard let trial = (try? JSON.parse(line)).flatMap(ComparisonTrial.init(json:)) else { continue }
            trials[trial.digest] = trial
            text += line + "\n"
        }
        try AtomicFile.write(text, to: path)
        file = try AppendFile(path: path, isNew: false)
    }

    private static func lines(of path: String) throws -> [String] {
        guard let text = try? String(contentsOfFile: path, encoding: .utf8) else {
            throw FormatError(file: path, "cannot be read; check that it is a file that you may read")
        }
        return text.split(separator: "\n").map(String.init)
    }

    func trial(digest: String) -> ComparisonTrial? { trials[digest] }

    func append(_ trial: ComparisonTrial) throws {
        try file.append(Array((trial.json.compact + "\n").utf8))
        trials[trial.digest] = trial
    }
}
