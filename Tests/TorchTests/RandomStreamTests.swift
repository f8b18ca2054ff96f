import Formats
import TestSupport
import Testing
import Torch

/// Named random streams against numpy's Philox, and their distributions.
struct RandomStreamTests {
    @Test(arguments: [(0, ""), (42, "model.layers.0.q_proj.lora_A"), (-1, "Größe 🌱"), (Int.min, "a\u{0}b")])
    func wordsAreNumpys(_ seed: Int, _ name: String) async throws {
        let seed = UInt64(bitPattern: Int64(seed))
        var stream = Seed(seed).stream(name)
        let keyRequest: KeyedList<JSON> = ["seed": JSON(String(seed)), "name": JSON(name)]
        let key = try await Oracle.shared.call("torch.philox_key", keyRequest)
        #expect(key[0]?.string == String(stream.key.0) && key[1]?.string == String(stream.key.1))
        let words = try await Oracle.shared.call("torch.philox_words", ["key": key, "count": 1003])
        let expected = try #require(words.array).map { $0.string ?? "" }
        #expect((0..<1003).map { _ in String(stream.next()) } == expected)
    }

    @Test func uniformAndNormalAreOfTheWords() throws {
        var words = Seed(9).stream("x")
        var uniform = Seed(9).stream("x")
        for _ in 0..<100 { #expect(uniform.uniform() == Double(words.next() >> 11) / 0x1p53) }
        var tensors = Seed(9).stream("x")
        var numbers = Seed(9).stream("x")
        let drawn = try Tensor.uniform([3, 5], in: -2..<6, from: &tensors).values(as: Float.self)
        #expect(drawn == (0..<15).map { _ in Float(-2 + 8 * numbers.uniform()) })
        let normal = try Tensor.normal([4], mean: 1, standardDeviation: 3, from: &tensors).values(as: Float.self)
        #expect(normal == (0..<4).map { _ in Float(1 + 3 * numbers.normal()) })
        #expect(tensors.next() == numbers.next(), "both have used as many words")
    }

    @Test func namesAndSeedsSeparate() throws {
        let names = ["a", "b", "ab", "ba", "", "a\u{0}", "é", "e\u{301}"]
        var firsts = Set<UInt64>()
        for seed in [0, 1, 256, UInt64.max] {
            for name in names {
                var stream = Seed(seed).stream(name)
                firsts.insert(stream.next())
            }
        }
        #expect(firsts.count == 4 * names.count)
        // The order of creation and what others draw do not matter.
        var first = Seed(5).stream("first")
        var second = Seed(5).stream("second")
        let mixed = (0..<20).map { _ in (first.next(), second.next()) }
        var laterSecond = Seed(5).stream("second")
        let alone = (0..<20).map { _ in laterSecond.next() }
        #expect(mixed.map(\.1) == alone)
        // A copy goes on by itself.
        var copy = first
        #expect(copy.next() == first.next())
    }

    @Test func distributionsHaveTheirMoments() throws {
        var stream = Seed(11).stream("moments")
        let count = 200_000
        let uniform = try Tensor.uniform([count], in: -1..<3, from: &stream).values(as: Double.self)
        #expect(uniform.allSatisfy { $0 >= -1 && $0 < 3 })
        let normal = try Tensor.normal([count], mean: 2, standardDeviation: 0.5, from: &stream).values(as: Double.self)
        func moments(_ values: [Double]) -> (mean: Double, deviation: Double, skew: Double, kurtosis: Double) {
            let n = Double(values.count)
            let mean = values.reduce(0, +) / n
            func central(_ power: Int) -> Double {
                values.reduce(0) { sum, value in
                    sum + (0..<power).reduce(1.0) { product, _ in product * (value - mean) }
                } / n
            }
            let variance = central(2)
            return (
                mean, variance.squareRoot(), central(3) / (variance * variance.squareRoot()),
                central(4) / (variance * variance)
            )
        }
        let flat = moments(uniform)
        #expect(abs(flat.mean - 1) < 0.013 && abs(flat.deviation - 4 / 12.0.squareRoot()) < 0.007)
        #expect(abs(flat.skew) < 0.02 && abs(flat.kurtosis - 1.8) < 0.01)
        let bell = moments(normal)
        #expect(abs(bell.mean - 2) < 0.006 && abs(bell.deviation - 0.5) < 0.004)
        #expect(abs(bell.skew) < 0.03 && abs(bell.kurtosis - 3) < 0.06)
        // Neighbours do not depend on each other.
        let lag = zip(normal, normal.dropFirst()).reduce(0) { $0 + ($1.0 - 2) * ($1.1 - 2) } / Double(count) / 0.25
        #expect(abs(lag) < 0.012)
    }

    @Test func belowIsEvenAndBounded() {
        var stream = Seed(2).stream("below")
        #expect(stream.below(1) == 0 && stream.below(0) == 0 && stream.below(-3) == 0)
        for bound in [2, 3, 7, 10] {
            let draws = 60_000
            var counts = [Int](repeating: 0, count: bound)
            for _ in 0..<draws { counts[stream.below(bound)] += 1 }
            let expected = Double(draws) / Double(bound)
            let chiSquare = counts.reduce(0) { $0 + (Double($1) - expected) * (Double($1) - expected) / expected }
            // Five deviations above the mean of the distribution with bound - 1 degrees of freedom.
            #expect(chiSquare < Double(bound - 1) + 5 * (2 * Double(bound - 1)).squareRoot(), "below(\(bound))")
        }
        // Three quarters of all words: a modulo would hit the lower third twice as often.
        let large = 3 << 61
        let low = (0..<30_000).count { _ in stream.below(large) < 1 << 61 }
        #expect(abs(low - 10_000) < 500)
        #expect((0..<1000).allSatisfy { _ in (0..<Int.max).contains(stream.below(.max)) })
    }

    @Test func permutationsAreComplete() {
        var stream = Seed(4).stream("order")
        for count in [0, 1, 2, 17, 1000] { #expect(stream.permutation(count).sorted() == Array(0..<count)) }
        var seen: [[Int]: Int] = [:]
        for _ in 0..<12_000 { seen[stream.permutation(4), default: 0] += 1 }
        #expect(seen.count == 24 && seen.values.allSatisfy { abs($0 - 500) < 120 })
        var again = Seed(4).stream("order")
        var other = Seed(4).stream("order")
        #expect(again.permutation(50) == other.permutation(50))
    }

    @Test func uniformStaysBelowItsBound() throws {
        var stream = Seed(8).stream("narrow")
        // Float has few numbers here, so that rounding would often reach the bound.
        let range = 1.0..<1.0 + 0x1p-22
        let values = try Tensor.uniform([4000], in: range, from: &stream).values(as: Double.self)
        #expect(values.allSatisfy { range.contains($0) } && Set(values).count == 2)
    }

    @Test func dtypesAreConvertedFromFloat() throws {
        for dtype in [DType.bfloat16, .float16, .float64] {
            var one = Seed(6).stream("t")
            var two = Seed(6).stream("t")
            let own = try Tensor.normal([2, 9], from: &one, dtype: dtype)
            #expect(try own.isIdentical(to: Tensor.normal([2, 9], from: &two).to(dtype: dtype)))
        }
        var stream = Seed(6).stream("none")
        #expect(try Tensor.normal([0, 3], from: &stream).shape == [0, 3])
    }

    @Test func generatorsAreReproducible() throws {
        let stream = Seed(13).stream("dropout")
        func draw(_ generator: Generator) throws -> Tensor {
            try callTensor("aten::bernoulli.p", Tensor.zeros([500]), 0.25, generator)
        }
        let one = try Generator(stream)
        let two = try Generator(stream)
        let first = try draw(one)
        _ = try callTensor("aten::randn", [64], Argument.none, Argument.none, Argument.none)
        #expect(try first.isIdentical(to: draw(two)))
        #expect(try !first.isIdentical(to: draw(one)), "it goes on")
        #expect(try !first.isIdentical(to: draw(Generator(Seed(14).stream("dropout")))))
        let share: Double = try first.to(dtype: .float64).mean().item()
        #expect(abs(share - 0.25) < 0.1)
    }
}
