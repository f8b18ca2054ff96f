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
