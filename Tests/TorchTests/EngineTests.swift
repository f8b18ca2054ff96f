import Foundation
import TestSupport
import Testing
import Torch

/// The engine: what it is, what it says when it is missing, memory and threads.
struct EngineTests {
    @Test func tellsItsVersionAndPlace() throws {
        #expect(try Machine.libTorchVersion().wholeMatch(of: /2\.1[0-9]\.\d+.*/) != nil)
        let library = try Machine.libTorchPath()
        #expect(library.hasSuffix("/libtorch_cpu.so") && FileManager.default.fileExists(atPath: library))
        let shim = try Machine.shimPath()
        #expect(shim.hasSuffix("/libgraft_torch.so") && FileManager.default.fileExists(atPath: shim))
        #expect(["DEFAULT", "AVX2", "AVX512", "SVE256", "NO AVX"].contains(try Machine.cpuCapability()))
    }

    @Test(.enabled(if: FileManager.default.fileExists(atPath: "/proc/cpuinfo")))
    func matrixFeaturesAreTheSystems() throws {
        let words = try String(contentsOfFile: "/proc/cpuinfo", encoding: .utf8).split { $0.isWhitespace }
        for feature in ["amx_tile", "amx_bf16", "amx_int8", "avx512_bf16", "i8mm", "sve", "sme"] {
            #expect(Machine.matrixFeatures.contains(feature) == words.contains { $0 == feature }, "\(feature)")
        }
        let fast = words.contains { ["amx_bf16", "avx512_bf16", "bf16"].contains($0) }
        #expect(Machine.hasFastBFloat16 == fast)
    }

    @Test func missingEngineIsAClearError() async throws {
        await #expect(processExitsWith: .success) {
            setenv("GRAFT_ENGINE", "/nonexistent/libgraft_torch.so", 1)
            let expected = "GRAFT_ENGINE names /nonexistent/libgraft_torch.so, which cannot be read"
            #expect(message { _ = try Tensor([1.0]) } == expected)
            // The second attempt says the same, and what throws nothing stays quiet.
            #expect(message { _ = try Machine.threads() } == expected)
            #expect(isGradEnabled)
            #expect(withoutGrad { 7 } == 7)
        }
    }

    @Test func aFileThatIsNoEngineIsRefused() async throws {
        await #expect(processExitsWith: .success) {
            try withTemporaryFolder { folder in
                setenv("GRAFT_ENGINE", try folder.write("not a library", to: "engine.so"), 1)
                let text = message { _ = try Tensor([1.0]) }
                #expect(text.hasPrefix("the engine \(folder("engine.so")) cannot be loaded: "))
            }
        }
    }

    @Test func aLibraryWithoutTheTableIsRefused() async throws {
        let other = URL(fileURLWithPath: try Machine.libTorchPath()).deletingLastPathComponent().path + "/libc10.so"
        await #expect(processExitsWith: .success) { [other = other as String] in
            setenv("GRAFT_ENGINE", other, 1)
            let text = message { _ = try Tensor([1.0]) }
            #expect(text == "\(other) is not Graft's engine: it has no graft_torch_table")
        }
    }

    @Test func threadsAreSetAndRefused() async throws {
        await #expect(processExitsWith: .success) {
            try Machine.setThreads(3)
            #expect(try Machine.threads() == 3)
            try Machine.setThreads(1)
            #expect(try Machine.threads() == 1)
            for count in [0, -4, 5000, 1 << 40] {
                let text = message { try Machine.setThreads(count) }
                #expect(text == "an operator cannot use \(count) threads: give a number from 1 to 4096")
            }
            #expect(try Machine.threads() == 1)
        }
    }

    @Test func withoutAcceleratorDevicesAreRefused() throws {
        try #require(try !Device.isCUDAAvailable(), "this test needs a machine without CUDA")
        for device in [Device.cuda(0), .cuda(7), .cuda(-1), .cuda(4_000_000_000_000)] {
            let text = message { _ = try Tensor.zeros([2], device: device) }
            #expect(
                text.contains(#/^aten::zeros\(\[2\], float32, none, cuda:\d+\): cuda:\d+ cannot be used: /#), "\(text)")
            #expect(throws: TorchError.self) { try Memory.peak(on: device) }
            #expect(throws: TorchError.self) { try Memory.resetPeak(on: device) }
            #expect(throws: TorchError.self) { try device.synchronize() }
            #expect(throws: TorchError.self) {
                try Generator(RandomStream(seed: Seed(1), name: "x"), device: device)
            }
            #expect(throws: TorchError.self) { try Tensor([1.0]).to(device: device) }
        }
        try Device.cpu.synchronize()
        #expect(try Tensor.zeros([2]).device == .cpu)
        #expect(Device.cuda(3).description == "cuda:3" && Device.cpu.description == "cpu")
    }

    @Test func peakMemoryFollowsAllocations() async throws {
        await #expect(processExitsWith: .success) {
            let mebibyte = 1 << 20
            _ = try Tensor.zeros([1])
            try Memory.resetPeak()
            let before = Memory.peakResident()
            #expect(abs(before - Memory.resident()) < 8 * mebibyte)
            do {
                let large = try Tensor.full([64, mebibyte], 1, dtype: .uint8)
                #expect(large.count == 64 * mebibyte)
                #expect(Memory.resident() - before > 60 * mebibyte)
            }
            #expect(Memory.resident() - before < 16 * mebibyte)
            #expect(Memory.peakResident() - before > 60 * mebibyte)
            #expect(abs(try Memory.peak(on: .cpu) - Memory.peakResident()) < mebibyte)
            try Memory.resetPeak()
            #expect(Memory.peakResident() - before < 16 * mebibyte)
        }
    }
}
