import Formats

#if canImport(FoundationEssentials)
import FoundationEssentials
#else
import Foundation
#endif

/// Names for models that `make setup` fetches, and the way from a name to a place.
public enum ModelCatalog {
    /// The file of each alias, below Graft's folder of assets.
    public static let aliases = ["smollm2-135m": "smollm2-135m/SmolLM2-135M-Instruct.Q4_1.gguf"]

    /// Finds a model.
    ///
    /// - Parameter name: A folder, a `.gguf` file, or an alias.
    /// - Throws: `ModelError` when there is no such file, folder or alias.
    public static func locate(_ name: String) throws -> Checkpoint.Location {
        switch PathKind(name) {
        case .folder: return .folder(name)
        case .file: return .gguf(name)
        default: break
        }
        guard let file = aliases[name] else {
            let known = aliases.keys.sorted()
            throw ModelError(
                "there is no model \"\(name)\": expected a folder, a .gguf file or an alias "
                    + "(\(known.joined(separator: ", "))).\(suggestion(for: name, in: known))")
        }
        for folder in assetFolders() where PathKind(folder + "/" + file) == .file {
            return .gguf(folder + "/" + file)
        }
        throw ModelError(
            "the model \"\(name)\" has not been fetched: run 'make setup' in Graft's folder, or name the folder that "
                + "holds assets/\(file) in GRAFT_HOME")
    }

    /// Where fetched models and data can be: `GRAFT_HOME`, then `.graft` in a folder above the program, then the
    /// place of an installed program.
    public static func assetFolders() -> [String] {
        if let home = ProcessInfo.processInfo.environment["GRAFT_HOME"], !home.isEmpty { return [home + "/assets"] }
        var folders: [String] = []
        var parts = programPath().split(separator: "/").dropLast()
        while !parts.isEmpty {
            let folder = "/" + parts.joined(separator: "/")
            folders += [folder + "/.graft/assets", folder + "/share/graft/assets"]
            parts.removeLast()
        }
        return folders
    }

    /// The real path of the running program.
    private static func programPath() -> String {
        let link = try? FileManager.default.destinationOfSymbolicLink(atPath: "/proc/self/exe")
        return link ?? URL(filePath: CommandLine.arguments.first ?? "").absoluteURL.path
    }
}
