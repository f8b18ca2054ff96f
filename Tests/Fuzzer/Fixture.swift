import Backbones
import Crypto
import Formats
import Foundation
import PEFT
import Torch
import Training

/// A tiny model with an adapter, made once a process.
enum Fixture {
    nonisolated(unsafe) private static var made: (backbone: any Backbone, folder: String)?

    private static func fixture() throws -> (backbone: any Backbone, folder: String) {
        if let made { return made }
        let folder = NSTemporaryDirectory() + "/graft-fuzz-model-\(getpid())"
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        try Seeds.model(in: folder)
        let backbone = try Checkpoint(.folder(folder)).backbone(dtype: .float32)
        let configuration = try AdapterConfiguration(
            method: "lora", settings: ["r": 2, "target_modules": ["q_proj", "v_proj"]])
        let adapter = try Adapter(configuration, on: backbone, seed: Seed(1))
        try adapter.save(to: folder + "/adapter", baseModel: "tiny")
        adapter.detach()
        made = (backbone, folder)
        return (backbone, folder)
    }

    // MARK: An adapter

    static func adapter() throws -> String { try fixture().folder + "/adapter" }

    static func copyAdapter(_ folder: String) throws {
        for name in ["adapter_config.json", "adapter_model.safetensors"] {
            try Seeds.write(Seeds.text(adapter() + "/" + name), folder + "/" + name)
        }
    }

    static func loadAdapter(_ folder: String) throws {
        try Adapter.load(from: folder, onto: fixture().backbone).detach()
    }

    static func compressedAdapter() throws -> String {
        let folder = try fixture().folder + "/compressed"
        if !FileManager.default.fileExists(atPath: folder) {
            _ = try AdapterCompression(density: 0.2).compress(adapter(), to: folder) { try fixture().backbone }
        }
        return folder
    }

    static func copyAdapterSettings(_ folder: String) throws {
        try Seeds.write(Seeds.text(compressedAdapter() + "/adapter_config.json"), folder + "/adapter_config.json")
    }

    /// Loads a compressed adapter; the checksum of most files is made right, so that what lies behind it is read.
    static func loadCompressed(_ folder: String) throws {
        let path = folder + "/adapter_model.ternary"
        var bytes = try Seeds.text(path)
        if bytes.count > 4, bytes.count % 8 != 0 {
            let sum = bytes.dropLast(4).withUnsafeBytes { TernaryFile.checksum($0) }
            bytes = bytes.dropLast(4) + withUnsafeBytes(of: sum.littleEndian) { Array($0) }
            try Seeds.write(bytes, path)
        }
        try loadAdapter(folder)
    }

    // MARK: A checkpoint

    nonisolated(unsafe) private static var training: (adapter: Adapter, optimiser: AdamW, folder: String)?

    private static func run() throws -> (adapter: Adapter, optimiser: AdamW, folder: String) {
        if let training { return training }
        let folder = try fixture().folder + "/checkpoint"
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
        let adapter = try Adapter.load(from: Self.adapter(), onto: fixture().backbone)
        let optimiser = try AdamW(adapter.trainables)
        try TrainingCheckpoint(recipe: "ab", data: "cd").write(
            to: folder, adapter: adapter, model: "tiny", optimiser: optimiser)
        training = (adapter, optimiser, folder)
        return (adapter, optimiser, folder)
    }

    static func trainingCheckpoint() throws -> String { try run().folder }

    static func copyTrainingCheckpoint(_ folder: String) throws {
        for name in try FileManager.default.contentsOfDirectory(atPath: trainingCheckpoint()) {
            try Seeds.write(Seeds.text(trainingCheckpoint() + "/" + name), folder + "/" + name)
        }
    }

    /// Restores a run from tensors whose digest is right.
    static func restoreTraining(_ folder: String) throws {
        let (adapter, optimiser, _) = try run()
        let state = folder + "/trainer_state.json"
        let name = "training_state.safetensors"
        guard case .object(var pairs) = try JSON.read(path: state), var files = pairs["files"]?.object else {
            throw FuzzDefect(description: "the state has no files")
        }
        files[name] = .string(digest(try Seeds.text(folder + "/" + name)))
        pairs["files"] = .object(files)
        try Seeds.write(JSON.object(pairs).compact, state)
        try TrainingCheckpoint(folder: folder).restore(from: folder, adapter: adapter, optimiser: optimiser)
    }

    private static func digest(_ bytes: [UInt8]) -> String {
        SHA256.hash(data: bytes).map { ($0 < 16 ? "0" : "") + String($0, radix: 16) }.joined()
    }
}
