import Backbones
import Formats
import Torch

/// An adaptation method: its hyper-parameters as a value, and the way from them to trainable tensors in a backbone.
///
/// A method's file says its mathematics and nothing else. Injection, selection, dropout, dtype, merging, saving,
/// loading, counting, help, the recipe's schema and the generic tests come from what it states here.
public protocol Method: Sendable {
    /// The value of `peft_type` in `adapter_config.json`.
    static var peftType: String { get }
    /// The hyper-parameters, in the order of importance.
    static var fields: [Field<Self>] { get }
    /// The layers that are adapted where `target_modules` does not say.
    static var defaultTargets: Selection.Modules { get }
    /// Whether `target_modules` selects linear layers; where it does not, the method is offered all of them.
    static var usesLinears: Bool { get }
    /// Why the method cannot be worked into the model's weights, or nil where it can; it ends a sentence that begins
    /// with the method's name.
    static var mergeRefusal: String? { get }

    /// What a folder of this type holds beside these fields.
    static var folderFields: FolderFields { get }

    /// The value to compute with for a field's value in a saved folder.
    ///
    /// - Throws: `PEFTError` when the folder cannot be used with that value.
    static func readable(_ field: String, _ value: JSON) throws -> JSON

    /// Makes the method with its defaults.
    init()

    /// Refuses settings that make no sense, saying what would.
    ///
    /// - Throws: `PEFTError`.
    func validate() throws

    /// The method with everything that the seed decides written down, so that the saved folder stands alone.
    func resolved(seed: Seed) -> Self

    /// The number of values that the method trains in a model, by its settings alone, or 0 where it cannot say.
    ///
    /// A folder whose settings ask for more than its file holds is refused before anything is made.
    ///
    /// - Throws: `PEFTError` when a setting is not valid.
    func trainedCount(in points: AttachPoints) throws -> Double

    /// Makes the trainable tensors for a model.
    ///
    /// - Parameters:
    ///   - points: What the adapter may touch; all of it at once, so that tensors can be shared.
    ///   - seed: The run's seed; every random tensor comes from a stream that is named below it.
    /// - Throws: `PEFTError` when the method does not fit the model; `TorchError` when memory is short.
    func attach(to points: AttachPoints, seed: Seed) throws -> Attachment
}

extension Method {
    /// Queries and values, as in peft.
    public static var defaultTargets: Selection.Modules { .names(["q_proj", "v_proj"]) }
    /// Linear layers are selected.
    public static var usesLinears: Bool { true }
    /// It can be merged.
    public static var mergeRefusal: String? { nil }
    /// Nothing.
    public static var folderFields: FolderFields { FolderFields() }
    /// The value itself.
    public static func readable(_ field: String, _ value: JSON) throws -> JSON { value }
    /// 0: unknown.
    public func trainedCount(in points: AttachPoints) throws -> Double { 0 }
    /// Nothing but the types is checked.
    public func validate() throws {}
    /// The method itself.
    public func resolved(seed: Seed) -> Self { self }

    /// The hyper-parameters as `adapter_config.json` has them.
    public var settings: KeyedList<JSON> {
        var list = KeyedList<JSON>()
        for field in Self.fields { list.appendIfNew(key: field.name, value: field.read(self)) }
        return list
    }

    /// The method with another value of a hyper-parameter, or nil when it has none of that name.
    ///
    /// - Throws: `PEFTError` when the value has another form.
    public func setting(_ name: String, to value: JSON) throws -> Self? {
        guard let field = Self.fields.first(where: { $0.name == name }) else { return nil }
        var changed = self
        guard field.write(&changed, value) else {
            throw PEFTError("\(name): expected \(field.form), found \(value.compact)")
        }
        return changed
    }
}

/// A tensor that training changes.
public struct Trainable {
    /// Which elements weight decay shrinks.
    public enum Decay {
        case all, none
        /// Those where the tensor, of the same shape, is 1 and not 0.
        case only(Tensor)
    }

    /// The key in `adapter_model.safetensors`.
    public let name: String
    /// The values, fp32, a leaf that requires a gradient.
    public let tensor: Tensor
    /// What the learning rate is multiplied by.
    public var learningRateFactor = 1.0
    /// Which elements weight decay shrinks.
    public var decay = Decay.all

    /// Makes a trainable tensor of initial values.
    ///
    /// - Throws: `TorchError` when the values cannot carry a gradient.
    public init(_ name: String, _ values: Tensor, device: Device = .cpu) throws {
        self.name = name
        let own = try values.detached().to(dtype: .float32, device: device).contiguous()
        tensor = try (own === values || own.sharesStorage(with: values) ? own.cloned() : own).requiringGrad()
    }
}

/// The key of a layer's own tensor: `base_model.model.<path>.<name>`.
public func adapterKey(_ path: String, _ name: String) -> String { "base_model.model.\(path).\(name)" }
