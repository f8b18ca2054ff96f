/// How many threads work on a token, by what tokens have taken.
///
/// A token is some hundred short phases at whose ends threads wait for each other. Where other programs want the same
/// processors, a thread that waits for one that does not run loses more than it gains, and fewer threads are faster;
/// the result is the same. So now and then a token is given to half or to twice the threads, and less often the longer
/// that does not pay.
package struct TeamSize {
    /// As many threads as there may be.
    package let most: Int
    /// The threads of the next token.
    package var size: Int { trial ?? settled }

    private var settled: Int
    private var trial: Int?
    /// What a token of the settled size takes, in seconds; recent ones weigh most.
    private var average: Double?
    private var untilTrial = TeamSize.shortest
    private var interval = TeamSize.shortest
    private var triesMore = false

    private static let (shortest, longest) = (8, 256)

    /// Begins with all threads.
    package init(most: Int) {
        self.most = max(1, most)
        settled = self.most
    }

    /// Learns how long the token took that ``size`` threads have worked on.
    package mutating func note(seconds: Double) {
        guard most > 1 else { return }
        guard let tried = trial else {
            average = average.map { $0 + (seconds - $0) / 4 } ?? seconds
            untilTrial -= 1
            if untilTrial <= 0 { trial = candidate() }
            return
        }
        trial = nil
        if let average, seconds < average * 0.85 {
            (settled, self.average, interval) = (tried, seconds, Self.shortest)
        } else {
            interval = min(interval * 2, Self.longest)
        }
        untilTrial = interval
    }

    private mutating func candidate() -> Int {
        triesMore.toggle()
        return triesMore && settled < most ? min(most, settled * 2) : settled > 1 ? settled / 2 : min(most, settled * 2)
    }
}
