import Backbones
import PEFT
import Torch

/// Finds out why a loss or a gradient is no finite number: in which module, by which tensor, with which rows.
struct NonFiniteGuard {
    let model: LanguageModel
    let adapter: Adapter
    let data: Dataset
    let gradientStep: GradientStep

    /// Explains a loss.
    ///
    /// - Parameters:
    ///   - loss: What the forward pass came to.
    ///   - plan: The step.
    /// - Throws: `TorchError` when memory is short.
    func explain(_ loss: NonFiniteLoss, in plan: StepPlan) throws -> TrainingFailure {
        let alone = try loss.pass.single.filter { try !gradientStep.lossSum(of: plan, $0).isFinite }
        let module = try firstModule(alone.first ?? loss.pass, of: plan)
        let rows = alone.isEmpty ? loss.pass.rows : alone.flatMap(\.rows)
        let culprit = try culprit(in: module)
        return TrainingFailure(
            step: plan.step + 1, module: module, tensor: culprit?.name, lines: rows.map { data[$0].line },
            rows: rows,
            description: "step \(plan.step + 1): the loss is \(loss.value) for \(words(rows)); the first module whose "
                + "output is not finite is \(module)\(reason(culprit))")
    }

    /// Explains gradients; they stay as they are.
    ///
    /// - Parameters:
    ///   - norm: The norm of all of them.
    ///   - plan: The step.
    /// - Throws: `TorchError` when memory is short.
    func explain(gradientNorm norm: Double, in plan: StepPlan) throws -> TrainingFailure {
        // The backward pass spoils everything before the place where it went wrong: the last in the model is it.
        let culprit = try adapter.trainables.last { try $0.tensor.grad?.isAllFinite() == false }
        let kept = adapter.trainables.map(\.tensor.grad)
        defer { for (trainable, gradient) in zip(adapter.trainables, kept) { try? trainable.tensor.setGrad(gradient) } }
        let alone = try plan.microBatches.flatMap(\.single).filter { row in
            guard let culprit else { return false }
            for trainable in adapter.trainables { try trainable.tensor.setGrad(nil) }
            do {
                _ = try gradientStep.addGradients(of: plan, share: [row])
            } catch is NonFiniteLoss {
                return true
            }
            return try culprit.tensor.grad?.isAllFinite() == false
        }
        let rows = alone.isEmpty ? plan.rows : alone.flatMap(\.rows)
        let module = culprit.flatMap { culprit in
            adapter.updates.map(\.linear.path).first { culprit.name.contains("." + $0 + ".") }
        }
        let what =
            culprit.map { "the gradient of \($0.name) is not finite" } ?? "the norm of the gradients is \(norm)"
        return TrainingFailure(
            step: plan.step + 1, module: module, tensor: culprit?.name, lines: rows.map { data[$0].line }, rows: rows,
            description: "step \(plan.step + 1): \(what) for \(words(rows)), although the loss is finite; \(advice)")
    }

    /// The path of the first module of a pass whose output is not finite; the head where all others' are.
    private func firstModule(_ pass: MicroBatch, of plan: StepPlan) throws -> String {
        struct Found: Error { let module: String }
        do {
            _ = try gradientStep.lossSum(of: plan, pass) { module, output in
                if try !output.isAllFinite() { throw Found(module: module) }
            }
            return model.backbone.head.path
        } catch let found as Found {
            return found.module
        }
    }

    private enum Culprit {
        case pretrained(String)
        case trained(String)

        var name: String {
            switch self {
            case .pretrained(let name), .trained(let name): name
            }
        }
    }

    /// What is not finite in a module itself: a pretrained tensor, else a trained one of its own or one that it shares.
    private func culprit(in module: String) throws -> Culprit? {
        for parameter in model.backbone.parameters where parameter.modulePath == module {
            // A copy that is trained has its own name below.
            if parameter.replacement == nil, parameter.packed == nil, try !parameter.frozen.isAllFinite() {
                return .pretrained(parameter.path)
            }
        }
        let broken = try adapter.trainables.filter { try !$0.tensor.isAllFinite() }.map(\.name)
        return (broken.first { $0.contains(module + ".") } ?? broken.first).map { .trained($0) }
    }

    private func reason(_ culprit: Culprit?) -> String {
        switch culprit {
        case .pretrained(let name):
            ", because the pretrained \(name) has values that are not finite; the model's file is damaged or was "
                + "converted wrongly: get it again"
        case .trained(let name):
            ", because the trained \(name) has values that are not finite; \(advice), or begin from an adapter that "
                + "is whole"
        case nil: ", where the numbers outgrow \(model.backbone.dtype); \(advice)"
        }
    }

    private var advice: String {
        "lower learning_rate" + (model.backbone.dtype == .float32 ? "" : ", or use dtype float32")
    }

    private func words(_ rows: [Int]) -> String {
        let names = rows.prefix(8).map { data.name(of: data[$0]) }.joined(separator: ", ")
        return (rows.count == 1 ? "the row at " : "the \(rows.count) rows at ") + names
            + (rows.count > 8 ? ", ..." : "")
    }
}

extension MicroBatch {
    /// Its rows, each a pass of its own.
    fileprivate var single: [MicroBatch] {
        rows.indices.map { MicroBatch(rows: [rows[$0]], places: [places[$0]], lengths: [lengths[$0]]) }
    }
}
