import Formats
import PEFT
import Torch

/// A recipe made real: model, adapter and data in memory, ready for the first step or for a plan.
struct TrainingSetup {
    /// The recipe with every setting written down.
    private(set) var recipe: Recipe
    let model: LanguageModel
    let adapter: Adapter
    let data: Dataset
    let evalData: Dataset?

    /// Loads what a recipe names.
    ///
    /// - Throws: What is wrong with the recipe, the model, the data or the method.
    init(_ recipe: Recipe) throws {
        try recipe.validate()
        let configuration = try recipe.adapterConfiguration()
        if let threads = recipe.threads { try Machine.setThreads(threads) }
        var model = try LanguageModel.load(
            recipe.model, dtype: recipe.dtype, device: recipe.device,
            form: recipe.quantization.form(doubleQuant: recipe.doubleQuant))
        let seed = Seed(UInt64(recipe.seed))
        if recipe.dataOptions.rows == .labelled {
            let data = try model.dataset(recipe.dataSources, options: recipe.dataOptions)
            try data.requireLabels()
            model = try model.classifier(labels: data.labels, seed: seed)
        }
        let adapter = try Adapter(configuration, on: model.backbone, seed: seed)
        try self.init(recipe, model: model, adapter: adapter)
    }

    /// Loads the data that a recipe names, for a model with its adapter.
    ///
    /// - Throws: What is wrong with the recipe or the data.
    init(_ recipe: Recipe, model: LanguageModel, adapter: Adapter) throws {
        try recipe.validate()
        self.model = model
        self.adapter = adapter
        guard recipe.dataOptions.rows != .labelled || model.labels != nil else {
            throw TrainingError(
                "objective classification needs a model with a head; attach the adapter to model.classifier(labels:)")
        }
        data = try model.dataset(recipe.dataSources, options: recipe.dataOptions)
        evalData = try recipe.evalData.map { try model.dataset([DataSource($0)], options: recipe.dataOptions) }
        try recipe.layout.requireRoom(for: data)
        if let evalData { try recipe.evalLayout.requireRoom(for: evalData) }
        self.recipe = try recipe.completed(model.backbone, adapter.configuration)
        try adapter.attach()
        self.recipe.gradientCheckpointing = try decidedCheckpointing()
    }

    /// The rows of one optimiser step.
    var rowsPerStep: Int { recipe.batchSize * recipe.gradientAccumulationSteps }

    /// The order of the rows.
    var order: DataOrder {
        DataOrder(epochRows, rowsPerStep: rowsPerStep)
    }

    /// The rows of each epoch.
    var epochRows: EpochRows {
        EpochRows(data.summaries.map { ($0.kept, $0.source.weight) }, seed: Seed(UInt64(recipe.seed)))
    }

    /// The rows by which a method judges, in another order than the run's.
    var probeRows: EpochRows {
        var stream = Seed(UInt64(recipe.seed)).stream("probe")
        return EpochRows(data.summaries.map { ($0.kept, $0.source.weight) }, seed: Seed(stream.next()))
    }

    /// The optimiser steps of the whole run.
    ///
    /// - Throws: ``TrainingError`` when there are too many.
    func totalSteps() throws -> Int {
        if let steps = recipe.steps { return steps }
        let steps = ((recipe.epochs ?? 1) * Double(order.stepsPerEpoch)).rounded(.up)
        guard steps < Double(1 << 31) else {
            throw TrainingError("epochs \(recipe.epochs ?? 1) make \(steps) steps, which is too many")
        }
        return max(1, Int(steps))
    }
}
