import Formats
import Torch

/// The version of Graft.
public let graftVersion = "0.1.0"

/// The compiler that made the program.
public let swiftVersion: String = {
    #if compiler(>=6.5)
    "6.5 or newer"
    #elseif compiler(>=6.4)
    "6.4"
    #elseif compiler(>=6.3)
    "6.3"
    #elseif compiler(>=6.2)
    "6.2"
    #else
    "6.1"
    #endif
}()

extension Recipe {
    /// What the bits of a result depend on beside the recipe: the programs, the processor's instructions, and the number
    /// of threads that share a sum.
    ///
    /// - Throws: `TorchError` when the engine cannot be loaded.
    static func currentVersions() throws -> KeyedList<String> {
        [
            "graft": graftVersion, "libtorch": try Machine.libTorchVersion(), "swift": swiftVersion,
            "cpu": try Machine.cpuCapability(), "threads": "\(try Machine.threads())",
        ]
    }

    /// What to say when a run goes on with other programs, another processor or another number of threads than it was
    /// begun with; nil where all are the same.
    ///
    /// - Parameter begun: The recipe that the run was begun with.
    func versionNote(since begun: Recipe) -> String? {
        let changes = versions.compactMap { name, now in
            begun.versions[name].flatMap { $0 == now ? nil : "\(name) \($0) then, \(now) now" }
        }
        guard !changes.isEmpty else { return nil }
        return "the run was begun with other versions (\(changes.joined(separator: "; "))): from here on its numbers "
            + "are those of an uninterrupted run but for rounding"
    }
}
