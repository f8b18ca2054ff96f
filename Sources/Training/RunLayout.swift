import Formats
import Foundation

/// Where everything is in a run folder.
///
///     recipe.yaml                    all that is needed to run again
///     data.json                      what became of each file's rows
///     metrics.jsonl                  a line a step
///     events.out.tfevents.*          the same curves for TensorBoard
///     loss.svg                       the same curves as a picture
///     profile.txt, profile.json      where a step's time went, where that was asked for
///     adapter/                       the trained adapter
///     best/                          the adapter with the lowest held-out loss
///     checkpoints/step-000050/       what `--resume` goes on from
public struct RunLayout: Sendable, Hashable {
    /// The run folder.
    public let path: String

    /// The layout of a run folder, which need not exist.
    public init(_ path: String) { self.path = path }

    /// The recipe file.
    public var recipe: String { joined(path, "recipe.yaml") }
    /// What became of each file's rows.
    public var data: String { joined(path, "data.json") }
    /// The metrics file.
    public var metrics: String { joined(path, "metrics.jsonl") }
    /// The picture of the loss.
    public var lossPlot: String { joined(path, "loss.svg") }
    /// The table of what one step took.
    public var profile: String { joined(path, "profile.txt") }
    /// The events of that step for Chrome's trace viewer.
    public var trace: String { joined(path, "profile.json") }
    /// The folder of the trained adapter.
    public var adapter: String { joined(path, "adapter") }
    /// The folder of the adapter with the lowest held-out loss.
    public var best: String { joined(path, "best") }
    /// The folder of the checkpoints.
    public var checkpointsFolder: String { joined(path, "checkpoints") }

    /// The folder of the checkpoint of a step.
    public func checkpoint(step: Int) -> String { joined(checkpointsFolder, Self.checkpointName(step: step)) }

    /// A checkpoint: the optimiser steps taken before it and its folder.
    public struct Checkpoint: Sendable, Hashable {
        /// The optimiser steps taken before it.
        public let step: Int
        /// Its folder.
        public let path: String
    }

    /// The whole checkpoints, the oldest first.
    ///
    /// Folders of other names are passed over.
    ///
    /// - Throws: `FormatError` when the folder of the checkpoints is there but cannot be read.
    public func checkpoints() throws -> [Checkpoint] {
        guard PathKind(checkpointsFolder) == .folder else { return [] }
        return try Self.names(in: checkpointsFolder).compactMap { name in
            Self.checkpointStep(name: name).map { Checkpoint(step: $0, path: joined(checkpointsFolder, name)) }
        }.filter { PathKind($0.path) == .folder }.sorted { $0.step < $1.step }
    }

    static func checkpointName(step: Int) -> String {
        let digits = "\(step)"
        return "step-" + String(repeating: "0", count: max(0, 6 - digits.count)) + digits
    }

    static func checkpointStep(name: String) -> Int? {
        guard name.hasPrefix("step-"), let step = Int(name.dropFirst(5)), step >= 0 else { return nil }
        return checkpointName(step: step) == name ? step : nil
    }

    static func names(in folder: String) throws -> [String] {
        do {
            return try FileManager.default.contentsOfDirectory(atPath: folder)
        } catch {
            throw FormatError(file: folder, "cannot read this folder; check that you may")
        }
    }
}
