import Backbones
import Formats
import Torch

/// Incremental dynamic unmasking: of all parameters a few single scalars are trained, and every step adds those with
/// the largest gradients on the smallest weights. arXiv 2408.14470
///
/// Step `t` of `T` unmasks the `u_t` largest `H = |g| / (|w| + eps)^exp` of the scalars that are still masked, over all
/// tensors together, `sum u_t = budget`; the optimiser then sees the gradients of unmasked scalars alone, and decay
/// acts on these alone. The folder holds the unmasked scalars and their places.
public struct ID3: Method {
    /// The value of `peft_type`.
    public static let peftType = "ID3"
    /// The hyper-parameters.
    public static let fields: [Field<ID3>] = [
        Field("budget", \.budget, "scalars that are trained in the end"),
        Field("selection", \.rule, "how they are chosen"),
        Field("max_steps", \.maxSteps, "steps over which they are unmasked; null: all of the run's"),
        Field("exp", \.exponent, "power of a weight's size that divides its gradient's in the score"),
        Field("eps", \.epsilon, "what is added to a weight's size in the score"),
    ]
    /// Parameters of all kinds are chosen from.
    public static let usesLinears = false

    /// How scalars are chosen: the method, and what it is compared with.
    public enum Rule: String, FieldValue, CaseIterable {
        /// Every step adds some (the method).
        case increment
        /// All at the first step, by the same score.
        case once = "static"
        /// Every step trains as many as it would add, chosen anew.
        case anew = "repeat"
        /// All at the first step, the smallest weights.
        case smallest = "pafi"
        /// All at the first step, drawn from the run's seed.
        case random
    }

    /// The scalars that are trained in the end.
    public var budget = 320_000
    /// How they are chosen.
    public var rule = Rule.increment
    /// The steps over which they are unmasked; nil: all of the run's.
    public var maxSteps: Int?
    /// The power of a weight's size in the score.
    public var exponent = 1.0
    /// What is added to a weight's size in the score.
    public var epsilon = 0.1

    /// Makes the method with its defaults.
    public init() {}

    /// Refuses settings that make no sense.
    ///
    /// - Throws: `PEFTError` naming the setting.
    public func validate() throws {
        try requirePositive(budget, "budget")
        if let maxSteps { try requirePositive(maxSteps, "max_steps") }
        try requirePositive(epsilon, "eps")
    }

    /// The budget.
    ///
    /// - Throws: Nothing.
    public func trainedCount(in points: AttachPoints) throws -> Double { Double(budget) }

    /// Copies every parameter, with a mask that is closed; a loaded folder's scalars are put into copies of theirs.
    ///
    /// - Throws: `PEFTError` when the model has fewer scalars; `TorchError` when memory is short.
    public func attach(to points: AttachPoints, seed: Seed) throws -> Attachment {
        if let folder = points.folder { return try loaded(folder, points) }
        var attachment = Attachment(trainables: [])
        try points.addCopies(of: points.parameters, to: &attachment)
        let count = attachment.trainables.reduce(0) { $0 + $1.tensor.count }
        guard budget <= count else {
            throw PEFTError("budget: expected at most the \(count) scalars of the selected parameters, found \(budget)")
        }
        attachment.trainedCount = budget
        let unmasking = try Unmasking(self, of: &attachment, seed)
        attachment.hook = unmasking
        attachment.export = { [attachment] in (self, try saved(attachment, unmasking.masks)) }
        return attachment
    }

    /// The scalars that are unmasked or have been, and are not as they were.
    private func saved(_ attachment: Attachment, _ masks: [Tensor]) throws -> KeyedList<Tensor> {
        var tensors = KeyedList<Tensor>()
        for (copy, mask) in zip(attachment.trainables, masks) {
            let place = attachment.copies.first { $0.tensor === copy.tensor }
            guard let frozen = try place?.parameter.values(dtype: .float32) else { continue }
            let changed = try callTensor("aten::ne.Tensor", copy.tensor.detached(), frozen)
            let entries = try SparseEntries(of: copy.tensor, where: callTensor("aten::logical_or", mask, changed))
            guard entries.values.count > 0 else { continue }
            let names = SparseEntries.names(copy.name)
            (tensors[names.positions], tensors[names.values]) = (entries.positions, entries.values)
        }
        return tensors
    }

    private func loaded(_ folder: StoredFolder, _ points: AttachPoints) throws -> Attachment {
        var attachment = Attachment(trainables: [])
        for parameter in points.parameters {
            let key = adapterKey(parameter.modulePath, parameter.name)
            guard let entries = try SparseEntries(key, of: parameter.frozen.count, in: points) else { continue }
            let names = SparseEntries.names(key)
            attachment.trainables.append(try Trainable(names.values, entries.values, device: points.device))
            attachment.indices[names.positions] = entries.positions
            let changed = try entries.put(into: folder.pretrained(parameter))
            for place in points.places(of: parameter) { attachment.copies.append((place, changed)) }
        }
        attachment.export = { [attachment] in
            var tensors = KeyedList<Tensor>()
            for (values, (name, positions)) in zip(attachment.trainables, attachment.indices) {
                (tensors[name], tensors[values.name]) = (positions, values.tensor)
            }
            return (self, tensors)
        }
        return attachment
    }
}
