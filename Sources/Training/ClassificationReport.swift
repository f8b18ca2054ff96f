/// How well labels were told, by the measures of GLUE.
public struct ClassificationReport: Sendable, Equatable {
    /// The share of right answers.
    public let accuracy: Double
    /// The mean over all labels that occur, as label or answer, of their F1.
    public let macroF1: Double
    /// The F1 of label 1 where there is no label beyond 0 and 1; else nil.
    public let binaryF1: Double?
    /// The correlation of answers and labels, also for more than two; 0 where either never changes.
    public let matthewsCorrelation: Double

    /// Measures answers.
    ///
    /// - Parameters:
    ///   - answers: The number of the label that was told for each text.
    ///   - labels: The number of its own, as many.
    public init(answers: [Int], labels: [Int]) {
        var right: [Int: Int] = [:]
        var told: [Int: Int] = [:]
        var own: [Int: Int] = [:]
        for (answer, label) in zip(answers, labels) {
            told[answer, default: 0] += 1
            own[label, default: 0] += 1
            if answer == label { right[label, default: 0] += 1 }
        }
        let count = Double(min(answers.count, labels.count))
        let hits = Double(right.values.reduce(0, +))
        accuracy = count == 0 ? 0 : hits / count
        let classes = Set(told.keys).union(own.keys).sorted()
        func f1(_ label: Int) -> Double {
            let sum = Double(told[label, default: 0] + own[label, default: 0])
            return sum == 0 ? 0 : 2 * Double(right[label, default: 0]) / sum
        }
        macroF1 = classes.isEmpty ? 0 : classes.reduce(0) { $0 + f1($1) } / Double(classes.count)
        binaryF1 = classes.allSatisfy { (0...1).contains($0) } ? f1(1) : nil
        // Gorodkin's form: covariances of the one-hot answers and labels, times the square of the count.
        func covariance(_ a: [Int: Int], _ b: [Int: Int]) -> Double {
            classes.reduce(0) { $0 + Double(a[$1, default: 0]) * Double(b[$1, default: 0]) }
        }
        let (toldSpread, ownSpread) = (count * count - covariance(told, told), count * count - covariance(own, own))
        let spread = (toldSpread * ownSpread).squareRoot()
        matthewsCorrelation = spread == 0 ? 0 : (hits * count - covariance(told, own)) / spread
    }
}
