import Foundation

/// A score that pays for trained values: `score * exp(-log10(parameters / 1e7 + 1))`. arXiv 2402.02242
///
/// - Parameters:
///   - score: The task's score as a fraction; more is better.
///   - parameters: The number of trained values.
/// - Returns: The score itself where nothing is trained, and less the more is.
public func pptScore(_ score: Double, parameters: Int) -> Double {
    let typical = 1e7
    return score * exp(-log10(Double(parameters) / typical + 1))
}
