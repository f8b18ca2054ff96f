import CTorch

#if canImport(Glibc)
import Glibc
#elseif canImport(Musl)
import Musl
#elseif canImport(Darwin)
import Darwin
#endif

extension Tensor {
    /// Whether operators on this tensor are recorded for a gradient.
    public var requiresGrad: Bool { Engine.proven?.requiresGrad(handle) ?? false }

    /// Starts or stops recording; returns the tensor.
    ///
    /// - Throws: `TorchError` when the elements are not floating-point numbers or the tensor is not a leaf.
    @discardableResult
    public func requiringGrad(_ value: Bool = true) throws -> Tensor {
        try Engine.check(Engine.api().setRequiresGrad(handle, value))
        return self
    }

    /// The gradient that backward passes have added up, if any.
    public var grad: Tensor? { Engine.proven?.grad(handle).map(Tensor.init(owning:)) }

    /// Replaces the gradient; nil clears it.
    ///
    /// - Throws: `TorchError` when the gradient's shape or dtype does not fit.
    public func setGrad(_ value: Tensor?) throws {
        try withExtendedLifetime(value) {
            try Engine.check(Engine.api().setGrad(handle, value?.handle))
        }
    }

    /// The same elements outside the record.
    ///
    /// - Throws: `TorchError` when the engine fails.
    public func detached() throws -> Tensor { try callTensor("aten::detach", self) }

    /// Adds the gradient of this tensor to `grad` of every leaf that it was computed from.
    ///
    /// - Parameters:
    ///   - gradient: The gradient with respect to this tensor; by default 1, for a tensor of one element.
    ///   - retainGraph: Keep what the record saved, for another backward pass.
    /// - Throws: `TorchError` when nothing was recorded or an operator's backward fails.
    public func backward(gradient: Tensor? = nil, retainGraph: Bool = false) throws {
        try withExtendedLifetime((self, gradient)) {
            var root: CTTensor? = handle
            var start: CTTensor? = gradient?.handle
            try Engine.check(Engine.api().backward(&root, &start, 1, retainGraph))
        }
    }
}

/// Runs `body` without recording operators for gradients, on this thread.
///
/// - Throws: What `body` throws.
public func withoutGrad<Result>(_ body: () throws -> Result) rethrows -> Result {
    try withGradEnabled(false, body)
}

/// Runs `body` with the recording of operators on or off, on this thread.
///
/// - Throws: What `body` throws.
public func withGradEnabled<Result>(_ enabled: Bool, _ body: () throws -> Result) rethrows -> Result {
    guard let api = Engine.proven else { return try body() }
    let before = api.gradEnabled()
    api.setGradEnabled(enabled)
    defer { api.setGradEnabled(before) }
    return try body()
}

/// Whether operators on this thread are recorded for gradients.
public var isGradEnabled: Bool { Engine.proven?.gradEnabled() ?? true }

/// The gradients of `outputs` with respect to `inputs`; nil where an input has no influence.
///
/// - Parameters:
///   - outputs: What is differentiated.
///   - inputs: With respect to what.
///   - gradOutputs: The gradients with respect to the outputs; by default 1, for outputs of one element.
///   - retainGraph: Keep what the record saved.
///   - createGraph: Record the gradients' own computation, for second derivatives; implies `retainGraph`.
/// - Throws: `TorchError` when nothing was recorded or an operator's backward fails.
public func gradients(
    of outputs: [Tensor], with inputs: [Tensor], gradOutputs: [Tensor?]? = nil, retainGraph: Bool = false,
    createGraph: Bool = false
) throws -> [Tensor?] {
    // Second derivatives pass through the first record again.
    let retainGraph = retainGraph || createGraph
    let starts = gradOutputs ?? outputs.map { _ in nil }
    guard starts.count == outputs.count else {
        throw TorchError("\(starts.count) output gradients for \(outputs.count) outputs")
    }
    var found: [CTTensor?] = inputs.map { _ in nil }
    try withExtendedLifetime((outputs, inputs, starts)) {
        let outputHandles: [CTTensor?] = outputs.map(\.handle)
        let inputHandles: [CTTensor?] = inputs.map(\.handle)
        let startHandles = starts.map { $0?.handle }
        try Engine.check(
            Engine.api().gradients(
                outputHandles, startHandles, Int32(outputs.count), inputHandles, Int32(inputs.count), retainGraph,
                createGraph, &found))
    }
    return found.map { $0.map(Tensor.init(owning:)) }
}

/// Runs a function whose backward is given in Swift.
///
/// `forward` runs without recording. Its results then depend on `inputs` through `backward`, which gets the gradients
/// of the results (nil where none) and returns one for each input (nil where none), of the input's shape. What it
/// captures is kept until the backward pass is done; a result that it captures stays outside the record.
///
/// - Parameters:
///   - name: The name for error messages.
///   - inputs: The tensors that may need a gradient.
///   - forward: Computes the results, and the backward for them.
/// - Returns: The results, in the order of `forward`.
/// - Throws: What `forward` throws; `TorchError` when the results cannot be attached.
public func withCustomGradient(
    _ name: String, inputs: [Tensor],
    forward: () throws -> (outputs: [Tensor], backward: ([Tensor?]) throws -> [Tensor?])
) throws -> [Tensor] {
    let records = isGradEnabled && inputs.contains(where: \.requiresGrad)
    let (outputs, backward) = try withoutGrad(forward)
    guard records else { return outputs }
    let closure = BackwardClosure(backward)
    let held = Unmanaged.passRetained(closure)
    let inputHandles: [CTTensor?] = inputs.map(\.handle)
    let outputHandles: [CTTensor?] = outputs.map(\.handle)
    var attached: [CTTensor?] = outputs.map { _ in nil }
    try withExtendedLifetime((inputs, outputs)) {
        // On failure the shim has already released the closure.
        try Engine.check(
            Engine.api().attachFunction(
                name, outputHandles, Int32(outputs.count), inputHandles, Int32(inputs.count), runBackward,
                { Unmanaged<BackwardClosure>.fromOpaque($0).release() }, held.toOpaque(), &attached))
    }
    return attached.compactMap { $0.map(Tensor.init(owning:)) }
}

/// Runs a function of one result whose backward is given in Swift; see ``withCustomGradient(_:inputs:forward:)``.
///
/// - Throws: What `forward` throws; `TorchError` when the result cannot be attached.
public func withCustomGradient(
    _ name: String, inputs: [Tensor],
    forward: () throws -> (output: Tensor, backward: (Tensor) throws -> [Tensor?])
) throws -> Tensor {
    let outputs = try withCustomGradient(name, inputs: inputs) { () -> ([Tensor], ([Tensor?]) throws -> [Tensor?]) in
        let (output, backward) = try forward()
        let count = inputs.count
        return ([output], { try $0[0].map(backward) ?? Array(repeating: nil, count: count) })
    }
    return outputs[0]
}

private final class BackwardClosure {
    let run: ([Tensor?]) throws -> [Tensor?]

    init(_ run: @escaping ([Tensor?]) throws -> [Tensor?]) {
        self.run = run
    }
}

private let runBackward: CTBackward = { context, gradOutputs, outputCount, gradInputs, inputCount in
    let closure = Unmanaged<BackwardClosure>.fromOpaque(context).takeUnretainedValue()
    do {
        let api = try Engine.api()
        let incoming = (0..<Int(outputCount)).map { index in
            gradOutputs[index].map { Tensor(owning: api.retain($0)) }
        }
        let results = try closure.run(incoming)
        guard results.count == Int(inputCount) else {
            return strdup("returned \(results.count) gradients for \(inputCount) inputs")
        }
        for (index, gradient) in results.enumerated() {
            gradInputs[index] = gradient.map { api.retain($0.handle) }
        }
        return nil
    } catch {
        return strdup("\(error)")
    }
}
