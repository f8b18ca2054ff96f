import Foundation

/// A learning-rate schedule: the share of the peak learning rate that each optimiser step uses.
///
/// The shares are those of `transformers` (`get_constant_schedule_with_warmup`, `get_linear_schedule_with_warmup`,
/// `get_cosine_schedule_with_warmup`): with a warm-up of `w` steps, step `i` (from 0) has the share `i / w` while `i < w`,
/// so the very first step of a run with a warm-up does not move the parameters.
public struct Schedule: Sendable, Hashable {
    /// The course of the learning rate after the warm-up.
    public enum Shape: String, Sendable, Hashable, Codable, CaseIterable {
        /// Stays at the peak.
        case constant
        /// Falls on a straight line to zero at the end of the run.
        case linear
        /// Falls on half a cosine wave to zero at the end of the run.
        case cosine
    }

    /// The length of the warm-up.
    public enum WarmUp: Sendable, Hashable {
        /// So many optimiser steps.
        case steps(Int)
        /// This share of the run, from 0 to 1, rounded up to whole steps.
        case ratio(Double)
    }

    /// The course after the warm-up.
    public let shape: Shape
    /// The optimiser steps of the warm-up.
    public let warmUpSteps: Int
    /// The optimiser steps of the whole run.
    public let totalSteps: Int

    /// Lays out a schedule for a run.
    ///
    /// - Parameters:
    ///   - shape: The course after the warm-up.
    ///   - warmUp: The length of the warm-up; none by default.
    ///   - totalSteps: The optimiser steps of the whole run, those before a resume included.
    /// - Throws: ``ScheduleError`` when a length is negative or the ratio is outside 0 to 1.
    public init(_ shape: Shape, warmUp: WarmUp = .steps(0), totalSteps: Int) throws {
        guard totalSteps >= 0 else { throw ScheduleError.negativeSteps(totalSteps) }
        self.shape = shape
        self.totalSteps = totalSteps
        switch warmUp {
        case .steps(let steps):
            guard steps >= 0 else { throw ScheduleError.negativeWarmUp(steps) }
            warmUpSteps = steps
        case .ratio(let ratio):
            guard ratio >= 0, ratio <= 1 else { throw ScheduleError.warmUpRatio(ratio) }
            // A ratio of at most one cannot exceed the step count, which came from an `Int`.
            warmUpSteps = Int(exactly: (Double(totalSteps) * ratio).rounded(.up)) ?? totalSteps
        }
    }

    /// The share of the peak learning rate, from 0 to 1, that an optimiser step uses.
    ///
    /// - Parameter step: The optimiser steps already taken: 0 for the first step of the run.
    public func factor(at step: Int) -> Double {
        if step < warmUpSteps { return Double(max(0, step)) / Double(warmUpSteps) }
        let falling = Double(max(1, totalSteps - warmUpSteps))
        switch shape {
        case .constant: return 1
        case .linear: return max(0, Double(totalSteps - step) / falling)
        case .cosine: return max(0, 0.5 * (1 + cos(Double.pi * (Double(step - warmUpSteps) / falling))))
        }
    }
}

/// A schedule that cannot be laid out.
public enum ScheduleError: Error, Equatable, Sendable, CustomStringConvertible {
    /// The run has fewer than no steps.
    case negativeSteps(Int)
    /// The warm-up has fewer than no steps.
    case negativeWarmUp(Int)
    /// The warm-up is not a share of the run.
    case warmUpRatio(Double)

    /// One sentence that names the setting, what it was, and what it may be.
    public var description: String {
        switch self {
        case .negativeSteps(let steps): "a run of \(steps) steps is not possible; give 0 or more"
        case .negativeWarmUp(let steps): "warmup_steps is \(steps); give 0 or more"
        case .warmUpRatio(let ratio): "warmup_ratio is \(ratio); give a share of the run from 0 to 1"
        }
    }
}
