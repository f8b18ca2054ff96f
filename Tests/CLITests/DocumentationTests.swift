import Foundation
import TestSupport
import Testing

@Suite("Documentation that repeats what the program or a source file says")
struct DocumentationTests {
    private func page(_ name: String) throws -> String {
        try String(contentsOfFile: RepositoryPaths.root + "/" + name, encoding: .utf8)
    }

    @Test func theReadmeHasTheRegistrysTable() async throws {
        let table = try await graft("methods", "--markdown").output
        #expect(table.contains("`lorta`"))
        #expect(try page("README.md").contains(table), "README.md is stale: run 'make docs'")
    }

    @Test func theTablesOfScaleAreTheScripts() async throws {
        let script = try RunningCommand(
            RepositoryPaths.required(RepositoryPaths.oraclePython), [RepositoryPaths.root + "/scripts/scale.py"])
        let tables = try await script.wait().output.components(separatedBy: "\n\n")
        #expect(tables.count == 5)
        let text = try page("docs/scale.md")
        for table in tables {
            #expect(
                text.contains(table.trimmingCharacters(in: .newlines)),
                "docs/scale.md is stale: run 'python3 scripts/scale.py docs/scale.md'")
        }
    }

    @Test func theWorkedMethodIsTheOneThatRuns() throws {
        let source = try page("Examples/CustomMethod/LoRAXS.swift")
        #expect(try page("CONTRIBUTING.md").contains("```swift\n\(source)```"))
    }

    @Test func theReadmesLibraryLinesAreTheQuickstart() throws {
        let quickstart = try page("Examples/Quickstart/main.swift")
        let load = #"LanguageModel.load("smollm2-135m")"#
        let attach = #"model.attach("lora", ["r": 8, "target_modules": "all-linear"])"#
        for line in [load, attach] {
            #expect(try quickstart.contains(line) && page("README.md").contains(line))
        }
    }
}
