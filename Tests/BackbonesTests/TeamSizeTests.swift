import Backbones
import TestSupport
import Testing

@Suite struct TeamSizeTests {
    /// The share of tokens that were worked on by each number of threads.
    private func shares(most: Int, tokens: Int, seconds: (Int) -> Double) -> [Int: Double] {
        var team = TeamSize(most: most)
        var counts: [Int: Double] = [:]
        for _ in 0..<tokens {
            counts[team.size, default: 0] += 1 / Double(tokens)
            team.note(seconds: seconds(team.size))
        }
        return counts
    }

    /// Threads that help are used; those that only wait are not.
    @Test(arguments: [2, 3, 8, 64])
    func choosesWhatIsFastest(most: Int) {
        var random = SeededGenerator(seed: UInt64(most))
        let free = shares(most: most, tokens: 2000) { (1 + 0.1 * random.uniform()) / Double($0) }
        #expect(free[most, default: 0] > 0.95)
        let crowded = shares(most: most, tokens: 2000) { (1 + 0.1 * random.uniform()) * Double($0) }
        #expect(crowded[1, default: 0] > 0.9)
        #expect(crowded.keys.allSatisfy { (1...most).contains($0) })
    }

    /// When the processors are free again, all threads come back.
    @Test func comesBack() {
        var team = TeamSize(most: 2)
        for _ in 0..<200 { team.note(seconds: Double(team.size)) }
        var last: [Int] = []
        for _ in 0..<600 {
            team.note(seconds: 1 / Double(team.size))
            last.append(team.size)
        }
        #expect(last.suffix(100).filter { $0 == 2 }.count > 90)
    }

    @Test func oneThreadStaysOne() {
        for most in [0, 1] { #expect(Array(shares(most: most, tokens: 100) { _ in 1 }.keys) == [1]) }
    }
}
