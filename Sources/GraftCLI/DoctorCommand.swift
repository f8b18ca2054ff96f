import ArgumentParser
import Foundation
import Graft

/// `graft doctor`: what is there and whether it works.
struct DoctorCommand: ParsableCommand {
    static let configuration = CommandConfiguration(
        commandName: "doctor",
        abstract: "Show versions, the engine, the machine and what was fetched.",
        discussion: "The exit code is 1 when the engine cannot compute.")

    @Flag(help: "Write JSON.")
    var json = false

    func run() throws {
        let engine = Result { try EngineFacts() }
        let machine = MachineFacts()
        var report: KeyedList<JSON> = ["graft": .string(graftVersion), "swift": .string(swiftVersion)]
        switch engine {
        case .success(let facts): report["engine"] = facts.json
        case .failure(let error): report["engine"] = ["works": false, "error": .string("\(error)")]
        }
        report["machine"] = machine.json
        report["assets"] = Assets().json

        try json ? Output.write(.object(report)) : Output.write(Self.text(report))
        if case .failure = engine { throw ExitCode(ExitStatus.failed) }
    }

    /// `key  value` lines, the groups' keys below their names.
    private static func text(_ report: KeyedList<JSON>) -> String {
        var lines: [(name: String, value: String)] = []
        for (key, value) in report {
            guard let group = value.object else {
                lines.append((key, plain(value, key)))
                continue
            }
            lines.append((key, ""))
            for (key, value) in group {
                let name = key.hasSuffix("_bytes") ? String(key.dropLast(6)) : key
                lines.append(("  " + name.replacing("_", with: " "), plain(value, key)))
            }
        }
        return aligned(lines)
    }

    private static func plain(_ value: JSON, _ key: String) -> String {
        switch value {
        case .null: "unknown"
        case .bool(let flag): flag ? "yes" : "no"
        case .integer(let number): key.hasSuffix("_bytes") ? Units.bytes(Int(number)) : "\(number)"
        case .string(let text): text
        case .array(let items): items.isEmpty ? "none" : items.map { plain($0, key) }.joined(separator: ", ")
        default: value.compact
        }
    }
}

/// LibTorch as it answers.
private struct EngineFacts {
    let json: JSON

    /// - Throws: `TorchError` when the engine cannot be loaded, or computes wrongly.
    init() throws {
        let product = try Tensor([1, 2, 3, 4] as [Float], shape: [2, 2]).matmul(
            Tensor([5, 6] as [Float], shape: [2, 1]))
        guard try product.values(as: Float.self) == [17, 39] else {
            throw TorchError("the engine computes a wrong matrix product: build it again with 'make engine'")
        }
        let cuda = Result { try Device.isCUDAAvailable() }
        var facts: KeyedList<JSON> = [
            "works": true, "libtorch": .string(try Machine.libTorchVersion()),
            "libtorch_path": .string(try Machine.libTorchPath()), "shim_path": .string(try Machine.shimPath()),
            "vector_instructions": .string(try Machine.cpuCapability()), "threads": JSON(try Machine.threads()),
        ]
        facts["process_groups"] = .string(try ProcessGroup.obstacle() ?? "gloo")
        switch cuda {
        case .success(let isThere):
            facts["device"] = isThere ? "cuda" : "cpu"
            facts["cuda"] = .bool(isThere)
        case .failure(let error):
            facts["device"] = "cpu"
            facts["cuda"] = .string("\(error)")
        }
        json = .object(facts)
    }
}

/// The computer.
private struct MachineFacts {
    var json: JSON {
        let memory = Self.memory()
        return [
            "system": .string(ProcessInfo.processInfo.operatingSystemVersionString),
            "processor": Self.processor().map { .string($0) } ?? .null,
            "matrix_units": JSON(Machine.matrixFeatures.map { .string($0) }),
            "auto_dtype": .string("\(Precision.auto.dtype(on: .cpu))"),
            "block_products": .string(PackedMatrix.kernels),
            "cores": JSON(ProcessInfo.processInfo.activeProcessorCount),
            "memory_bytes": JSON(memory.total), "memory_free_bytes": memory.available.map { JSON($0) } ?? .null,
        ]
    }

    /// The first processor's name, from the system's table.
    private static func processor() -> String? {
        fields(of: "/proc/cpuinfo").first { $0.key == "model name" || $0.key == "Model" }?.value
    }

    private static func memory() -> (total: Int, available: Int?) {
        let kilobytes = fields(of: "/proc/meminfo").first { $0.key == "MemAvailable" }?.value.split(separator: " ")
            .first
        let total = Int(clamping: ProcessInfo.processInfo.physicalMemory)
        return (total, kilobytes.flatMap { Int($0) }.map { $0 * 1024 })
    }

    private static func fields(of path: String) -> [(key: String, value: String)] {
        let text = (try? String(contentsOfFile: path, encoding: .utf8)) ?? ""
        return text.split(separator: "\n").compactMap { line in
            guard let colon = line.firstIndex(of: ":") else { return nil }
            let value = line[line.index(after: colon)...]
            return (line[..<colon].trimmingCharacters(in: .whitespaces), value.trimmingCharacters(in: .whitespaces))
        }
    }
}

/// What the set-up fetched.
private struct Assets {
    var json: JSON {
        let folders = ModelCatalog.assetFolders().filter { FileManager.default.fileExists(atPath: $0) }
        let models = ModelCatalog.aliases.sorted { $0.key < $1.key }.filter { _, file in
            folders.contains { FileManager.default.fileExists(atPath: $0 + "/" + file) }
        }
        return [
            "folder": folders.first.map { .string($0) } ?? .string("not found: run 'make setup'"),
            "models": JSON(models.map { .string($0.key) }), "data": JSON(Self.data(folders).map { .string($0) }),
        ]
    }

    /// The folders beside those of models.
    private static func data(_ folders: [String]) -> [String] {
        let models = Set(ModelCatalog.aliases.values.compactMap { $0.split(separator: "/").first.map(String.init) })
        let names = folders.flatMap { (try? FileManager.default.contentsOfDirectory(atPath: $0)) ?? [] }
        return Set(names).subtracting(models).filter { !$0.hasPrefix(".") }.sorted()
    }
}
