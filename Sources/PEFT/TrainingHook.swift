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
    /// Nothing is done.
    public func stepBegins(_ step: Int) throws {}
    /// Nothing is done.
    public func gradientsAreReady(_ step: Int) throws {}
    /// Nothing is done.
    public func stepEnded(_ step: Int) throws {}
}

/// A hook that only changes complete gradients.
final class GradientHook: TrainingHook {
    private let change: () throws -> Void

    init(_ change: @escaping () throws -> Void) {
        self.change = change
    }

    func gradientsAreReady(_ step: Int) throws { try change() }
}
