import Crypto
import Formats
import Foundation
import PEFT
import Torch

/// All that a run goes on from: the folder `checkpoints/step-N` holds the adapter (which can be used as it is), the
/// values of everything trained with the optimiser's moments, and what they belong to.
///
/// Learning rate, order of the data and dropout masks are functions of seed and step, so there is nothing of them to
/// save. `trainer_state.json` holds the SHA-256 of every other file, by which a torn checkpoint is noticed.
package struct TrainingCheckpoint: Equatable {
    /// The optimiser steps taken.
    private(set) var step = 0
    /// The tokens seen.
    private(set) var tokens = 0
    /// The seconds of training so far.
    private(set) var seconds = 0.0
    /// The sum of the losses that the next report covers.
    private(set) var unreportedLoss = 0.0
    /// The supervised tokens of that sum.
    private(set) var unreportedTargets = 0
    /// The tokens seen since the last report.
    private(set) var unreportedTokens = 0
    /// The seconds since the last report.
    private(set) var unreportedSeconds = 0.0
    /// The digest of the recipe's fixed part.
    let recipe: String
    /// The digest of the data.
    let data: String

    private static let stateName = "trainer_state.json"
    private static let tensorsName = "training_state.safetensors"

    /// The state of a run before its first step.
    package init(recipe: String, data: String) {
        self.recipe = recipe
        self.data = data
    }

    /// Counts a step.
    ///
    /// - Parameters:
    ///   - tokens: The tokens of its rows.
    ///   - lossSum: The sum of the losses of its supervised tokens.
    ///   - supervised: How many those are.
    ///   - seconds: How long it took.
    package mutating func countStep(tokens: Int, lossSum: Double, supervised: Int, seconds: Double) {
        step += 1
        self.tokens += tokens
        self.seconds += seconds
        unreportedLoss += lossSum
        unreportedTargets += supervised
        unreportedTokens += tokens
        unreportedSeconds += seconds
    }

    /// Begins what the next report covers.
    mutating func reported() {
        (unreportedLoss, unreportedTargets, unreportedTokens, unreportedSeconds) = (0, 0, 0, 0)
    }

    /// Goes to the step of the process that keeps the checkpoints; what is reported is known there alone.
    mutating func follow(step: Int) { self.step = step }

    // MARK: Writing

    /// Writes the files of a checkpoint into an empty folder.
    ///
    /// - Throws: `FormatError` when the disk refuses them.
    package func write(to folder: String, adapter: Adapter, model: String, optimiser: AdamW) throws {
        try adapter.save(to: folder, baseModel: model)
        try SafetensorsWriter.write(
            Self.state(adapter, optimiser), to: joined(folder, Self.tensorsName), metadata: [:])
        var digests = KeyedList<JSON>()
        for name in try RunLayout.names(in: folder).sorted() {
            digests.appendIfNew(key: name, value: JSON(try Self.digest(of: joined(folder, name))))
        }
        let json: JSON = [
            "step": JSON(step), "tokens": JSON(tokens), "seconds": JSON(seconds),
            "unreported": [
                "loss": JSON(unreportedLoss), "targets": JSON(unreportedTargets), "tokens": JSON(unreportedTokens),
                "seconds": JSON(unreportedSeconds),
            ],
            "recipe": JSON(recipe), "data": JSON(data), "files": .object(digests),
        ]
        try AtomicFile.write(json.pythonText() + "\n", to: joined(folder, Self.stateName))
    }

    /// The tensors of a run by name: what is trained, what stays fixed beside it, and the optimiser's moments.
    private static func state(_ adapter: Adapter, _ optimiser: AdamW) -> KeyedList<Tensor> {
        var state = adapter.state
        for (name, tensor) in optimiser.state { state.appendIfNew(key: name, value: tensor) }
        return state
    }

    // MARK: Reading

    /// Reads what a checkpoint belongs to and checks that its files are whole.
    ///
    /// - Throws: `FormatError` when a file is missing, changed or no checkpoint's.
    package init(folder: String) throws {
        let path = joined(folder, Self.stateName)
        let json = try JSON.read(path: path)
        func value<Value>(_ key: String, _ read: (JSON) -> Value?) throws -> Value {
            guard let value = json[key].flatMap(read) else {
                throw FormatError(file: path, place: .key(key), "the key is missing or has a value of another form")
            }
            return value
        }
        // What no run counts to could overflow in the one that goes on.
        func count(_ json: JSON) -> Int? { json.int.flatMap { (0...1 << 53).contains($0) ? $0 : nil } }
        step = try value("step", count)
        tokens = try value("tokens", count)
        seconds = try value("seconds", \.double)
        let unreported = try value("unreported") { $0.object == nil ? nil : $0 }
        unreportedLoss = unreported["loss"]?.double ?? 0
        unreportedTargets = unreported["targets"].flatMap(count) ?? 0
        unreportedTokens = unreported["tokens"].flatMap(count) ?? 0
        unreportedSeconds = unreported["seconds"]?.double ?? 0
        recipe = try value("recipe", \.string)
        data = try value("data", \.string)
        for (name, digest) in try value("files", \.object) {
            guard isPlainFileName(name) else {
                throw FormatError(file: path, place: .key(name), "expected the name of a file in the same folder")
            }
            guard try digest.string == Self.digest(of: joined(folder, name)) else {
                throw FormatError(file: joined(folder, name), "the file is not as it was written; it is damaged")
            }
        }
    }

    /// Puts the values of a checkpoint into an adapter and an optimiser of the same run.
    ///
    /// - Throws: `FormatError` when names or shapes differ.
    package func restore(from folder: String, adapter: Adapter, optimiser: AdamW) throws {
        let file = try SafetensorsFile(path: joined(folder, Self.tensorsName))
        let state = Self.state(adapter, optimiser)
        if let name = file.tensors.keys.first(where: { state[$0] == nil }) {
            throw FormatError(
                file: file.file.path, place: .key(name), "the run has no such tensor; it is another run's")
        }
        try withoutGrad {
            for (name, tensor) in state {
                let stored = try file.tensor(name)
                guard stored.shape == tensor.shape else {
                    throw FormatError(
                        file: file.file.path, place: .key(name),
                        "the tensor has shape \(stored.shape); the run needs \(tensor.shape)")
                }
                try tensor.copy(from: stored.tensor())
            }
        }
        optimiser.resume(step: step)
    }

    private static func digest(of path: String) throws -> String {
        let file = try MappedFile(path: path)
        var hash = SHA256()
        withExtendedLifetime(file) { hash.update(bufferPointer: UnsafeRawBufferPointer(file.bytes)) }
        return hexadecimal(hash.finalize())
    }
}
