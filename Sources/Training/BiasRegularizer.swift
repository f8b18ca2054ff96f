import Torch

/// BA-LoRA's three terms on a model's outputs (arXiv 2408.04556): consistency with the pretrained model, diversity, and
/// the share of the first `k` singular values.
///
/// With `Zp` and `Zf` the logits of the pretrained and of the tuned model:
/// - next tokens: `KL(Pp || Pf)` and `sum Pf log Pf`, means over the supervised positions, and
///   `- (sigma_1 + .. + sigma_k) / (sum sigma + 1e-10)` of the logits `[positions, vocabulary]` of each row, a mean
///   over rows, so that it does not depend on how rows share passes;
/// - classes: the mean squared difference of the rows of `Z / |Z|`, the mean over classes of squared covariances beside
///   the diagonal, and the singular values of the step's `[rows, classes]`.
package struct BiasRegularizer: Regularizer {
    /// What the logits are of.
    package enum Form: Sendable { case tokens, classes }

    let consistency: Double
    let diversity: Double
    let svd: Double
    let rank: Int
    let form: Form

    package let measures = ["consistency", "diversity", "svd_ratio"]

    /// Makes the terms with their weights.
    package init(consistency: Double, diversity: Double, svd: Double, rank: Int, form: Form) {
        self.consistency = consistency
        self.diversity = diversity
        self.svd = svd
        self.rank = rank
        self.form = form
    }

    /// Covariances and singular values of classes are those of all rows of a step together.
    package var needsOtherLogits: Bool { form == .classes && (diversity > 0 || svd > 0) }

    package func results(of pass: ForwardPass) throws -> (terms: [LossTerm], measures: [Double]) {
        let parts = try form == .tokens ? tokens(pass) : classes(pass)
        let values: [Double] = try parts.map { try $0.detached().item() }
        let weights = [consistency, diversity, svd]
        return (zip(parts, weights).filter { $0.1 > 0 }.map { LossTerm($0.0, per: .step, weight: $0.1) }, values)
    }

    // MARK: Next tokens

    /// The three terms of a pass as parts of the step's means.
    private func tokens(_ pass: ForwardPass) throws -> [Tensor] {
        let states = try pass.supervisedStates()
        let reference = pass.reference()
        let counts = pass.batch.supervisedCounts
        let pretrained =
            try consistency > 0
            ? withoutGrad { try reference.supervisedStates().split(counts, dimension: 0) } : []
        func terms(_ row: Int, _ states: Tensor) throws -> Tensor {
            let tuned = try pass.logits(of: states)
            let none = try Tensor.zeros([], device: tuned.device)
            let fixed = try pretrained.isEmpty ? nil : withoutGrad { try reference.logits(of: pretrained[row]) }
            return try Tensor.stack([
                fixed.map { try Self.divergence(from: $0, to: tuned) / pass.totals[.tokens] } ?? none,
                diversity > 0 ? Self.negativeEntropy(tuned) / pass.totals[.tokens] : none,
                svd > 0 ? leadingShare(tuned) / pass.totals[.sequences] : none,
            ])
        }
        let rows = try states.split(counts, dimension: 0)
        guard !pass.hasTrainedHead else {
            let sums = try rows.enumerated().map { try terms($0.offset, $0.element) }
            return try split(Tensor.stack(sums).sum([0]))
        }
        return try split(sum(of: rows.count, over: states, counts, terms))
    }

    private func split(_ sums: Tensor) throws -> [Tensor] { try (0..<3).map { try sums.selected(0, $0) } }

    /// The sum of three terms over rows of states, row by row, so that the logits of one row exist at a time.
    private func sum(
        of rows: Int, over states: Tensor, _ counts: [Int], _ terms: (Int, Tensor) throws -> Tensor
    ) throws -> Tensor {
        let needsGradient = isGradEnabled && states.requiresGrad
        return try withCustomGradient("bias_terms_of_frozen_head", inputs: [states]) {
            var sum = try Tensor.zeros([3], device: states.device)
            // One gradient a term, since they are scaled one by one later.
            let kept = try needsGradient ? (0..<3).map { _ in try states.zerosLike() } : []
            var start = 0
            for row in 0..<rows where counts[row] > 0 {
                let part = try states.narrowed(0, start: start, length: counts[row])
                try withGradEnabled(needsGradient) {
                    let input = try part.detached().requiringGrad(needsGradient)
                    let found = try terms(row, input)
                    sum = try withoutGrad { try sum + found.detached() }
                    guard needsGradient else { return }
                    for (index, weight) in [consistency, diversity, svd].enumerated() where weight > 0 {
                        let gradient = try gradients(
                            of: [found.selected(0, index)], with: [input], retainGraph: true)[0]
                        guard let gradient else { continue }
                        try withoutGrad {
                            try kept[index].narrowed(0, start: start, length: counts[row]).copy(from: gradient)
                        }
                    }
                }
                start += counts[row]
            }
            return (
                sum,
                { incoming in
                    let parts = try kept.enumerated().map { index, gradient in
                        try gradient * incoming.selected(0, index).to(dtype: gradient.dtype)
                    }
                    return [try parts.first.map { try parts.dropFirst().reduce($0) { try $0 + $1 } }]
                }
            )
        }
    }

    /// `KL(P || Q)` summed over the rows of two matrices of logits.
    package static func divergence(from fixed: Tensor, to tuned: Tensor) throws -> Tensor {
        let (fixed, tuned) = (try logSoftmax(fixed), try logSoftmax(tuned))
        return try (fixed.exp() * (fixed - tuned)).sum()
    }

    /// `sum P log P`, summed over the rows of a matrix of logits.
    package static func negativeEntropy(_ logits: Tensor) throws -> Tensor {
        let logarithms = try logSoftmax(logits)
        return try (logarithms.exp() * logarithms).sum()
    }

    /// Minus the share of the first singular values in the sum of all, by the smaller Gram matrix in fp64.
    package func leadingShare(_ matrix: Tensor) throws -> Tensor {
        let wide = try matrix.to(dtype: .float64)
        let gram =
            try wide.size(0) <= wide.size(1)
            ? wide.matmul(wide.transposed()) : wide.transposed().matmul(wide)
        let squares = try callTensor("aten::linalg_eigvalsh", gram)
        // What is rounding only has no direction, and so no gradient.
        let floor = try squares.detached().maximum() * 1e-12
        let isReal = try callTensor("aten::gt.Tensor", squares, floor)
        let sigma =
            try callTensor(
                "aten::where.self", isReal, squares, squares.detached().zerosLike() + 1
            ).squareRoot() * isReal.to(dtype: .float64)
        // In ascending order: the largest are the last.
        let count = min(rank, sigma.count)
        let leading = try sigma.narrowed(0, start: sigma.count - count, length: count).sum()
        return try (leading / (sigma.sum() + 1e-10)).negated().to(dtype: .float32)
    }

    // MARK: Classes

    private func classes(_ pass: ForwardPass) throws -> [Tensor] {
        let own = try pass.classLogits()
        let none = try Tensor.zeros([], device: own.device)
        let whole = try pass.otherLogits.map { try Tensor.concatenate([own, $0]) } ?? own
        // Every pass has the whole step's value, and the gradient with respect to its own rows.
        let share = Double(own.size(0)) / pass.totals[.rows]
        func shared(_ term: Tensor) throws -> Tensor { try term - term.detached() * (1 - share) }
        let fixed = try consistency > 0 ? withoutGrad { try pass.reference().classLogits() } : nil
        return [
            try fixed.map { try Self.distance($0, own) / (pass.totals[.rows] * Double(own.size(1))) } ?? none,
            try diversity > 0 ? shared(Self.covariance(whole)) : none,
            try svd > 0 ? shared(leadingShare(whole)) : none,
        ]
    }

    /// The squared difference of the rows over their lengths, summed over all entries.
    package static func distance(_ fixed: Tensor, _ tuned: Tensor) throws -> Tensor {
        func direction(_ rows: Tensor) throws -> Tensor {
            try rows / callTensor("aten::clamp_min", rows.norm([1], keepingDimensions: true), 1e-12)
        }
        return try (direction(tuned) - direction(fixed)).squared().sum()
    }

    /// The squared covariances beside the diagonal, summed and divided by the number of classes.
    package static func covariance(_ logits: Tensor) throws -> Tensor {
        let (rows, classes) = (logits.size(0), logits.size(1))
        guard rows > 1 else {
            throw TrainingError("diversity_weight needs steps of at least 2 rows; raise batch_size")
        }
        let centred = try logits - logits.mean([0], keepingDimensions: true)
        let matrix = try centred.transposed().matmul(centred) / Double(rows - 1)
        let beside = try Tensor.eye(classes, device: logits.device) * -1 + 1
        return try (matrix * beside).squared().sum() / Double(classes)
    }
}
