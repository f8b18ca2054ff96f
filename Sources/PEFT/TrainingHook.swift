/// What a method does while it is trained, at the events of an optimiser step.
///
/// State that a resumed run needs lives in ``Attachment/buffers``, whose tensors a hook changes in place.
public protocol TrainingHook: AnyObject {
    /// Whether the method cannot be trained without knowing how many steps there are.
    var requiresSchedule: Bool { get }
    /// Training begins, or goes on after a break.
    ///
    /// - Parameter totalSteps: The optimiser steps of the whole run.
    /// - Throws: `PEFTError` when the method's schedule does not fit into them.
    func trainingBegins(totalSteps: Int) throws
    /// Training begins, for a method that judges by the loss of training rows; by default the form without.
    ///
    /// - Parameters:
    ///   - totalSteps: The optimiser steps of the whole run.
    ///   - probe: The loss of training rows; nil where whoever trains has none to offer.
    /// - Throws: `PEFTError` when the method cannot be trained so.
    func trainingBegins(totalSteps: Int, probe: LossProbe?) throws
    /// A step begins, before its first forward pass.
    ///
    /// - Parameter step: Its number, from 0.
    func stepBegins(_ step: Int) throws
    /// The gradients of a step are complete and not yet clipped.
    func gradientsAreReady(_ step: Int) throws
    /// The optimiser has changed the tensors; the step's gradients, as they were clipped, are still there.
    func stepEnded(_ step: Int) throws
}

extension TrainingHook {
    /// It can.
    public var requiresSchedule: Bool { false }
    /// Nothing is done.
    public func trainingBegins(totalSteps: Int) throws {}
    /// The probe is not needed.
    public func trainingBegins(totalSteps: Int, probe: LossProbe?) throws { try trainingBegins(totalSteps: totalSteps) }
    /// Nothing is done.
    public func stepBegins(_ step: Int) throws {}
    /// Nothing is done.
    public func gradientsAreReady(_ step: Int) throws {}
    /// Nothing is done.
    public func stepEnded(_ step: Int) throws {}
}

/// The loss of training rows with the adapter as it is now: no gradient, no dropout, nothing changed.
public struct LossProbe {
    /// The mean loss, in nats a token, of so many rows; the same round has the same rows, the next one others.
    public let loss: (_ rows: Int, _ round: Int) throws -> Double

    /// Makes a probe.
    public init(loss: @escaping (_ rows: Int, _ round: Int) throws -> Double) {
        self.loss = loss
    }
}

/// A hook that only changes complete gradients.
final class GradientHook: TrainingHook {
    private let change: () throws -> Void

    init(_ change: @escaping () throws -> Void) {
        self.change = change
    }

    func gradientsAreReady(_ step: Int) throws { try change() }
}
