import Formats
import Foundation
import TestSupport
import Testing
import Training

@Suite struct RunFolderTests {
    @Test func aNewFolderIsMadeWithThoseAboveIt() throws {
        try withTemporaryFolder { folder in
            let run = try RunFolder.create(folder("a/b/run/"))
            try AtomicFile.write("seed: 1\n", to: run.layout.recipe)
            run.close()
            #expect(try folder.contents(of: "a/b/run") == ["recipe.yaml"])
            // An empty folder serves as well.
            try FileManager.default.createDirectory(atPath: folder("empty"), withIntermediateDirectories: false)
            try RunFolder.create(folder("empty")).close()
            #expect(try folder.contents() == ["a", "empty"])
        }
    }

    @Test func aRunThatWroteNothingLeavesNothing() throws {
        try withTemporaryFolder { folder in
            try RunFolder.create(folder("a/b/run")).close()
            #expect(try folder.contents() == [])
            _ = try RunFolder.create(folder("gone"))
            #expect(try folder.contents() == [])
        }
    }

    @Test func aFolderInUseByOthersIsRefusedAndLeftAsItWas() throws {
        try withTemporaryFolder { folder in
            try folder.write("x", to: "notes/mine.txt")
            #expect(throws: RunFolderError.notEmpty(path: folder("notes"), isRun: false)) {
                try RunFolder.create(folder("notes"))
            }
            #expect(try folder.contents(of: "notes") == ["mine.txt"])
            try folder.write("x", to: "run/recipe.yaml")
            let error = #expect(throws: RunFolderError.self) { try RunFolder.create(folder("run")) }
            #expect(error == .notEmpty(path: folder("run"), isRun: true))
            #expect(error?.description.contains("add --resume") == true)
            #expect(throws: RunFolderError.notAFolder(path: folder("run/recipe.yaml"))) {
                try RunFolder.create(folder("run/recipe.yaml"))
            }
            #expect(throws: RunFolderError.notAFolder(path: folder("run/recipe.yaml"))) {
                try RunFolder.create(folder("run/recipe.yaml/deeper/still"))
            }
        }
    }

    @Test func aRunKilledBeforeItsRecipeWasWholeLeavesTheFolderFree() throws {
        try withTemporaryFolder { folder in
            try folder.write("x", to: "run/recipe.yaml.tmp-0123456789abcdef")
            let run = try RunFolder.create(folder("run"))
            #expect(try folder.contents(of: "run") == [".lock"])
            run.close()
        }
    }

    @Test func aCheckpointThatCannotBeWrittenLeavesNothing() throws {
        struct Full: Error {}
        try withTemporaryFolder { folder in
            let run = try RunFolder.create(folder("run"))
            #expect(throws: Full.self) { try run.writeCheckpoint(step: 1) { _ in throw Full() } }
            #expect(try folder.contents(of: "run") == [".lock"])
            try run.writeCheckpoint(step: 2) { try AtomicFile.write("x", to: $0 + "/x") }
            #expect(throws: Full.self) { try run.writeCheckpoint(step: 3) { _ in throw Full() } }
            #expect(try run.layout.checkpoints().map(\.step) == [2])
        }
    }

    @Test func theBestCheckpointStaysBesideTheNewest() throws {
        try withTemporaryFolder { folder in
            let run = try RunFolder.create(folder("run"))
            for step in 1...6 {
                try run.writeCheckpoint(step: step, keep: 2, keeping: step < 3 ? nil : 2) {
                    try AtomicFile.write("x", to: $0 + "/x")
                }
            }
            #expect(try run.layout.checkpoints().map(\.step) == [2, 5, 6])
        }
    }

    @Test func onlyARunCanBeResumed() throws {
        try withTemporaryFolder { folder in
            #expect(throws: RunFolderError.nothingToResume(path: folder("absent"), exists: false)) {
                try RunFolder.resume(folder("absent"))
            }
            try folder.write("x", to: "notes/mine.txt")
            let error = #expect(throws: RunFolderError.self) { try RunFolder.resume(folder("notes")) }
            #expect(error?.description.contains("no recipe.yaml") == true)
            #expect(try folder.contents() == ["notes"])
            #expect(try folder.contents(of: "notes") == ["mine.txt"])
        }
    }

    @Test func twoRunsCannotHoldOneFolder() async throws {
        try await withTemporaryFolder { folder in
            let run = try RunFolder.create(folder("run"))
            let error = #expect(throws: RunFolderError.self) { try RunFolder.create(folder("run")) }
            #expect(error?.description.contains("process \(ProcessInfo.processInfo.processIdentifier) on ") == true)
            // Another process is kept out too, and a new file under the name of the lock would not help it.
            #expect(try await Oracle.shared.call("report.can_lock", ["path": JSON(folder("run/.lock"))]) == false)
            try AtomicFile.write("seed: 1\n", to: run.layout.recipe)
            run.close()
            #expect(try folder.contents(of: "run") == ["recipe.yaml"])
            let again = try RunFolder.resume(folder("run"))
            #expect(throws: RunFolderError.self) { try RunFolder.resume(folder("run")) }
            again.close()
        }
    }

    @Test func aLockFileThatAKilledRunLeftDoesNotBlock() throws {
        try withTemporaryFolder { folder in
            try folder.write("process 1 on elsewhere\n", to: "run/.lock")
            try RunFolder.create(folder("run")).close()
            #expect(try folder.contents(of: "run") == [])
        }
    }

    @Test func missingPermissionIsAClearSentence() async {
        // In a process of its own, because the superuser must become somebody else first.
        await #expect(processExitsWith: .success) {
            try withTemporaryFolder { folder in
                try FileManager.default.createDirectory(atPath: folder("closed"), withIntermediateDirectories: false)
                chmod(folder.path, 0o755)
                chmod(folder("closed"), 0o555)
                if geteuid() == 0 { try #require(seteuid(65534) == 0) }
                for path in [folder("closed"), folder("closed/run"), folder("closed/run/deeper")] {
                    let error = #expect(throws: FormatError.self) { try RunFolder.create(path) }
                    #expect(error?.message.hasSuffix("permission denied") == true)
                    #expect(error?.file?.hasPrefix(folder("closed")) == true)
                }
                if getuid() == 0 { seteuid(0) }
            }
        }
    }

    @Test func checkpointsRotateAndListInTheOrderOfTheirSteps() throws {
        try withTemporaryFolder { folder in
            let run = try RunFolder.create(folder("run"))
            for step in [5, 50, 500, 1_234_567] {
                let checkpoint = try run.writeCheckpoint(step: step) { path in
                    try AtomicFile.write("\(step)", to: path + "/state")
                }
                #expect(try String(contentsOfFile: checkpoint.path + "/state", encoding: .utf8) == "\(step)")
            }
            #expect(
                try folder.contents(of: "run/checkpoints")
                    == ["step-000005", "step-000050", "step-000500", "step-1234567"])
            // What is not a checkpoint is neither listed nor removed.
            for name in ["step-7", "step-+00007", "step-000007x", "notes"] {
                try folder.write("x", to: "run/checkpoints/\(name)/file")
            }
            try folder.write("x", to: "run/checkpoints/step-000008")
            #expect(try run.layout.checkpoints().map(\.step) == [5, 50, 500, 1_234_567])

            // A run that went on from step 50 keeps two of its own course.
            try run.removeCheckpoints(after: 50)
            #expect(try run.layout.checkpoints().map(\.step) == [5, 50])
            try run.writeCheckpoint(step: 60, keep: 2) { _ in }
            #expect(try run.layout.checkpoints().map(\.step) == [50, 60])
            try run.writeCheckpoint(step: 70, keep: 0) { _ in }
            #expect(try run.layout.checkpoints().map(\.step) == [70])
            #expect(
                try folder.contents(of: "run/checkpoints")
                    == ["notes", "step-+00007", "step-000007x", "step-000008", "step-000070", "step-7"])
        }
    }

    @Test func aCheckpointThatFailsLeavesTheEarlierOnes() throws {
        struct Failure: Error {}
        try withTemporaryFolder { folder in
            let run = try RunFolder.create(folder("run"))
            try run.writeCheckpoint(step: 1) { try AtomicFile.write("old", to: $0 + "/state") }
            for step in [1, 2] {
                #expect(throws: Failure.self) {
                    try run.writeCheckpoint(step: step, keep: 1) { path in
                        try AtomicFile.write("new", to: path + "/state")
                        throw Failure()
                    }
                }
            }
            #expect(try folder.contents(of: "run/checkpoints") == ["step-000001"])
            #expect(try String(contentsOfFile: folder("run/checkpoints/step-000001/state"), encoding: .utf8) == "old")

            try run.writeAdapter { try AtomicFile.write("1", to: $0 + "/a") }
            try run.writeAdapter { try AtomicFile.write("2", to: $0 + "/b") }
            #expect(throws: Failure.self) { try run.writeAdapter { _ in throw Failure() } }
            #expect(try folder.contents(of: "run/adapter") == ["b"])
        }
    }

    @Test func aResumeClearsAwayWhatAKilledRunWasWriting() throws {
        try withTemporaryFolder { folder in
            let files = [
                "recipe.yaml", ".lock", "recipe.yaml.tmp-0123abc", "loss.svg.tmp-0123abc",
                "adapter.old-0123abc/weights",
                "adapter.tmp-0123abc/weights", "mine.tmp-0123abc", "checkpoints/step-000010/state",
                "checkpoints/step-000010.old-abcdefg/state", "checkpoints/step-000020.old-abcdefg/state",
                "checkpoints/step-000030.tmp-abcdefg/state",
            ]
            for file in files { try folder.write(file, to: "run/" + file) }
            let run = try RunFolder.resume(folder("run"))
            #expect(try run.layout.checkpoints().map(\.step) == [10, 20])
            run.close()
            // The adapter and the checkpoint 20 had been moved aside for successors that never came: they are back.
            #expect(try folder.contents(of: "run") == ["adapter", "checkpoints", "mine.tmp-0123abc", "recipe.yaml"])
            #expect(try folder.contents(of: "run/checkpoints") == ["step-000010", "step-000020"])
            for step in ["10", "20"] {
                let state = try String(
                    contentsOfFile: folder("run/checkpoints/step-0000\(step)/state"), encoding: .utf8)
                #expect(state.hasSuffix(step == "10" ? "step-000010/state" : "step-000020.old-abcdefg/state"))
            }
        }
    }
}
