import Backbones
import Formats
import Torch

/// Several adapters made into one, which is plain LoRA: with every scale in the factors, any program reads it alike.
public struct AdapterCombination {
    /// What combining has made.
    public struct Report: Sendable {
        /// The rank of the new adapter.
        public let rank: Int
        /// The layers that it adapts.
        public let layers: Int
        /// The norm of what the rank cuts off, as a share of the update's norm; 0 where nothing is cut.
        public let lost: Double
    }

    /// How updates become one.
    public var rule: CombinationRule
    /// A weight for each adapter; nil: 1 for each.
    public var weights: [Double]?
    /// The share of entries that `ties`, `dare` and `magnitude_prune` keep.
    public var density: Double?
    /// How `ties` elects signs.
    public var majoritySign = CombinationRule.MajoritySign.total
    /// The rank of factored results; nil: the largest rank of plain LoRA adapters, and for others the lowest that holds
    /// the update.
    public var rank: Int?
    /// What `dare` drops is drawn from streams below it.
    public var seed = Seed(42)

    /// Makes a combination.
    public init(_ rule: CombinationRule, weights: [Double]? = nil, density: Double? = nil) {
        self.rule = rule
        self.weights = weights
        self.density = density
    }

    /// Combines adapters and writes the folder of the new one.
    ///
    /// - Parameters:
    ///   - folders: Folders that Graft or peft wrote, at least one.
    ///   - output: The new folder; its parent must exist.
    ///   - backbone: Gives the base model, without an adapter; asked for where an adapter is not plain LoRA.
    /// - Throws: `PEFTError` when settings or adapters do not go together, or the result is no low-rank update;
    ///   `FormatError` when a file cannot be read or written; what `backbone` throws.
    public func combine(
        _ folders: [String], to output: String, backbone: () throws -> any Backbone
    ) throws -> Report {
        let weights = try validated(count: folders.count)
        let sources = try folders.map { try EffectiveUpdates($0, backbone: backbone) }
        try requireOneModel(sources)
        let isPlain = sources.allSatisfy(\.isPlainLoRA)
        let most = rank ?? (isPlain ? sources.flatMap { $0.updates.values.map(\.rank) }.max() : nil)
        var (layers, total, lost) = (KeyedList<(down: Tensor, up: Tensor)>(), 0.0, 0.0)
        for path in Self.paths(of: sources) {
            let parts = zip(sources, weights).compactMap { source, weight in
                source.updates[path].map { (update: $0, weight: weight) }
            }
            let result = try withoutGrad { try combined(parts, path: path, isPlain: isPlain, rank: most) }
            layers.appendIfNew(key: path, value: (result.down, result.up))
            total += result.size * result.size
            lost += result.lost * result.lost
        }
        let rank = layers.values.map { $0.down.size(0) }.max() ?? 1
        try write(layers, head: combinedHead(sources, weights), rank: rank, sources, to: output)
        return Report(rank: rank, layers: layers.count, lost: total > 0 ? (lost / total).squareRoot() : 0)
    }

    private func validated(count: Int) throws -> [Double] {
        guard count > 0 else { throw PEFTError("there is no adapter to combine; name at least one folder") }
        let weights = weights ?? Array(repeating: 1, count: count)
        guard weights.count == count, weights.allSatisfy(\.isFinite) else {
            throw PEFTError("weights: expected \(count) finite numbers, one for each adapter, found \(weights)")
        }
        if let density { try requireDensity(density) }
        guard density != nil || !rule.needsDensity else {
            throw PEFTError("density: \(rule.rawValue) keeps a share of the entries; say which, such as 0.2")
        }
        if let rank { try requirePositive(rank, "rank") }
        return weights
    }

    /// All layers, in the order in which the adapters name them.
    private static func paths(of sources: [EffectiveUpdates]) -> [String] {
        var paths = KeyedList<Bool>()
        for source in sources { for path in source.updates.keys { paths.appendIfNew(key: path, value: true) } }
        return paths.keys
    }

    private func requireOneModel(_ sources: [EffectiveUpdates]) throws {
        for (source, other) in zip(sources, sources.dropFirst()) {
            guard source.labels == other.labels else {
                throw PEFTError(
                    "\(source.folder) \(source.task) and \(other.folder) \(other.task): adapters that tell texts apart "
                        + "can be combined where all have the same labels in the same order")
            }
            guard source.head?.shape == other.head?.shape else {
                throw PEFTError(
                    "the heads are \(source.head?.shape ?? []) in \(source.folder) and \(other.head?.shape ?? []) in "
                        + "\(other.folder): the adapters are for different models")
            }
            for (path, update) in other.updates {
                guard let first = source.updates[path], first.shape != update.shape else { continue }
                throw PEFTError(
                    "\(path) is \(first.shape) in \(source.folder) and \(update.shape) in \(other.folder): the adapters "
                        + "are for different models")
            }
        }
    }

    /// The rule on the heads of classifiers, which lie beside the updates and are not thinned out; nil without.
    private func combinedHead(_ sources: [EffectiveUpdates], _ weights: [Double]) throws -> Tensor? {
        let heads = sources.compactMap(\.head)
        guard !heads.isEmpty else { return nil }
        return try withoutGrad {
            try rule.merged(heads, weights: weights, density: 1, sign: majoritySign) {
                seed.stream("dare/score/\($0)")
            }
        }
    }

    // MARK: One layer

    private struct Factored {
        let down: Tensor
        let up: Tensor
        /// The norm of the update, and of what was cut off.
        var size = 0.0
        var lost = 0.0
    }

    private typealias Part = (update: EffectiveUpdates.Update, weight: Double)

    private func combined(_ parts: [Part], path: String, isPlain: Bool, rank: Int?) throws -> Factored {
        switch rule {
        case .cat: return try concatenated(parts, path: path)
        case _ where isPlain && rule.actsOnFactors: return try combinedFactors(parts, path: path)
        default: return try factored(parts, path: path, rank: rank)
        }
    }

    private func concatenated(_ parts: [Part], path: String) throws -> Factored {
        let factors = try parts.map { part in
            guard case .factors(let down, let up, let scale) = part.update else {
                throw PEFTError("cat: the update of \(path) is no product of thin factors; use svd with a rank")
            }
            return (try down * (scale * part.weight), up)
        }
        return Factored(
            down: try Tensor.concatenate(factors.map(\.0)), up: try Tensor.concatenate(factors.map(\.1), dimension: 1))
    }

    /// The rule on A and on B by themselves, each with the root of weight and scale.
    private func combinedFactors(_ parts: [Part], path: String) throws -> Factored {
        var (downs, ups, roots, signs) = ([Tensor](), [Tensor](), [Double](), [Double]())
        for part in parts {
            guard case .factors(let down, let up, let scale) = part.update else { continue }
            downs.append(down)
            ups.append(up)
            roots.append(abs(part.weight * scale).squareRoot())
            signs.append(part.weight * scale < 0 ? -1 : 1)
        }
        guard let first = downs.first, downs.allSatisfy({ $0.shape == first.shape }) else {
            throw PEFTError(
                "\(rule.rawValue): \(path) has factors of the ranks \(downs.map { $0.size(0) }), which cannot be added; "
                    + "use cat, or a rule that ends in svd")
        }
        func merged(_ factors: [Tensor], _ weights: [Double], _ name: String) throws -> Tensor {
            try rule.merged(factors, weights: weights, density: density ?? 1, sign: majoritySign) {
                seed.stream("dare/\(path)/\(name)/\($0)")
            }
        }
        return Factored(
            down: try merged(downs, zip(roots, signs).map { $0 * $1 }, "lora_A"), up: try merged(ups, roots, "lora_B"))
    }

    /// The rule on the effective updates, factored by the largest singular directions.
    private func factored(_ parts: [Part], path: String, rank: Int?) throws -> Factored {
        let weights = parts.map(\.weight)
        let (u, s, v) =
            try thinSingularParts(parts)
            ?? {
                let update = try rule.merged(
                    parts.map { try $0.update.dense() }, weights: weights, density: density ?? 1, sign: majoritySign
                ) { seed.stream("dare/\(path)/delta/\($0)") }
                let parts = try callTensors("aten::linalg_svd", update.to(dtype: .float64), false)
                return (parts[0], parts[1], parts[2])
            }()
        let strengths: [Double] = try s.values()
        let kept = min(try rank ?? exactRank(strengths, parts[0].update.shape, path), strengths.count)
        func norm(_ values: some Sequence<Double>) -> Double { values.reduce(0) { $0 + $1 * $1 }.squareRoot() }
        return Factored(
            down: try v.narrowed(0, start: 0, length: kept).to(dtype: .float32).contiguous(),
            up: try (u * s).narrowed(1, start: 0, length: kept).to(dtype: .float32).contiguous(),
            size: norm(strengths), lost: norm(strengths.dropFirst(kept)))
    }

    /// The singular parts of a weighted sum of products of thin factors, without forming it; nil for any other.
    private func thinSingularParts(_ parts: [Part]) throws -> (Tensor, Tensor, Tensor)? {
        guard [.svd, .linear].contains(rule) else { return nil }
        var (downs, ups) = ([Tensor](), [Tensor]())
        for part in parts {
            guard case .factors(let down, let up, let scale) = part.update else { return nil }
            downs.append(try down.to(dtype: .float64) * (scale * part.weight))
            ups.append(try up.to(dtype: .float64))
        }
        let left = try callTensors("aten::linalg_qr", Tensor.concatenate(ups, dimension: 1), "reduced")
        let right = try callTensors("aten::linalg_qr", Tensor.concatenate(downs).transposed(0, 1), "reduced")
        let core = try callTensors("aten::linalg_svd", left[1].matmul(right[1].transposed(0, 1)), false)
        return (try left[0].matmul(core[0]), core[1], try core[2].matmul(right[0].transposed(0, 1)))
    }

    /// The lowest rank that holds an update up to the rounding of fp32.
    private func exactRank(_ strengths: [Double], _ shape: [Int], _ path: String) throws -> Int {
        let limit = 1e-6 * strengths.reduce(0) { $0 + $1 * $1 }.squareRoot()
        var (rank, tail) = (strengths.count, 0.0)
        while rank > 1, (tail + strengths[rank - 1] * strengths[rank - 1]).squareRoot() <= limit {
            tail += strengths[rank - 1] * strengths[rank - 1]
            rank -= 1
        }
        guard rank * (shape[0] + shape[1]) < shape[0] * shape[1] else {
            throw PEFTError(
                "the update of \(path) has the rank \(rank) of \(strengths.count), so that a low-rank adapter that equals "
                    + "it would be as large as the weight; give a rank to approximate it, or merge it into the model")
        }
        return rank
    }

    // MARK: The folder

    private func write(
        _ layers: KeyedList<(down: Tensor, up: Tensor)>, head: Tensor?, rank: Int, _ sources: [EffectiveUpdates],
        to output: String
    ) throws {
        var method = LoRA()
        (method.r, method.loraAlpha) = (rank, Double(rank))
        method.loraDropout = (sources[0].configuration.method as? LoRA)?.loraDropout ?? 0
        var configuration = AdapterConfiguration(method, selection: Self.selection(of: sources, paths: layers.keys))
        if let name = sources[0].configuration.remaining["base_model_name_or_path"] {
            configuration.remaining["base_model_name_or_path"] = name
        }
        var tensors = KeyedList<Tensor>()
        if let head {
            configuration.selection.train(head: "score")
            tensors[SequenceClassifier.headKey] = head
        }
        for (path, factors) in layers {
            // Rows of zeros up to the common rank change nothing, and any program reads them.
            let missing = rank - factors.down.size(0)
            func filled(_ tensor: Tensor, _ dimension: Int) throws -> Tensor {
                guard missing > 0 else { return tensor }
                var shape = tensor.shape
                shape[dimension] = missing
                return try Tensor.concatenate([tensor, Tensor.zeros(shape)], dimension: dimension)
            }
            guard try factors.down.isAllFinite(), try factors.up.isAllFinite() else {
                throw PEFTError("\(path): the combined update has values that are no finite numbers")
            }
            tensors.appendIfNew(key: adapterKey(path, "lora_A.weight"), value: try filled(factors.down, 0))
            tensors.appendIfNew(key: adapterKey(path, "lora_B.weight"), value: try filled(factors.up, 1))
        }
        try AdapterFolder.write(configuration, tensors, labels: sources[0].labels, to: output)
    }

    /// Names where names are all that selects in every adapter, else the layers' whole paths.
    private static func selection(of sources: [EffectiveUpdates], paths: [String]) -> Selection {
        var names: Set<String> = []
        var isByName = true
        for source in sources {
            let selection = source.configuration.selection
            let targets = selection.targetModules?.names ?? []
            names.formUnion(targets)
            isByName =
                isByName && !targets.isEmpty && selection.excludeModules == nil && selection.layersToTransform == nil
                && (selection.modulesToSave == nil || source.labels != nil)
        }
        var selection = Selection()
        selection.targetModules = .names(isByName ? names.sorted() : paths)
        return selection
    }
}

extension EffectiveUpdates {
    /// What the adapter is for, as a part of a sentence.
    fileprivate var task: String { labels.map { "tells \($0.joined(separator: ", ")) apart" } ?? "writes texts" }
}

extension EffectiveUpdates.Update {
    /// The rank of the factors; of a dense update the most that there can be.
    fileprivate var rank: Int {
        switch self {
        case .factors(let down, _, _): down.size(0)
        case .dense(let update): min(update.size(0), update.size(1))
        }
    }
}
