import Backbones
import Formats
import Torch

/// Where the time and memory of one training step go, by kind of operation.
public final class StepProfile {
    /// One kind of operation.
    public struct Row: Sendable {
        /// The kind in words.
        public var kind: String
        /// How many operators of the kind ran.
        public var calls: Int
        /// The seconds that they took, without the operators that they called.
        public var seconds: Double
        /// The bytes that they asked for.
        public var bytes: Int
    }

    /// The kinds, the longest first; empty until a step was measured.
    public private(set) var rows: [Row] = []
    /// The seconds of the whole step.
    public private(set) var seconds = 0.0
    /// The seconds that the step's products with frozen weights take by themselves, forward and backward.
    public var productSeconds: Double { products.best }
    private var products = ProductTimes()
    /// The events for Chrome's trace viewer (`chrome://tracing`, Perfetto), JSON.
    private var trace: [UInt8] = []

    /// Makes a profile without a step.
    public init() {}

    /// The step of a run that is measured, from 0: the third, when memory and threads have settled.
    static func step(of total: Int) -> Int { min(2, total - 1) }

    /// Measures a step.
    ///
    /// - Throws: `TorchError` when another profile is being made; what `body` throws.
    func measure(_ body: () throws -> Void) throws {
        try call("graft::profile_begin")
        let start = ContinuousClock.now
        let outcome = Result(catching: body)
        seconds = start.duration(to: .now) / .seconds(1)
        let texts = try callTensors("graft::profile_end")
        try outcome.get()
        trace = try texts[1].values(as: UInt8.self)
        rows = Self.rows(of: String(decoding: try texts[0].values(as: UInt8.self), as: UTF8.self))
        let rest = seconds - rows.reduce(0) { $0 + $1.seconds }
        rows.append(Row(kind: "between operators", calls: 0, seconds: max(rest, 0), bytes: 0))
        rows.sort { $0.seconds > $1.seconds }
    }

    /// Measures the products with frozen weights that a step has.
    ///
    /// - Parameters:
    ///   - backbone: The model.
    ///   - tokens: The tokens of the step.
    /// - Throws: `TorchError` when memory is short.
    func measureProducts(of backbone: any Backbone, tokens: Int) throws {
        var known: [[Int]: ProductTimes] = [:]
        products = try withoutGrad {
            try backbone.linears.reduce(into: ProductTimes()) { sum, linear in
                let shape = linear.weight.frozen.shape
                let times =
                    try known[shape] ?? Self.times(of: linear.weight.values(dtype: backbone.dtype), tokens: tokens)
                known[shape] = times
                sum.add(times)
            }
        }
    }

    /// The table, and what the products alone would take.
    public var text: String {
        var table = TextTable(.left("kind"), .right("calls"), .right("ms"), .right("share"), .right("asks for"))
        for row in rows where row.seconds > 0 || row.calls > 0 {
            table.append([
                row.kind, row.calls > 0 ? "\(row.calls)" : "", Units.fixed(row.seconds * 1000, decimals: 1),
                Units.percent(row.seconds / seconds, decimals: 1), row.bytes > 0 ? Units.bytes(row.bytes) : "",
            ])
        }
        let whole = Units.fixed(seconds * 1000, decimals: 0)
        let times = [products.best, products.plain, products.packed].map { Units.fixed($0 * 1000, decimals: 0) }
        return table.text()
            + "one step: \(whole) ms; its products with frozen weights by themselves: \(times[0]) ms, "
            + "\(Units.percent(productSeconds / seconds, decimals: 0)) of it\n"
            + "(with the weights as they are: \(times[1]) ms; packed in advance: \(times[2]) ms)\n"
    }

    /// Writes `profile.txt`, the table, and `profile.json`, the trace, to the run folder.
    ///
    /// - Throws: `FormatError` when a file cannot be written.
    func write(to layout: RunLayout) throws {
        try AtomicFile.write(text, to: layout.profile)
        try AtomicFile.write(String(decoding: trace, as: UTF8.self), to: layout.trace)
    }

    /// The seconds of a forward and a backward product, each the quickest of four, in chunks as the loss has them.
    private static func times(of weight: Tensor, tokens: Int) throws -> ProductTimes {
        let count = min(tokens, SupervisedObjective().tokensOfChunk(of: weight, vocabulary: weight.size(0)))
        return try [weight, weight.transposed()].reduce(into: ProductTimes()) { sum, matrix in
            let vectors = try Tensor.ones([count, matrix.size(1)], dtype: weight.dtype, device: weight.device)
            let quickest = try [matrix, packedWeight(matrix, rows: count)].map { layout in
                try (0..<4).reduce(Double.infinity) { least, _ in
                    let start = ContinuousClock.now
                    _ = try unrecordedProduct(vectors, layout)
                    return min(least, start.duration(to: .now) / .seconds(1) * Double(tokens) / Double(count))
                }
            }
            sum.add(ProductTimes(plain: quickest[0], packed: quickest[1], best: min(quickest[0], quickest[1])))
        }
    }

    /// Adds up the operators' lines by kind.
    package static func rows(of lines: String) -> [Row] {
        var rows: [String: Row] = [:]
        for line in lines.split(separator: "\n") {
            let fields = line.split(separator: "\t")
            guard fields.count == 4, let calls = Int(fields[1]), let time = Int(fields[2]), let bytes = Int(fields[3])
            else { continue }
            let kind = kind(of: String(fields[0]))
            var row = rows[kind] ?? Row(kind: kind, calls: 0, seconds: 0, bytes: 0)
            row.calls += calls
            row.seconds += Double(time) / 1e9
            row.bytes += bytes
            rows[kind] = row
        }
        return Array(rows.values)
    }

    /// The kind of an operator, or of a backward step, by what its name contains.
    private static func kind(of name: String) -> String {
        kinds.first { $0.parts.contains(where: name.contains) }?.kind ?? "other operators"
    }

    /// In the order in which names are compared.
    private static let kinds: [(kind: String, parts: [String])] = [
        (
            "products",
            [
                "graft::panels", "_linear_pointwise", "aten::mm", "aten::addmm", "aten::linear", "aten::matmul",
                "aten::bmm",
            ]
        ),
        ("attention", ["attention", "Attention", "softmax"]),
        ("norms", ["rms_norm", "::Norm>"]),
        ("gated activation", ["swiglu", "::Activation>", "silu"]),
        ("rotation", ["rotary", "::Rotation>"]),
        ("loss", ["cross_entropy", "ForeignFunction", "logsumexp"]),
        ("optimiser", ["adamw", "_foreach"]),
        ("adapted layers, beside their products", ["graft::linears", "::AdaptedLinears>", "graft::product"]),
        ("copies and conversions", ["copy", "aten::to", "clone", "contiguous", "aten::cat", "fill", "zero"]),
        ("sums and products of elements", ["aten::add", "aten::mul", "aten::sub", "aten::div", "aten::sum"]),
        ("selection", ["embedding", "index", "gather"]),
    ]
}

/// Seconds of products, with the weights as they are, in the layout of the library's choice, and in the quicker of both.
private struct ProductTimes {
    var plain = 0.0
    var packed = 0.0
    var best = 0.0

    mutating func add(_ other: ProductTimes) {
        plain += other.plain
        packed += other.packed
        best += other.best
    }
}
