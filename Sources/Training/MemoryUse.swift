import Backbones
import Formats
import PEFT
import Torch

/// What a run does with memory.
public enum MemoryUse: String, FieldValue, CaseIterable {
    /// As little as can be: every block is computed again in the backward pass.
    case low
    /// As many blocks are computed again as it takes to fit into the memory that is free.
    case auto
    /// Everything is kept for the backward pass.
    case fast

    /// What it says about blocks, or nil where that depends on the machine.
    var checkpointing: GradientCheckpointing? {
        switch self {
        case .low: .all
        case .auto: nil
        case .fast: GradientCheckpointing.none
        }
    }
}

/// Which blocks are computed again in the backward pass instead of being kept; see `CheckpointedBlocks`.
public enum GradientCheckpointing: FieldValue, Hashable {
    case none, all
    /// So many of the blocks that need a gradient.
    case blocks(Int)

    /// What values look like.
    public static var form: String { "true, false or a number of blocks" }

    /// `true`, `false` or a number of blocks.
    public init?(json: JSON) {
        if let all = json.bool {
            self = all ? .all : .none
        } else if let count = json.int, count >= 0 {
            self = count == 0 ? .none : .blocks(count)
        } else {
            return nil
        }
    }

    /// `true`, `false` or a number of blocks.
    public var json: JSON {
        switch self {
        case .none: false
        case .all: true
        case .blocks(let count): JSON(count)
        }
    }

    /// How many of a model's blocks those are.
    func count(of blocks: Int) -> Int {
        switch self {
        case .none: 0
        case .all: blocks
        case .blocks(let count): min(count, blocks)
        }
    }
}

extension Recipe {
    /// The blocks that a run would compute again with so much memory.
    ///
    /// - Throws: What is wrong with the recipe, the model, the data or the method.
    package func checkpointing(available: Int) throws -> GradientCheckpointing {
        try TrainingSetup(self).decidedCheckpointing(available: available, asWritten: self)
    }
}

extension TrainingSetup {
    /// Decides which blocks are computed again: what the recipe says, else the fewest with which a step fits.
    ///
    /// - Parameters:
    ///   - available: The bytes that the run may take beyond what it holds; nil: what the machine says.
    ///   - written: The recipe before anything was decided; nil: this one.
    /// - Throws: ``TrainingError`` when the adapter has the blocks run in a way of its own.
    func decidedCheckpointing(
        available: Int? = nil, asWritten written: Recipe? = nil
    ) throws -> GradientCheckpointing {
        let recipe = written ?? recipe
        let wish = recipe.gradientCheckpointing ?? recipe.memory.checkpointing
        let backbone = model.backbone
        guard backbone.blockStack.execution == nil else {
            guard wish == nil || wish == GradientCheckpointing.none else {
                throw TrainingError(
                    "\(recipe.memory == .low ? "memory low" : "gradient_checkpointing") does not go with the method "
                        + "\(recipe.method), which runs the blocks in a way of its own; leave it out")
            }
            return .none
        }
        if let wish { return wish }
        guard let free = try available ?? Memory.available(on: backbone.device) else { return .none }
        let largest = try largestBatch()
        let (blocks, width) = (backbone.configuration.numHiddenLayers, backbone.dtype.byteCount)
        // A tenth is left for what others come to need meanwhile.
        let room = free - free / 10 - largest.workSpace(of: backbone)
        for count in 0..<blocks {
            let kept = CheckpointedBlocks(count: count, trained: []).memory(blocks: blocks, width: width)
            guard largest.estimate(backbone, adapter, blocks: kept).beyondLoading > room else {
                return count == 0 ? .none : .blocks(count)
            }
        }
        return .all
    }

    /// Runs `body` while blocks are computed again as the recipe says.
    ///
    /// - Throws: What `body` throws.
    func checkpointing<Result>(_ body: () throws -> Result) rethrows -> Result {
        let stack = model.backbone.blockStack
        let count = recipe.gradientCheckpointing?.count(of: stack.blocks.count) ?? 0
        guard count > 0, stack.execution == nil else { return try body() }
        stack.execution = CheckpointedBlocks(count: count, trained: adapter.trainables.map(\.tensor))
        defer { stack.execution = nil }
        return try body()
    }
}
