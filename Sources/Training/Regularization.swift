import Formats
import PEFT

/// What is added to an objective's loss, by its settings.
package struct Regularization: Sendable {
    /// The weight of DEFT's activation density.
    package var densityWeight = 0.0
    /// The smoothing of the density.
    package var densityEpsilon = 1e-7
    /// BA-LoRA's lambda1.
    package var consistencyWeight = 0.0
    /// BA-LoRA's lambda2.
    package var diversityWeight = 0.0
    /// BA-LoRA's lambda3.
    package var svdWeight = 0.0
    /// BA-LoRA's k.
    package var svdRank = 3

    package static let fields: [Field<Regularization>] = [
        Field("density_weight", \.densityWeight, "the weight of DEFT's density of the blocks' activations; 0: off"),
        Field("density_eps", \.densityEpsilon, "the square of the size below which an activation counts as none"),
        Field("consistency_weight", \.consistencyWeight, "BA-LoRA's lambda1: stay close to the pretrained outputs"),
        Field("diversity_weight", \.diversityWeight, "BA-LoRA's lambda2: keep outputs from collapsing"),
        Field("svd_weight", \.svdWeight, "BA-LoRA's lambda3: gather outputs in their first singular directions"),
        Field("svd_k", \.svdRank, "how many singular directions those are"),
    ]

    /// Nothing is added.
    package init() {}

    /// Sets a value; false for a name that is none of its settings'.
    ///
    /// - Throws: ``TrainingError`` when the value has another form.
    package mutating func set(_ name: String, to value: JSON) throws -> Bool {
        guard let field = Self.fields.first(where: { $0.name == name }) else { return false }
        guard field.write(&self, value) else {
            throw TrainingError("objective_settings, \(name): expected \(field.form), found \(value.compact)")
        }
        return true
    }

    /// Refuses settings that make no sense.
    ///
    /// - Throws: ``TrainingError`` naming the setting.
    package func validate() throws {
        for (value, name) in [
            (densityWeight, "density_weight"), (consistencyWeight, "consistency_weight"),
            (diversityWeight, "diversity_weight"), (svdWeight, "svd_weight"),
        ] where !(0..<1e6).contains(value) {
            throw TrainingError("objective_settings, \(name) is \(value); expected a number of at least 0")
        }
        guard densityEpsilon > 0 && densityEpsilon < 1e6 else {
            throw TrainingError("objective_settings, density_eps is \(densityEpsilon); expected a positive number")
        }
        guard svdRank > 0 else {
            throw TrainingError("objective_settings, svd_k is \(svdRank); expected a positive whole number")
        }
    }

    /// The regularisers that act beside an objective.
    ///
    /// - Throws: ``TrainingError`` for one that is not defined for the objective.
    package func regularizers(for objective: any Objective) throws -> [any Regularizer] {
        var regularizers: [any Regularizer] = []
        if densityWeight > 0 { regularizers.append(DensityRegularizer(weight: densityWeight, epsilon: densityEpsilon)) }
        guard consistencyWeight > 0 || diversityWeight > 0 || svdWeight > 0 else { return regularizers }
        guard !(objective is PreferenceObjective) else {
            throw TrainingError(
                "consistency_weight, diversity_weight and svd_weight go with objective sft or classification; dpo holds "
                    + "the model to the pretrained one by beta")
        }
        regularizers.append(
            BiasRegularizer(
                consistency: consistencyWeight, diversity: diversityWeight, svd: svdWeight, rank: svdRank,
                form: objective is ClassificationObjective ? .classes : .tokens))
        return regularizers
    }
}
