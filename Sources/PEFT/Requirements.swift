import Backbones

/// Refuses a count below one.
///
/// - Throws: `PEFTError` naming the hyper-parameter.
func requirePositive(_ value: Int, _ name: String) throws {
    guard value > 0 else { throw PEFTError("\(name): expected a positive whole number, found \(value)") }
}

/// Refuses a number that is zero or below.
///
/// - Throws: `PEFTError` naming the hyper-parameter.
func requirePositive(_ value: Double, _ name: String) throws {
    guard value > 0 else { throw PEFTError("\(name): expected a positive number, found \(value)") }
}

/// Refuses what is no probability below one.
///
/// - Throws: `PEFTError` naming the hyper-parameter.
func requireProbability(_ value: Double, _ name: String) throws {
    guard value >= 0, value < 1 else { throw PEFTError("\(name): expected a number in 0..<1, found \(value)") }
}

extension AttachPoints {
    /// Refuses a number that does not divide sizes of every selected layer.
    ///
    /// - Throws: `PEFTError` naming the hyper-parameter, the first layer that it does not fit, and what fits all.
    func requireDivisor(_ value: Int, _ name: String, of sizes: (Linear) -> [Int]) throws {
        guard let layer = linears.first(where: { sizes($0).contains { $0 % value != 0 } }) else { return }
        let common = linears.flatMap(sizes).reduce(0, greatestCommonDivisor)
        let fitting = (1...max(common, 1)).filter { common % $0 == 0 }.map(String.init).joined(separator: ", ")
        throw PEFTError(
            "\(name): expected a divisor of \(sizes(layer).map(String.init).joined(separator: " and ")), sizes of "
                + "\(layer.path), found \(value); what divides those of all selected layers is \(fitting)")
    }
}

private func greatestCommonDivisor(_ a: Int, _ b: Int) -> Int { b == 0 ? a : greatestCommonDivisor(b, a % b) }
