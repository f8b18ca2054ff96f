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
    private var products = Products()
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
    /// They run one after the other, each with its own weight, which comes from memory as in the step. Of a shape counts
    /// the layout that takes less time in all.
    ///
    /// - Parameters:
    ///   - backbone: The model.
    ///   - tokens: The tokens of the step.
    /// - Throws: `TorchError` when memory is short.
    func measureProducts(of backbone: any Backbone, tokens: Int) throws {
        var shapes: [ProductShape: ProductTimes] = [:]
        try withoutGrad {
            for linear in backbone.linears {
                let weight = try linear.weight.values(dtype: backbone.dtype)
                for isBackward in [false, true] {
                    let matrix = try isBackward ? weight.transposed() : weight
                    let shape = ProductShape(sizes: matrix.shape, isBackward: isBackward)
                    var times = try shapes[shape] ?? ProductTimes(of: weight, matrix, tokens: tokens)
                    try times.add(matrix)
                    shapes[shape] = times
                }
            }
        }
        products = shapes.values.reduce(into: Products()) {
            $0.plain += $1.plain
            $0.packed += $1.packed
            $0.best += min($1.plain, $1.packed)
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
private struct Products {
    var plain = 0.0
    var packed = 0.0
    var best = 0.0
}

private struct ProductShape: Hashable {
    var sizes: [Int]
    var isBackward: Bool
}

/// Seconds of the products of one shape.
private struct ProductTimes {
    private(set) var plain = 0.0
    private(set) var packed = 0.0
    /// What the weights are multiplied with, and how often in a step: in chunks, as the loss has them.
    private let vectors: Tensor
    private let chunks: Double

    /// Makes ready, so that nothing is measured for the first time.
    init(of weight: Tensor, _ matrix: Tensor, tokens: Int) throws {
        let count = min(tokens, SupervisedObjective().tokensOfChunk(of: weight, vocabulary: weight.size(0)))
        // Values that differ: a product of ones draws less power, and so may run faster.
        let values = try Tensor.arange(count * matrix.size(1), dtype: .float32, device: weight.device).cos()
        vectors = try values.to(dtype: weight.dtype).reshaped([count, matrix.size(1)])
        chunks = Double(tokens) / Double(count)
        for layout in [matrix, try packedWeight(matrix, rows: count)] { _ = try unrecordedProduct(vectors, layout) }
    }

    mutating func add(_ matrix: Tensor) throws {
        plain += try seconds(matrix)
        packed += try seconds(packedWeight(matrix, rows: vectors.size(0)))
    }

    private func seconds(_ layout: Tensor) throws -> Double {
        let start = ContinuousClock.now
        _ = try unrecordedProduct(vectors, layout)
        return start.duration(to: .now) / .seconds(1) * chunks
    }
}
