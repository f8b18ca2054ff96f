import TestSupport
import Testing
import Torch

@Suite(.serialized) struct MemoryTests {
    @Test func keptBlocksHoldWhatIsWrittenAndOutliveTheirScope() throws {
        var generator = SeededGenerator(seed: 12)
        var alive: [(tensor: Tensor, value: Double)] = []
        try Memory.keepingBlocks {
            for round in 0..<300 {
                let count = Int.random(in: 1..<900_000, using: &generator)
                alive.append((try Tensor.full([count], Double(round)), Double(round)))
                // Older tensors go, in no order, and their blocks serve later ones.
                if alive.count > 12 { alive.remove(at: Int.random(in: 0..<12, using: &generator)) }
                let other = alive[Int.random(in: alive.indices, using: &generator)]
                let sum: Double = try other.tensor.sum(dtype: .float64).item()
                #expect(sum == other.value * Double(other.tensor.count))
            }
        }
        for (tensor, value) in alive {
            let sum: Double = try tensor.sum(dtype: .float64).item()
            #expect(sum == value * Double(tensor.count))
            try tensor.fill(1)
        }
        // What was made before the scope can go within it.
        var before: Tensor? = try Tensor.ones([500_000])
        try Memory.keepingBlocks {
            let sum = try before?.sum().item(as: Double.self)
            #expect(sum == 500_000)
            before = nil
            let zero = try Tensor.zeros([500_000]).sum().item(as: Double.self)
            #expect(zero == 0)
        }
        alive = []
    }

    @Test func theSizeOfAHugeTensorIsAnError() throws {
        let text = message { try Memory.keepingBlocks { _ = try Tensor.empty([1 << 44]) } }
        #expect(text.contains("not enough memory"), "\(text)")
    }

    /// The matrix library keeps work space between products and frees it by the allocator of that later moment.
    @Test func blocksOutliveTheirKeeping() throws {
        func products(_ sizes: [Int]) throws {
            for size in sizes {
                let matrix = try Tensor.ones([size, size], dtype: .bfloat16)
                #expect(try linear(matrix, matrix).selected(0, 0).selected(0, 0).item(as: Float.self) == Float(size))
            }
        }
        var survivors: [Tensor] = []
        for round in 0..<3 {
            try Memory.keepingBlocks {
                try products([96 + round, 512, 1024])
                survivors.append(try Tensor.ones([300_000 + round]))
            }
            try products([1280, 256, 1536 + 8 * round])
            let sum: Float = try survivors[round].sum().item()
            #expect(sum == Float(300_000 + round))
        }
        survivors.removeAll()
        try products([640])
    }
}
