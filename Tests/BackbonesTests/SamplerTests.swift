import Backbones
import Formats
import TestSupport
import Testing
import Torch

@Suite struct SamplerTests {
    struct Case: Sendable, CustomTestStringConvertible {
        var temperature = 1.0
        var topK: Int?
        var topP = 1.0
        var penalty = 1.0
        /// Rounds logits, so that many are equal.
        var hasTies = false

        var testDescription: String {
            "temperature \(temperature), top-k \(topK ?? 0), top-p \(topP), penalty \(penalty), ties \(hasTies)"
        }
        var settings: GenerationSettings {
            GenerationSettings(temperature: temperature, topK: topK, topP: topP, repetitionPenalty: penalty)
        }
    }

    static let cases = [
        Case(), Case(temperature: 0.3), Case(temperature: 2.5), Case(topK: 1), Case(topK: 7), Case(topK: 50),
        Case(topK: 5000), Case(topP: 0.01), Case(topP: 0.5), Case(topP: 0.9), Case(topP: 0.999), Case(penalty: 1.3),
        Case(penalty: 0.7), Case(temperature: 0, penalty: 1.5), Case(topK: 9, hasTies: true),
        Case(temperature: 0.8, topK: 40, topP: 0.95, penalty: 1.1),
        Case(temperature: 1.7, topK: 200, topP: 0.6, penalty: 1.2), Case(temperature: 0.6, topP: 0.8, penalty: 1.05),
    ]

    /// The same tokens can be drawn as in transformers, with the same probabilities.
    @Test(arguments: cases, [97, 3001])
    func scoresEqualTransformers(testCase: Case, vocabulary: Int) async throws {
        let folder = try await TinyModels.shared.folder("llama", seed: 11)
        var random = SeededGenerator(seed: UInt64(vocabulary))
        let rows = 8
        let logits = random.normals(rows * vocabulary).map { testCase.hasTies ? ($0 * 4).rounded() / 2 : $0 * 4 }
        let seen = random.tokens(rows: 1, length: 30, vocabulary: vocabulary)[0]
        let files = try TemporaryFolder.lasting("scores")
        let values = try Tensor(logits, shape: [rows, vocabulary])
        try SafetensorsWriter.write(["logits": values], to: files("logits.safetensors"))
        let answer = try await Oracle.shared.call(
            "backbones.scores",
            [
                "folder": JSON(folder), "logits": JSON(files("logits.safetensors")),
                "seen": JSON(seen.map { JSON($0) }),
                "output": JSON(files("scores.safetensors")), "temperature": JSON(testCase.temperature),
                "top_k": testCase.topK.map { JSON($0) } ?? .null, "top_p": JSON(testCase.topP),
                "repetition_penalty": JSON(testCase.penalty),
            ])
        #expect(answer["processors"]?.array?.count == testCase.processors)
        let expected = try SafetensorsFile(path: files("scores.safetensors")).tensor("scores").tensor()
        let sampler = try Sampler(testCase.settings, prompt: seen)
        let found = try Tensor(
            (0..<rows).flatMap { sampler.scores(Array(logits[$0 * vocabulary..<($0 + 1) * vocabulary])) },
            shape: [rows, vocabulary])
        let isCut = try [found, expected].map { try callTensor("aten::isinf", $0) }
        #expect(try isCut[0].isIdentical(to: isCut[1]))
        let cut: Int = try callTensor("aten::sum", isCut[0]).item()
        #expect((cut > 0) == testCase.cuts(vocabulary))
        let probabilities = try [found, expected].map { try softmax($0, dtype: .float64) }
        #expect(try difference(probabilities[0], probabilities[1]) < 1e-6)
    }

    @Test func greedyTakesTheFirstOfTheHighest() throws {
        var sampler = try Sampler(GenerationSettings(), prompt: [0])
        #expect(try sampler.next([-1, 3, 2, 3]) == 1)
        #expect(try sampler.next([-.infinity, -5, -.infinity]) == 1)
    }

    @Test func penaltyActsOnWhatWasDrawn() throws {
        var sampler = try Sampler(GenerationSettings(repetitionPenalty: 2), prompt: [0])
        #expect(try sampler.next([4, 3, 1.4]) == 1)
        #expect(try sampler.next([4, 3, 2.1]) == 2)
        #expect(try sampler.next([4, 3, 2.1]) == 0)
    }

    /// Frequencies of many draws lie within five standard deviations of the probabilities.
    @Test func drawsFollowTheProbabilities() throws {
        let logits: [Float] = [0.5, -1, 2, 1.2, 0, -3]
        let settings = GenerationSettings(temperature: 1.3, seed: Seed(5))
        var sampler = try Sampler(settings, prompt: [])
        let draws = 40_000
        var counts = [Int](repeating: 0, count: logits.count)
        for _ in 0..<draws { counts[try sampler.next(logits)] += 1 }
        let expected: [Double] = try softmax(Tensor(logits.map { $0 / 1.3 }), dtype: .float64).values()
        for (count, probability) in zip(counts, expected) {
            let deviation = (Double(draws) * probability * (1 - probability)).squareRoot()
            #expect(abs(Double(count) - Double(draws) * probability) < 5 * deviation)
        }
    }

    @Test func sameSeedSameDraws() throws {
        func draws(_ seed: UInt64) throws -> [Int] {
            var sampler = try Sampler(GenerationSettings(temperature: 1, seed: Seed(seed)), prompt: [])
            let logits = [Float](repeating: 0, count: 1000)
            return try (0..<50).map { _ in try sampler.next(logits) }
        }
        #expect(try draws(1) == draws(1))
        #expect(try draws(1) != draws(2))
        // Draws use the whole vocabulary.
        #expect(try Set(draws(3)).count > 40)
    }

    @Test(arguments: [0.0, 1.0])
    func brokenLogitsAreErrors(temperature: Double) throws {
        var sampler = try Sampler(GenerationSettings(temperature: temperature, topK: 2, topP: 0.9), prompt: [])
        #expect(message { _ = try sampler.next([0, .nan, 1]) }?.contains("NaN") == true)
        #expect(message { _ = try sampler.next([0, .infinity, 1]) }?.contains("not finite") == true)
        #expect(message { _ = try sampler.next([-.infinity, -.infinity]) }?.contains("not finite") == true)
        #expect(message { _ = try sampler.next([]) }?.contains("not finite") == true)
    }

    @Test func settingsOutOfRangeAreErrors() throws {
        let wrong: [(GenerationSettings, String)] = [
            (GenerationSettings(maxTokens: 0), "maxTokens is 0"),
            (GenerationSettings(temperature: -1), "temperature is -1"),
            (GenerationSettings(temperature: .nan), "temperature is nan"),
            (GenerationSettings(topK: 0), "topK is 0"),
            (GenerationSettings(topP: 0), "topP is 0"),
            (GenerationSettings(topP: 1.5), "topP is 1.5"),
            (GenerationSettings(repetitionPenalty: 0), "repetitionPenalty is 0"),
            (GenerationSettings(stopStrings: ["a", ""]), "stopStrings"),
            (GenerationSettings(prefillTokens: 0), "prefillTokens is 0"),
        ]
        for (settings, words) in wrong {
            #expect(message { _ = try Sampler(settings, prompt: [1]) }?.contains(words) == true)
        }
    }

    @Test func stopStringsAreFoundAcrossPieces() {
        var finder = StopStringFinder(["END", "\n\n", "Ω!"])
        var given: [String] = []
        for piece in ["a E", "N", "x\n", "Ω", "Ω", "?E"] {
            let (text, found) = finder.append(piece)
            given.append(text)
            #expect(found == nil)
        }
        #expect(given == ["a ", "", "ENx", "\n", "Ω", "Ω?"])
        let (text, found) = finder.append("NDS\n\n")
        #expect(text == "")
        #expect(found == "END")
        #expect(finder.finish() == "")
    }

    /// The match that begins first counts, then the longest; without any, all text comes out.
    @Test func stopStringsAtOnePlace() {
        var finder = StopStringFinder(["bc", "abcd", "abc"])
        #expect(finder.append("xab").text == "x")
        let match = finder.append("cde")
        #expect(match.text == "" && match.found == "abcd")
        var other = StopStringFinder(["aab"])
        #expect(other.append("aaa").text == "a")
        #expect(other.append("c").text == "aac")
        #expect(other.append("aa").text == "")
        #expect(other.finish() == "aa")
        var none = StopStringFinder([])
        #expect(none.append("text").text == "text")
    }
}

extension SamplerTests.Case {
    /// How many of the four processors are at work.
    var processors: Int {
        let isSampled = temperature > 0
        return (penalty != 1 ? 1 : 0) + (isSampled && temperature != 1 ? 1 : 0) + (isSampled && topK != nil ? 1 : 0)
            + (isSampled && topP < 1 ? 1 : 0)
    }

    func cuts(_ vocabulary: Int) -> Bool {
        temperature > 0 && (topP < 1 || (topK ?? vocabulary) < vocabulary)
    }
}
