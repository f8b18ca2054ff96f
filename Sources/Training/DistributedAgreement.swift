import Backbones
import Crypto
import Formats
import PEFT
import Torch

/// What all processes of a run must have in common.
extension DistributedRun {
    /// The settings that may differ from process to process: where things are, and how fast.
    private static let localKeys: Set = ["model", "data", "eval_data", "device", "threads", "versions"]

    /// Refuses a run that some of the processes begin and others go on with: they would wait for each other.
    ///
    /// - Throws: ``TrainingError`` naming the first rank that differs from rank 0.
    func requireSameTask(resumes: Bool) throws {
        let tasks = try group.gather([resumes ? 1 : 0])
        guard let rank = tasks.firstIndex(where: { $0 != tasks[0] }) else { return }
        let words = tasks[0] == [1] ? ("begins a run", "goes on with one") : ("goes on with a run", "begins one")
        throw TrainingError(
            "rank \(rank) \(words.0), but rank 0 \(words.1); start every process with the same command, --resume "
                + "included")
    }

    /// Refuses a run whose processes were given different things.
    ///
    /// - Throws: ``TrainingError`` naming the first rank that differs from rank 0, and in what.
    func requireSame(_ setup: TrainingSetup) throws {
        let facts = try Self.facts(setup)
        let all = try group.gather(Array(JSON.object(facts).compact.utf8)).map { bytes in
            try JSON.parse(String(decoding: bytes, as: UTF8.self)).object ?? [:]
        }
        guard let first = all.first else { return }
        for (rank, other) in all.enumerated() {
            // The keys of the recipe come first: a setting says more than the digest that follows from it.
            for (key, expected) in first where other[key] != expected {
                throw TrainingError(
                    "rank \(rank) has another \(key) than rank 0 (\((other[key] ?? .null).compact), not "
                        + "\(expected.compact)); start every process with the same program, recipe, model and data")
            }
        }
    }

    private static func facts(_ setup: TrainingSetup) throws -> KeyedList<JSON> {
        var facts: KeyedList<JSON> = ["version of Graft": JSON(graftVersion)]
        facts["version of LibTorch"] = JSON(try Machine.libTorchVersion())
        for field in Recipe.fields where !localKeys.contains(field.name) {
            facts[field.name] = field.read(setup.recipe)
        }
        facts["digest of the model's weights"] = JSON(try digest(of: setup.model.backbone))
        facts["digest of the data"] = JSON(setup.data.digest)
        facts["digest of the held-out data"] = JSON(setup.evalData?.digest ?? "none")
        return facts
    }

    /// The digest of names, shapes and a few values of every weight, which tells models apart without reading them whole.
    private static func digest(of backbone: any Backbone) throws -> String {
        var hash = SHA256()
        for parameter in backbone.parameters {
            hash.update(data: Array("\(parameter.path) \(parameter.frozen.shape) ".utf8))
            if let packed = parameter.packed, packed.shape[0] > 0 {
                let values: [Float] = try packed.rows(Tensor([0]), dtype: .float32).values()
                values.withUnsafeBytes { hash.update(bufferPointer: $0) }
            }
            guard parameter.frozen.isContiguous, parameter.frozen.count > 0, parameter.packed == nil else { continue }
            let values: [Float] = try parameter.frozen.reshaped([-1])
                .narrowed(0, start: 0, length: min(64, parameter.frozen.count)).values()
            values.withUnsafeBytes { hash.update(bufferPointer: $0) }
        }
        return hexadecimal(hash.finalize())
    }

    /// Refuses to go on with adapters that have come apart.
    ///
    /// - Throws: ``TrainingError`` naming the ranks whose values differ from rank 0's.
    func requireSameAdapter(_ adapter: Adapter, step: Int) throws {
        var hash = SHA256()
        for (name, tensor) in adapter.state {
            hash.update(data: Array(name.utf8))
            let plain = try tensor.detached().to(device: .cpu).contiguous()
            try plain.withUnsafeMutableBytes { hash.update(bufferPointer: UnsafeRawBufferPointer($0)) }
        }
        let digests = try group.gather(Array(hash.finalize()))
        let others = digests.indices.filter { digests[$0] != digests[0] }.map { "\($0)" }
        guard others.isEmpty else {
            throw TrainingError(
                "step \(step): the adapter of rank \(others.joined(separator: ", ")) differs from that of rank 0; the processes "
                    + "have come apart: check that all machines have the same processors and the same LibTorch")
        }
    }

    /// Brings all processes to the state of rank 0: the adapter and, in a run that goes on, the optimiser.
    ///
    /// - Parameter step: The steps that this process's state has taken; only rank 0's counts.
    /// - Returns: The steps taken.
    /// - Throws: `ProcessGroupError` when a process is lost.
    func share(step: Int, _ adapter: Adapter, _ optimiser: AdamW) throws -> Int {
        let counter = try Tensor([Int64(step)])
        try group.broadcast([counter])
        let step = Int(try counter.item(as: Int64.self))
        try group.broadcast(adapter.state.map(\.value))
        if step > 0 { try group.broadcast(optimiser.state.map(\.value)) }
        optimiser.resume(step: step)
        return step
    }

    /// Rank 0's recipes, so that the others need not see its run folder.
    ///
    /// - Parameter read: Reads the recipe that the run was begun with, and the one to go on with; called on rank 0 only.
    /// - Throws: What `read` throws; `ProcessGroupError` when a process is lost.
    func share(
        _ read: () throws -> (begun: Recipe, wanted: Recipe)
    ) throws -> (begun: Recipe, wanted: Recipe) {
        let own = isWriter ? try read() : nil
        func share(_ recipe: Recipe?) throws -> Recipe {
            let bytes = try group.broadcast(Array(recipe?.yaml().utf8 ?? "".utf8))
            return try Recipe(yaml: String(decoding: bytes, as: UTF8.self))
        }
        return (try share(own?.begun), try share(own?.wanted))
    }

    /// Whether the launcher has started the processes of a run again, with the command that began it.
    ///
    /// - Throws: `ProcessGroupError` when a process is lost.
    func startsAgain(in layout: RunLayout) throws -> Bool {
        guard group.environment.restartCount > 0 else { return false }
        return try group.broadcast([PathKind(layout.recipe) == .file ? 1 : 0]) == [1]
    }
}
