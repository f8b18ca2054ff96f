import Torch

#if canImport(Glibc)
import Glibc
#elseif canImport(Musl)
import Musl
#elseif canImport(Darwin)
import Darwin
#endif

/// Chooses tokens from logits: repetition penalty, temperature, top-k and top-p, in this order and with the meaning
/// that they have in transformers.
package struct Sampler {
    private let settings: GenerationSettings
    private var random: RandomStream
    private var seen: Set<Int>

    /// Makes the sampler of one text.
    ///
    /// - Throws: `ModelError` naming the setting that is out of range.
    package init(_ settings: GenerationSettings, prompt: [Int]) throws {
        try settings.validate()
        self.settings = settings
        random = settings.seed.stream("generate")
        seen = settings.repetitionPenalty == 1 ? [] : Set(prompt)
    }

    /// Chooses the next token and remembers it.
    ///
    /// - Parameter logits: One number for each token of the vocabulary.
    /// - Throws: `ModelError` when none of them is a finite number, or one is no number at all.
    package mutating func next(_ logits: [Float]) throws -> Int {
        guard !logits.contains(where: \.isNaN) else {
            throw ModelError("the model's logits are not numbers (NaN): its weights or adapter are broken")
        }
        let scores = scores(logits)
        let best = try likeliest(scores)
        let token = settings.temperature == 0 ? best : draw(scores, highest: scores[best])
        if settings.repetitionPenalty != 1 { seen.insert(token) }
        return token
    }

    /// The logits after all changes; minus infinity for tokens that cannot be drawn.
    package func scores(_ logits: [Float]) -> [Float] {
        var scores = logits
        penalise(&scores)
        guard settings.temperature > 0 else { return scores }
        if settings.temperature != 1 {
            let temperature = Float(settings.temperature)
            for index in scores.indices { scores[index] /= temperature }
        }
        if let count = settings.topK { keepHighest(count, &scores) }
        if settings.topP < 1 { keepNucleus(settings.topP, &scores) }
        return scores
    }

    private func penalise(_ scores: inout [Float]) {
        let penalty = Float(settings.repetitionPenalty)
        for token in seen where scores.indices.contains(token) {
            let score = scores[token]
            scores[token] = score < 0 ? score * penalty : score / penalty
        }
    }

    /// Removes all scores below the `count`-th highest; equal ones stay.
    private func keepHighest(_ count: Int, _ scores: inout [Float]) {
        guard count < scores.count else { return }
        let limit = highest(count, of: scores)
        for index in scores.indices where scores[index] < limit { scores[index] = -.infinity }
    }

    /// The `count`-th highest number, by Hoare's selection.
    private func highest(_ count: Int, of scores: [Float]) -> Float {
        var values = scores
        return values.withUnsafeMutableBufferPointer { values in
            var (low, high) = (0, values.count - 1)
            let wanted = count - 1
            while low < high {
                let pivot = values[low + (high - low) / 2]
                var (left, right) = (low, high)
                while left <= right {
                    while values[left] > pivot { left += 1 }
                    while values[right] < pivot { right -= 1 }
                    guard left <= right else { break }
                    values.swapAt(left, right)
                    left += 1
                    right -= 1
                }
                if wanted <= right {
                    high = right
                } else if wanted >= left {
                    low = left
                } else {
                    break
                }
            }
            return values[wanted]
        }
    }

    /// Removes the least likely tokens whose probabilities sum to at most `1 - mass`; one always stays.
    private func keepNucleus(_ mass: Double, _ scores: inout [Float]) {
        guard let top = scores.max(), top > -.infinity else { return }
        let weights = scores.map { exp(Double($0 - top)) }
        let total = weights.reduce(0, +)
        // Tokens of at most (1 - mass) / count each sum to at most 1 - mass: they go, and need not be sorted.
        let certain = (1 - mass) / Double(scores.count) * total
        var removed = 0.0
        var rest: [Int] = []
        for index in scores.indices {
            if weights[index] > certain {
                rest.append(index)
            } else {
                removed += weights[index]
                scores[index] = -.infinity
            }
        }
        rest.sort { (scores[$0], $0) < (scores[$1], $1) }
        let limit = Float(1 - mass)
        for index in rest.dropLast() {
            removed += weights[index]
            guard Float(removed / total) <= limit else { break }
            scores[index] = -.infinity
        }
    }

    /// The first of the highest scores.
    private func likeliest(_ scores: [Float]) throws -> Int {
        var best = 0
        for index in scores.indices where scores[index] > scores[best] { best = index }
        guard scores.indices.contains(best), scores[best].isFinite else {
            throw ModelError("the model's logits are not finite: its weights or adapter are broken")
        }
        return best
    }

    /// A token with the probability that the softmax of the scores gives it.
    private mutating func draw(_ scores: [Float], highest: Float) -> Int {
        let weights = scores.map { $0 == -.infinity ? 0 : exp(Double($0 - highest)) }
        var left = random.uniform() * weights.reduce(0, +)
        var last = 0
        for index in weights.indices where weights[index] > 0 {
            last = index
            left -= weights[index]
            if left < 0 { break }
        }
        return last
    }
}
