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
    public var keys: [String] {
        let own = method.settings
        return own.keys + Selection.fields.map(\.name).filter { own[$0] == nil }
    }

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

extension AdapterConfiguration {
    /// What the method may touch in a model; the selection gets the method's default targets where it has none.
    package mutating func points(of backbone: any Backbone) throws -> AttachPoints {
        let layers = selection.layersToTransform.flatMap { $0.indices.isEmpty ? nil : $0.indices }
        guard type(of: method).usesLinears else {
            guard selection.targetModules == nil, selection.excludeModules == nil else {
                throw PEFTError(
                    "target_modules: \(type(of: method).peftType) does not act on single layers; leave target_modules and "
                        + "exclude_modules unset, and choose blocks by layers_to_transform")
            }
            let linears = backbone.linears.filter { $0.layer.map { layers?.contains($0) ?? true } ?? false }
            return AttachPoints(linears: linears, of: backbone, layers: layers)
        }
        selection.targetModules = selection.targetModules ?? type(of: method).defaultTargets
        let linears = try selection.linears(of: backbone)
        // Said before anything is computed; attaching looks again.
        if let taken = linears.first(where: { $0.adapter != nil }) {
            throw PEFTError("\(taken.path) already has an adapter; detach it first")
        }
        return AttachPoints(linears: linears, of: backbone, layers: layers)
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
    /// Whole numbers that belong to its state and to its file.
    public let indices: KeyedList<Tensor>
    /// The layers with a changed weight.
    public let updates: [(linear: Linear, update: any WeightUpdate)]
    /// What stands in other places than linear layers, trained copies of parameters not counted.
    public let others: [Attached]
    /// The parameters that are trained as copies: the method's own, `modules_to_save` and biases.
    public let copies: [(parameter: Parameter, tensor: Tensor)]
    private let attachment: Attachment
    /// What stands in the model's slots while the adapter is attached and not merged.
    let places: [Attached]
    /// What stands there instead while it is merged.
    private var mergedPlaces: [Attached]?
    private var knowsSchedule = false
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

    /// As the public form, for a method that trains no more than so many values, and for a folder that is loaded.
    init(
        _ configuration: AdapterConfiguration, on backbone: any Backbone, seed: Seed, mostValues: Double,
        folder: StoredFolder? = nil
    ) throws {
        var configuration = configuration
        try configuration.method.validate()
        configuration.method = configuration.method.resolved(seed: seed)
        if let classifier = backbone as? SequenceClassifier {
            configuration.selection.train(head: classifier.head.path)
        }
        var points = try configuration.points(of: backbone)
        points.folder = folder
        let count = try configuration.method.trainedCount(in: points)
        guard count <= mostValues else {
            throw PEFTError("the settings ask for \(count) trained values, more than there can be; lower the rank")
        }
        attachment = try withoutGrad { try configuration.method.attach(to: points, seed: seed) }
        indices = attachment.indices
        updates = attachment.updates
        others = attachment.others
        buffers = attachment.buffers
        let (attachment, adapted) = (self.attachment, attachment.updates.map(\.linear))
        let whole = try Self.copies(configuration.selection, adapted: adapted, of: backbone).filter { copy in
            !attachment.copies.contains { $0.parameter === copy.parameter }
        }
        copies = attachment.copies + whole
        trainables = try attachment.trainables + Self.trainables(whole, adapted: adapted)
        places =
            updates.map { Attached($0.linear, WeightSlot($0.update)) } + others
            + copies.map { Attached($0.parameter, $0.tensor) }
        self.configuration = configuration
        self.backbone = backbone
        try attach()
    }

    /// The number of trained values.
    public var parameterCount: Int {
        let own = attachment.trainables.reduce(0) { $0 + $1.tensor.count }
        return trainables.reduce(0) { $0 + $1.tensor.count } - own + (attachment.trainedCount ?? own)
    }

    /// Whether the updates are in the model's weights and not in its slots; see ``mergeIntoBackbone()``.
    public var isMerged: Bool { mergedPlaces != nil }

    /// Fills the model's slots; done when the adapter is made.
    ///
    /// - Throws: `PEFTError` naming a layer that another adapter holds, attached or merged; nothing is changed then.
    public func attach() throws {
        try requireFree()
        detach()
        for place in places { place.fill() }
    }

    /// Empties the model's slots, merged or not: what this adapter changed is the pretrained model's bit for bit.
    ///
    /// Other adapters stay where they are, so several are taken off in any order.
    public func detach() {
        for place in places + (mergedPlaces ?? []) { place.clear() }
        mergedPlaces = nil
    }

    /// Puts merged weights in the place of the pretrained ones, so that adapted layers cost no more than others.
    ///
    /// They are formed in fp32 and rounded once to the model's dtype. The pretrained weights stay in memory untouched,
    /// for ``unmerge()``.
    ///
    /// - Throws: `PEFTError` naming a layer that another adapter holds, or saying why the method cannot be merged;
    ///   `TorchError` when memory is short. The adapter then stays where it was.
    public func mergeIntoBackbone() throws {
        guard !isMerged else { return }
        try requireMergeable()
        try requireFree()
        let replacements = try withoutGrad {
            let updated = try updates.flatMap { try merged($0.linear, $0.update) }
            let plain = copies.filter { copy in !updated.contains { $0.point === copy.parameter } }
            return updated + plain.map { Attached($0.parameter, $0.tensor) }
        }
        try attach()
        for place in places { place.clear() }
        for place in replacements { place.fill() }
        mergedPlaces = replacements
    }

    /// A layer's weight, and its bias where that changes, with an update in it.
    private func merged(_ linear: Linear, _ update: any WeightUpdate) throws -> [Attached] {
        let weight = try update.merged(into: linear.weight.values(dtype: .float32)).detached()
        let merged = Attached(linear.weight, try weight.to(dtype: linear.weight.frozen.dtype))
        let own = try linear.bias.map { try trainedCopy(of: $0) ?? $0.values(dtype: .float32) }
        guard let values = try update.mergedBias(own) else { return [merged] }
        // A layer without a bias has no place for one but its slot.
        guard let bias = linear.bias else { return [merged, Attached(linear, RemainingBias(values))] }
        return [merged, Attached(bias, try values.detached().to(dtype: bias.frozen.dtype))]
    }

    /// Takes merged weights away again and returns to the slots; the pretrained weights are the old ones bit for bit.
    ///
    /// - Throws: `PEFTError` when another adapter has taken a layer meanwhile.
    public func unmerge() throws {
        if isMerged { try attach() }
    }

    /// Refuses methods that change more than weights.
    ///
    /// - Throws: `PEFTError` with the method's reason.
    package func requireMergeable() throws {
        let type = type(of: configuration.method)
        if let reason = type.mergeRefusal { throw PEFTError("\(type.peftType) cannot be merged: \(reason)") }
        guard let other = others.first else { return }
        throw PEFTError("\(type.peftType) cannot be merged: it acts in \(other.point.path), not in a weight alone")
    }

    /// Two adapters in one place would silently be one: the later.
    private func requireFree() throws {
        let own = places + (mergedPlaces ?? [])
        let points: [any AttachPoint] = own.map(\.point) + updates.map { $0.linear.weight }
        for point in points {
            guard let held = point.occupant, !own.contains(where: { $0.occupant === held }) else { continue }
            guard point is Parameter else {
                throw PEFTError("\(point.path) already has an adapter; detach it first")
            }
            throw PEFTError(
                copies.contains { $0.parameter === point }
                    ? "\(point.path) is already trained by another adapter; detach it first"
                    : "\(point.path) already has merged or trained values in its place; unmerge or detach that adapter "
                        + "first")
        }
    }

    // MARK: Training

    /// Tells the method how long it will be trained; the trainer calls it, and a training loop of one's own has to.
    ///
    /// - Parameters:
    ///   - totalSteps: The optimiser steps of the whole run.
    ///   - probe: The loss of training rows, for methods that judge by it.
    /// - Throws: `PEFTError` when the method's schedule does not fit into them, or the method needs a probe.
    public func trainingBegins(totalSteps: Int, probe: LossProbe? = nil) throws {
        try attachment.hook?.trainingBegins(totalSteps: totalSteps, probe: probe)
        knowsSchedule = true
    }

    /// A step begins, before its first forward pass; steps count from 0.
    ///
    /// - Throws: `PEFTError` for a method with a schedule when ``trainingBegins(totalSteps:)`` was not called.
    public func stepBegins(_ step: Int) throws {
        guard let hook = attachment.hook else { return }
        guard knowsSchedule || !hook.requiresSchedule else {
            throw PEFTError(
                "\(type(of: configuration.method).peftType) has a schedule; call trainingBegins(totalSteps:) before the "
                    + "first step")
        }
        try hook.stepBegins(step)
    }

    /// The gradients of a step are complete and not yet clipped: what the method changes in them.
    ///
    /// - Throws: `TorchError` when an operator fails.
    public func gradientsAreReady(_ step: Int) throws { try attachment.hook?.gradientsAreReady(step) }

    /// The optimiser has changed the tensors, and the gradients are still there.
    ///
    /// - Throws: `TorchError` when an operator fails.
    public func stepEnded(_ step: Int) throws { try attachment.hook?.stepEnded(step) }

    /// A scalar that the method adds to the loss of a step, or nil.
    ///
    /// - Throws: `TorchError` when an operator fails.
    public func penalty() throws -> Tensor? { try attachment.penalty?() }

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
            tensors = trainables.tensors
            for (name, tensor) in indices { tensors[name] = tensor }
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
            let copy = try trainedCopy(of: parameter)
            func values() throws -> Tensor {
                try copy ?? pretrained?.to(dtype: .float32) ?? parameter.values(dtype: .float32)
            }
            if let update = updates.first(where: { $0.linear.weight === parameter })?.update {
                return try update.merged(into: values()).detached()
            }
            if let update = updates.first(where: { $0.linear.bias === parameter })?.update,
                let bias = try update.mergedBias(values())
            {
                return try bias.detached()
            }
            return copy
        }
    }

    /// A parameter's values where it is trained as a copy, which an update can act on as well.
    private func trainedCopy(of parameter: Parameter) throws -> Tensor? {
        try copies.first { $0.parameter === parameter }?.tensor.detached()
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

    /// Copies as trainable tensors; peft puts those of an adapted layer itself below `base_layer`.
    private static func trainables(
        _ copies: [(parameter: Parameter, tensor: Tensor)], adapted: [Linear]
    ) throws -> [Trainable] {
        let paths = Set(adapted.map(\.path))
        return try copies.map { parameter, tensor in
            let (module, name) = (
                parameter.modulePath, String(parameter.path.dropFirst(parameter.modulePath.count + 1))
            )
            return try Trainable(
                copying: tensor, as: adapterKey(module, paths.contains(module) ? "base_layer.\(name)" : name))
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
