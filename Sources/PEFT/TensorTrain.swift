import Foundation
import Torch

/// A matrix as a tensor train: reshaped row by row into an array of many modes, with one small core a mode.
///
/// With cores `G_k [r_(k-1), n_k, r_k]` between ranks of 1 at both ends, entry `(i_1, ..., i_D)` of the array is the
/// product of the matrices `G_k[:, i_k, :]`. Modes need not end where rows do.
struct TensorTrain {
    /// The sizes of the modes; their product is the number of entries.
    let modes: [Int]
    /// The ranks between neighbouring modes.
    let rank: Int
    let rows: Int
    let columns: Int

    /// A train for a matrix; its modes lie between 4 and 16 where the sizes allow.
    init(rows: Int, columns: Int, rank: Int) {
        self.init(rows: rows, columns: columns, rank: rank, modes: Self.modes(of: rows) + Self.modes(of: columns))
    }

    /// A train for a factor between a layer's width and the rank of its update, in the modes of LoRETTA's authors where
    /// they give some.
    init(rows: Int, columns: Int, rank: Int, updateRank: Int) {
        let width = rows == updateRank ? columns : rows
        if let modes = Self.authorsModes[updateRank]?[width], rows * columns == updateRank * width {
            self.init(rows: rows, columns: columns, rank: rank, modes: modes)
        } else {
            self.init(rows: rows, columns: columns, rank: rank)
        }
    }

    /// By the rank of the update and the width, in the order of the rows' and columns' entries.
    private static let authorsModes: [Int: [Int: [Int]]] = [
        8: [
            768: [8, 8, 12, 8], 1024: [4, 8, 8, 8, 4], 2304: [8, 8, 8, 4, 9], 4096: [16, 16, 8, 4, 4],
            5120: [8, 8, 10, 8, 8], 8192: [4, 16, 16, 16, 4],
        ],
        64: [
            768: [8, 8, 12, 8, 8], 1024: [4, 8, 8, 8, 8, 4], 2304: [8, 8, 8, 8, 8, 9], 4096: [16, 16, 16, 4, 4, 4],
            5120: [5, 8, 8, 16, 8, 8], 8192: [4, 16, 16, 16, 8, 4],
        ],
    ]

    /// A train of given modes.
    init(rows: Int, columns: Int, rank: Int, modes: [Int]) {
        (self.rows, self.columns, self.rank) = (rows, columns, rank)
        self.modes = modes.isEmpty ? [1] : modes
    }

    /// The shapes of the cores.
    var coreShapes: [[Int]] {
        modes.indices.map { [$0 == 0 ? 1 : rank, modes[$0], $0 == modes.count - 1 ? 1 : rank] }
    }

    /// The entries of the cores, whatever the rank.
    var count: Double { coreShapes.reduce(0) { $0 + $1.reduce(1) { $0 * Double($1) } } }

    /// Random cores, for which every entry of the matrix has mean 0 and a given variance.
    ///
    /// - Parameters:
    ///   - variance: That of an entry.
    ///   - stream: Where the numbers come from.
    func start(variance: Double, from stream: inout RandomStream) throws -> [Tensor] {
        // An entry is the sum of one product of D numbers for each path through the ranks.
        let deviation = pow(variance, 0.5 / Double(modes.count))
        return try coreShapes.map { shape in
            try Tensor.normal(shape, standardDeviation: deviation / Double(shape[2]).squareRoot(), from: &stream)
        }
    }

    /// The matrix `[rows, columns]` of cores.
    func matrix(_ cores: [Tensor]) throws -> Tensor {
        var product: Tensor?  // [n_1 ... n_k, r_k]
        for core in cores {
            let flat = try core.reshaped([core.size(0), -1])
            product = try (product.map { try $0.matmul(flat) } ?? flat).reshaped([-1, core.size(2)])
        }
        return try (product ?? Tensor.ones([1])).reshaped([rows, columns])
    }

    /// A number as a product of numbers up to 16, of similar size; a larger prime stays whole.
    static func modes(of size: Int) -> [Int] {
        var (primes, rest, candidate) = ([Int](), size, 2)
        while rest > 1 {
            if candidate * candidate > rest { candidate = rest }
            while rest % candidate == 0 {
                primes.insert(candidate, at: 0)
                rest /= candidate
            }
            candidate += 1
        }
        for count in 1...max(primes.count, 1) {
            var modes = [Int](repeating: 1, count: count)
            for prime in primes {
                if let smallest = modes.indices.min(by: { modes[$0] < modes[$1] }) { modes[smallest] *= prime }
            }
            if modes.allSatisfy({ $0 <= 16 || primes.contains($0) }) { return modes.filter { $0 > 1 } }
        }
        return primes
    }
}
