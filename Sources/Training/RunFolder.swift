import Formats
import Foundation

/// The folder that a run writes, held by one process at a time.
///
/// Adapters and checkpoints appear whole or not at all, so a run that is killed at any time leaves a folder that can be
/// resumed.
public final class RunFolder {
    /// Where everything is in the folder.
    public let layout: RunLayout
    private let lock: FolderLock
    /// The folders that were made for this run, the outermost first.
    private var madeFolders: [String]
    private var isClosed = false

    /// Takes a new folder for a run, and makes it and the folders above it where they are missing.
    ///
    /// - Parameter path: A folder that does not exist or is empty.
    /// - Throws: ``RunFolderError`` when the folder is not empty, in use, or a file; `FormatError` when it cannot be made
    ///   or written.
    public static func create(_ path: String) throws -> RunFolder {
        let folder = try RunFolder(path, made: makeFolders(path))
        // A run that was killed before its recipe was whole has left a part of it.
        try folder.clearLeftovers()
        guard try RunLayout.names(in: path).allSatisfy({ $0 == FolderLock.fileName }) else {
            throw RunFolderError.notEmpty(path: path, isRun: PathKind(folder.layout.recipe) == .file)
        }
        return folder
    }

    /// Takes the folder of an interrupted run again, and clears away what its end left half-written.
    ///
    /// - Parameter path: A folder with a `recipe.yaml`.
    /// - Throws: ``RunFolderError`` when there is no run in the folder or it is in use; `FormatError` when it cannot be
    ///   written.
    public static func resume(_ path: String) throws -> RunFolder {
        guard PathKind(RunLayout(path).recipe) == .file else {
            throw RunFolderError.nothingToResume(path: path, exists: PathKind(path) != .missing)
        }
        let folder = try RunFolder(path, made: [])
        try folder.clearLeftovers()
        return folder
    }

    private init(_ path: String, made: [String]) throws {
        layout = RunLayout(path)
        madeFolders = made
        do {
            lock = try FolderLock(folder: path)
        } catch {
            Self.removeEmpty(made)
            throw error
        }
    }

    deinit { close() }

    /// Lets other processes have the folder.
    ///
    /// Folders made for a run that then wrote nothing are removed again.
    public func close() {
        guard !isClosed else { return }
        isClosed = true
        lock.release()
        Self.removeEmpty(madeFolders)
    }

    // MARK: Adapter and checkpoints

    /// Writes the folder `adapter/`, in place of an earlier one.
    ///
    /// - Parameter body: Receives the path of a folder and writes the files into it.
    /// - Throws: `FormatError` of the file system, or what `body` throws; an earlier adapter then stays.
    public func writeAdapter(_ body: (String) throws -> Void) throws {
        try AtomicFolder.write(to: layout.adapter, body)
    }

    /// Writes the folder `best/`, in place of an earlier one.
    ///
    /// - Parameter body: Receives the path of a folder and writes the files into it.
    /// - Throws: `FormatError` of the file system, or what `body` throws; an earlier one then stays.
    public func writeBest(_ body: (String) throws -> Void) throws {
        try AtomicFolder.write(to: layout.best, body)
    }

    /// Writes a checkpoint and removes those that are too many.
    ///
    /// - Parameters:
    ///   - step: The optimiser steps taken.
    ///   - keep: How many checkpoints up to this step stay, this one included, at least one; `nil` keeps all.
    ///   - kept: The step of a checkpoint that stays beside those.
    ///   - body: Receives the path of a folder and writes the files into it.
    /// - Returns: The checkpoint.
    /// - Throws: `FormatError` of the file system, or what `body` throws; the earlier checkpoints then all stay.
    @discardableResult
    public func writeCheckpoint(
        step: Int, keep: Int? = nil, keeping kept: Int? = nil, _ body: (String) throws -> Void
    ) throws -> RunLayout.Checkpoint {
        let isNew = mkdir(layout.checkpointsFolder, 0o777) == 0
        guard isNew || errno == EEXIST else {
            throw FormatError(writing: layout.checkpointsFolder, "cannot make this folder: \(lastSystemError())")
        }
        let path = layout.checkpoint(step: step)
        do {
            try AtomicFolder.write(to: path, body)
        } catch {
            if isNew { Self.removeEmpty([layout.checkpointsFolder]) }
            throw error
        }
        if let keep {
            let upToNow = try layout.checkpoints().filter { $0.step <= step }
            for old in upToNow.dropLast(max(1, keep)) where old.step != kept { try Self.removeWhole(old.path) }
        }
        return RunLayout.Checkpoint(step: step, path: path)
    }

    /// Removes the checkpoints of later steps, for a run that goes on from an earlier one.
    public func removeCheckpoints(after step: Int) throws {
        for later in try layout.checkpoints() where later.step > step { try Self.removeWhole(later.path) }
    }

    // MARK: Clearing up

    /// Removes a folder in two moves, so that none of its name is ever there in part.
    private static func removeWhole(_ path: String) throws {
        let aside = path + temporaryMark + randomSuffix()
        guard rename(path, aside) == 0 else {
            throw FormatError(writing: path, "cannot remove this folder: \(lastSystemError())")
        }
        try? FileManager.default.removeItem(atPath: aside)
    }

    /// What stands between the name of a file or folder and a random suffix while it is written or removed.
    private static let temporaryMark = ".tmp-"
    /// The same while an old folder waits for the new one to take its place.
    private static let oldMark = ".old-"

    private func clearLeftovers() throws {
        let files = [
            layout.recipe, layout.data, layout.metrics, layout.lossPlot, layout.adapter, layout.best,
            layout.failure,
        ]
        try Self.clearLeftovers(in: layout.path) { name in files.contains(joined(layout.path, name)) }
        if PathKind(layout.checkpointsFolder) == .folder {
            try Self.clearLeftovers(in: layout.checkpointsFolder) { RunLayout.checkpointStep(name: $0) != nil }
        }
    }

    private static func clearLeftovers(in folder: String, of isOurs: (String) -> Bool) throws {
        for name in try RunLayout.names(in: folder) {
            for mark in [temporaryMark, oldMark] {
                guard let range = name.range(of: mark) else { continue }
                let final = String(name[..<range.lowerBound])
                guard isOurs(final) else { continue }
                // An old folder whose successor did not arrive is the valid one.
                if mark == oldMark, PathKind(joined(folder, final)) == .missing {
                    _ = rename(joined(folder, name), joined(folder, final))
                } else {
                    try? FileManager.default.removeItem(atPath: joined(folder, name))
                }
            }
        }
    }

    /// Makes a folder and those above it.
    ///
    /// - Returns: Those that were missing, the outermost first.
    private static func makeFolders(_ path: String) throws -> [String] {
        switch PathKind(path) {
        case .folder: return []
        case .file, .other: throw RunFolderError.notAFolder(path: path)
        case .missing: break
        }
        let parent = parentFolder(of: path)
        let made = parent == path ? [] : try makeFolders(parent)
        guard mkdir(path, 0o777) == 0 || errno == EEXIST else {
            let error = FormatError(writing: path, "cannot make this folder: \(lastSystemError())")
            removeEmpty(made)
            throw error
        }
        return made + [path]
    }

    private static func removeEmpty(_ folders: [String]) {
        for folder in folders.reversed() where rmdir(folder) != 0 { return }
    }
}

/// A folder that a run cannot use.
public enum RunFolderError: Error, Equatable, Sendable, CustomStringConvertible {
    /// A new run would mix its files with others; `isRun` tells whether they are those of an earlier run.
    case notEmpty(path: String, isRun: Bool)
    /// A file stands where the folder should be.
    case notAFolder(path: String)
    /// Another process writes the folder.
    case inUse(path: String, by: String)
    /// No run was begun in the folder.
    case nothingToResume(path: String, exists: Bool)

    /// One sentence: the path, what is wrong, and what to do.
    public var description: String {
        switch self {
        case .notEmpty(let path, true):
            "\(path) holds an earlier run; choose another folder, or add --resume to go on with that run"
        case .notEmpty(let path, false): "\(path) is not empty; choose another folder"
        case .notAFolder(let path): "\(path) is a file, not a folder; choose another path"
        case .inUse(let path, let owner):
            "\(path) is being written by another run (\(owner)); wait for it to end or choose another folder"
        case .nothingToResume(let path, true):
            "\(path) holds no run to resume (it has no recipe.yaml); check the path, or leave out --resume"
        case .nothingToResume(let path, false):
            "\(path) does not exist, so there is no run to resume; check the path, or leave out --resume"
        }
    }
}
