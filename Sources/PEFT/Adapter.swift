import Backbones
import Formats
import Torch

/// A method's settings and the parts of the model that it acts on: all that `adapter_config.json` says.
public struct AdapterConfiguration: Sendable {
    /// The method with its hyper-parameters.
    public var method: any Method
    /// The layers, modules and biases.
    public var selection = Selection()
    /// Fields of a loaded `adapter_config.json` that Graft does not compute with; they are written back.
    public var remaining: KeyedList<JSON> = [:]

    /// Makes a configuration.
    public init(_ method: any Method, selection: Selection = Selection()) {
        self.method = method
        self.selection = selection
    }

    /// Makes the configuration of a registered method.
    ///
    /// - Parameters:
    ///   - name: A name of the registry.
    ///   - settings: Hyper-parameters and selection fields by key.
    /// - Throws: `PEFTError` for an unknown method or key, with the nearest one, or a value of the wrong form.
    public init(method name: String, settings: KeyedList<JSON> = [:]) throws {
        self.init(try MethodRegistry.entry(name).make())
        for (key, value) in settings { try set(key, to: value) }
        try method.validate()
    }

    /// The keys that can be set.
    public var keys: [String] { method.settings.keys + Selection.fields.map(\.name) }

    /// Sets a hyper-parameter or a selection field.
    ///
    /// - Throws: `PEFTError` for an unknown key, with the nearest one, or a value of the wrong form.
    public mutating func set(_ key: String, to value: JSON) throws {
        if let changed = try method.setting(key, to: value) {
            method = changed
            return
        }
        guard let field = Selection.fields.first(where: { $0.name == key }) else {
            throw PEFTError(
                "the method has no setting \"\(key)\".\(suggestion(for: key, in: keys)) Its settings are "
                    + keys.joined(separator: ", ")
            )
        }
        guard field.write(&selection, value) else {
            throw PEFTError("\(key): expected \(field.form), found \(value.compact)")
        }
    }
}

/// A method at work in a model: the owner of the trainable tensors.
///
/// Making an adapter fills the slots of the layers that it adapts; ``detach()`` empties them, after which the model is
/// the pretrained one bit for bit.
public final class Adapter {
    /// The settings, complete with what the seed decided.
    public let configuration: AdapterConfiguration
    /// What training changes, in the order of optimiser state and checkpoints.
    public let trainables: [Trainable]
    /// Frozen tensors that belong to the adapter's state but not to its file.
    public let buffers: KeyedList<Tensor>
    /// The layers with a changed weight.
    public let updates: [(linear: Linear, update: any WeightUpdate)]
    /// The parameters that are trained as copies (`modules_to_save`, biases).
    public let copies: [(parameter: Parameter, tensor: Tensor)]
    private let attachment: Attachment
    /// What stands in the slots of the layers of `updates` while it is attached.
    private let slots: [WeightSlot]
    /// What stands in for the weights of `updates` while they are merged.
    private var mergedWeights: [Tensor]?
    package let backbone: any Backbone

    /// Makes the trainable tensors of a method for a model, and fills the model's slots.
    ///
    /// - Parameters:
    ///   - configuration: The method and the selection.
    ///   - backbone: The model; it has no adapter yet.
    ///   - seed: Every random tensor comes from a stream below it.
    /// - Throws: `PEFTError` when nothing is selected, the method does not fit, or the model is adapted already.
    public convenience init(_ configuration: AdapterConfiguration, on backbone: any Backbone, seed: Seed) throws {
        // No machine has memory for so many.
        try self.init(configuration, on: backbone, seed: seed, mostValues: 1e12)
    }

    /// As the public form, for a method that trains no more than so many values.
    init(_ configuration: AdapterConfiguration, on backbone: any Backbone, seed: Seed, mostValues: Double) throws {
        var configuration = configuration
        try configuration.method.validate()
        configuration.method = configuration.method.resolved(seed: seed)
        let targets = configuration.selection.targetModules ?? type(of: configuration.method).defaultTargets
        configuration.selection.targetModules = targets
        let linears = try configuration.selection.linears(of: backbone)
        // Said before anything is computed; `attach()` looks again.
        if let taken = linears.first(where: { $0.adapter != nil }) {
            throw PEFTError("\(taken.path) already has an adapter; detach it first")
        }
        let points = AttachPoints(linears: linears, configuration: backbone.configuration, device: backbone.device)
        let count = try configuration.method.trainedCount(in: points)
        guard count <= mostValues else {
            throw PEFTError("the settings ask for \(count) trained values, more than there can be; lower the rank")
        }
        attachment = try withoutGrad { try configuration.method.attach(to: points, seed: seed) }
        updates = attachment.updates
        slots = attachment.updates.map { WeightSlot($0.update) }
        buffers = attachment.buffers
        copies = try Self.copies(configuration.selection, adapted: attachment.updates.map(\.linear), of: backbone)
        let copied = try zip(copies, Self.copyNames(copies.map(\.parameter), adapted: updates.map(\.linear))).map {
            try Trainable(copying: $0.0.tensor, as: $0.1)
        }
        trainables = attachment.trainables + copied
        self.configuration = configuration
        self.backbone = backbone
        try attach()
    }

    /// The number of trained values.
    public var parameterCount: Int { trainables.reduce(0) { $0 + $1.tensor.count } }

    /// Whether the updates are in the model's weights and not in its slots; see ``mergeIntoBackbone()``.
    public var isMerged: Bool { mergedWeights != nil }

    /// Fills the model's slots; done when the adapter is made.
    ///
    /// - Throws: `PEFTError` naming a layer that another adapter holds, attached or merged; nothing is changed then.
    public func attach() throws {
        try requireFree()
        detach()
        for ((linear, _), slot) in zip(updates, slots) { linear.adapter = slot }
        for (parameter, tensor) in copies { parameter.replacement = tensor }
    }

    /// Empties the model's slots, merged or not: what this adapter changed is the pretrained model's bit for bit.
    ///
    /// Other adapters stay where they are, so several are taken off in any order.
    public func detach() {
        for (index, (linear, _)) in updates.enumerated() {
            if linear.adapter === slots[index] { linear.adapter = nil }
            if let merged = mergedWeights?[index], linear.weight.replacement === merged {
                linear.weight.replacement = nil
            }
        }
        for (parameter, tensor) in copies where parameter.replacement === tensor { parameter.replacement = nil }
        mergedWeights = nil
    }

    /// Puts merged weights in the place of the pretrained ones, so that adapted layers cost no more than others.
    ///
    /// They are formed in fp32 and rounded once to the model's dtype. The pretrained weights stay in memory untouched,
    /// for ``unmerge()``.
    ///
    /// - Throws: `PEFTError` naming a layer that another adapter holds; `TorchError` when memory is short. The adapter
    ///   then stays where it was.
    public func mergeIntoBackbone() throws {
        guard !isMerged else { return }
        try requireFree()
        let weights = try updates.map { linear, update in
            try withoutGrad {
                try update.merged(into: linear.weight.values(dtype: .float32)).detached()
                    .to(dtype: linear.weight.frozen.dtype)
            }
        }
        try attach()
        for ((linear, _), weight) in zip(updates, weights) {
            linear.adapter = nil
            linear.weight.replacement = weight
        }
        mergedWeights = weights
    }

    /// Takes merged weights away again and returns to the slots; the pretrained weights are the old ones bit for bit.
    ///
    /// - Throws: `PEFTError` when another adapter has taken a layer meanwhile.
    public func unmerge() throws {
        if isMerged { try attach() }
    }

    /// Two adapters on one layer would silently be one: the later.
    private func requireFree() throws {
        for (index, (linear, _)) in updates.enumerated() {
            if let other = linear.adapter, other !== slots[index] {
                throw PEFTError("\(linear.path) already has an adapter; detach it first")
            }
            if let other = linear.weight.replacement, other !== mergedWeights?[index] {
                throw PEFTError(
                    "\(linear.weight.path) already has merged or trained values in its place; unmerge or detach that "
                        + "adapter first")
            }
        }
        for (parameter, tensor) in copies {
            if let other = parameter.replacement, other !== tensor {
                throw PEFTError("\(parameter.path) is already trained by another adapter; detach it first")
            }
        }
    }

    /// What the method changes in its gradients before they are clipped.
    ///
    /// - Throws: `TorchError` when an operator fails.
    public func prepareStep() throws { try attachment.beforeStep?() }

    /// What is saved: the method's settings and its tensors by their keys in `adapter_model.safetensors`.
    ///
    /// - Throws: `TorchError` when an operator fails.
    public func exported() throws -> (configuration: AdapterConfiguration, tensors: KeyedList<Tensor>) {
        var tensors = KeyedList<Tensor>()
        var configuration = configuration
        if let export = try attachment.export?() {
            configuration.method = export.method
            tensors = export.tensors
            for trainable in trainables.dropFirst(attachment.trainables.count) {
                tensors[trainable.name] = trainable.tensor
            }
        } else {
            for trainable in trainables { tensors[trainable.name] = trainable.tensor }
        }
        return (configuration, tensors)
    }

    /// A base parameter with the adapter worked into it.
    ///
    /// - Parameters:
    ///   - parameter: One of the model's.
    ///   - pretrained: Its pretrained values where the model in memory does not have them; nil takes the model's.
    /// - Returns: The merged values in fp32, or nil where the adapter leaves the parameter as it is.
    /// - Throws: `TorchError` when memory is short.
    public func merged(_ parameter: Parameter, pretrained: Tensor? = nil) throws -> Tensor? {
        try withoutGrad {
            if let update = updates.first(where: { $0.linear.weight === parameter })?.update {
                let weight = try pretrained?.to(dtype: .float32) ?? parameter.values(dtype: .float32)
                return try update.merged(into: weight).detached()
            }
            return try copies.first { $0.parameter === parameter }?.tensor.detached()
        }
    }

    private static func copies(
        _ selection: Selection, adapted: [Linear], of backbone: any Backbone
    ) throws -> [(parameter: Parameter, tensor: Tensor)] {
        var chosen = try selection.wholeParameters(of: backbone)
        let biases: [Parameter]
        switch selection.bias {
        case .none: biases = []
        case .all: biases = backbone.parameters.filter { $0.path.hasSuffix(".bias") }
        case .adapted: biases = adapted.compactMap(\.bias)
        }
        chosen += biases.filter { bias in !chosen.contains { $0 === bias } }
        return try chosen.map { ($0, try $0.values(dtype: .float32).cloned().requiringGrad()) }
    }

    /// peft puts the tensors of an adapted layer itself below `base_layer`.
    private static func copyNames(_ parameters: [Parameter], adapted: [Linear]) -> [String] {
        let paths = Set(adapted.map(\.path))
        return parameters.map { parameter in
            let (module, name) = (
                parameter.modulePath, String(parameter.path.dropFirst(parameter.modulePath.count + 1))
            )
            return adapterKey(module, paths.contains(module) ? "base_layer.\(name)" : name)
        }
    }
}

extension Trainable {
    /// Wraps a tensor that already is a leaf with a gradient.
    init(copying tensor: Tensor, as name: String) throws {
        self.name = name
        self.tensor = tensor
    }
}
