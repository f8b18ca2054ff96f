import CTorch

#if canImport(Glibc)
import Glibc
#elseif canImport(Musl)
import Musl
#elseif canImport(Darwin)
import Darwin
#endif

/// Facts about the machine and the engine under the program.
public enum Machine {
    /// LibTorch's version, such as `2.13.0+cpu`.
    ///
    /// - Throws: `TorchError` when the engine cannot be loaded.
    public static func libTorchVersion() throws -> String { String(cString: try Engine.api().version()) }

    /// The path of `libtorch_cpu` that was loaded.
    ///
    /// - Throws: `TorchError` when the engine cannot be loaded.
    public static func libTorchPath() throws -> String { String(cString: try Engine.api().libraryPath()) }

    /// The path of Graft's shim that was loaded.
    ///
    /// - Throws: `TorchError` when the engine cannot be loaded.
    public static func shimPath() throws -> String {
        _ = try Engine.api()
        return ctorch_shim_path().map { String(cString: $0) } ?? ""
    }

    /// The vector instructions that LibTorch uses, such as `AVX512`.
    ///
    /// - Throws: `TorchError` when the engine cannot be loaded.
    public static func cpuCapability() throws -> String { String(cString: try Engine.api().cpuCapability()) }

    /// The number of threads that one operator uses.
    ///
    /// - Throws: `TorchError` when the engine cannot be loaded.
    public static func threads() throws -> Int { Int(try Engine.api().threads()) }

    /// Sets the number of threads that one operator uses.
    ///
    /// - Throws: `TorchError` when `count` is not between 1 and 4096 or the engine cannot be loaded.
    public static func setThreads(_ count: Int) throws {
        guard (1...4096).contains(count) else {
            throw TorchError("an operator cannot use \(count) threads: give a number from 1 to 4096")
        }
        try Engine.api().setThreads(Int32(count))
    }
}

extension Machine {
    /// What the processor has for matrix products in bf16, by the system's names: some of `amx_tile`, `amx_bf16`,
    /// `amx_int8`, `avx512_bf16` (x86-64) and `bf16`, `i8mm`, `sve`, `sme` (arm64); empty where the system does not tell.
    public static let matrixFeatures: [String] = {
        let known = ["amx_tile", "amx_bf16", "amx_int8", "avx512_bf16", "bf16", "i8mm", "sve", "sme"]
        guard let file = fopen("/proc/cpuinfo", "r") else { return [] }
        defer { fclose(file) }
        var line: UnsafeMutablePointer<CChar>?
        var capacity = 0
        defer { free(line) }
        while getline(&line, &capacity, file) > 0, let start = line {
            let text = String(cString: start)
            // x86-64 calls the line "flags", arm64 "Features"; every processor of a machine has the same.
            guard text.hasPrefix("flags") || text.hasPrefix("Features") else { continue }
            let flags = Set(text.split { $0 == " " || $0 == "\t" || $0 == "\n" || $0 == ":" }.map(String.init))
            return known.filter(flags.contains)
        }
        return []
    }()

    /// Whether products in bf16 run on units of their own, and so faster than in fp32.
    public static var hasFastBFloat16: Bool {
        !Set(["amx_bf16", "avx512_bf16", "bf16"]).isDisjoint(with: matrixFeatures)
    }
}

/// How much memory the process and an accelerator hold.
public enum Memory {
    /// The most bytes of main memory that the process has held since its start or the last ``resetPeak(on:)``.
    public static func peakResident() -> Int { statusBytes("VmHWM:") ?? peakFromUsage() }

    /// The bytes of main memory that the process holds now.
    public static func resident() -> Int { statusBytes("VmRSS:") ?? peakFromUsage() }

    /// The most bytes that tensors have held on an accelerator, or the process's peak for the CPU.
    ///
    /// - Throws: `TorchError` when the device is not there.
    public static func peak(on device: Device) throws -> Int {
        if device == .cpu { return peakResident() }
        var allocated: Int64 = 0
        var peak: Int64 = 0
        try Engine.check(Engine.api().deviceMemory(device.code, &allocated, &peak))
        return Int(peak)
    }

    /// The bytes that the process could still take: of main memory within the limits of its control group, or of an
    /// accelerator.
    ///
    /// - Returns: The bytes, or nil where the system does not tell.
    /// - Throws: `TorchError` when the device is not there.
    public static func available(on device: Device = .cpu) throws -> Int? {
        guard device == .cpu else {
            let bytes: Int = try callTensor("graft::available_bytes", device).item()
            return bytes < 0 ? nil : bytes
        }
        let free = fileNumber("/proc/meminfo", after: "MemAvailable:").map { $0 * 1024 }
        let group = [
            ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
            ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
        ].compactMap { limit, usage -> Int? in
            guard let limit = fileNumber(limit), let used = fileNumber(usage) else { return nil }
            return max(0, limit - used)
        }
        return ([free].compactMap { $0 } + group).min()
    }

    /// Runs `body` with a way to ask how many bytes tensors have taken on this thread since, and not given back: now, and
    /// at most.
    ///
    /// - Throws: `TorchError` when this thread's memory is being watched already, and what `body` throws.
    package static func watching<Result>(
        _ body: (_ held: () throws -> (now: Int, peak: Int)) throws -> Result
    ) throws -> Result {
        // Only the allocator that keeps blocks counts.
        try keepingBlocks {
            try call("graft::held_begin")
            defer { _ = try? call("graft::held_end") }
            return try body {
                let values: [Int] = try callTensor("graft::held_bytes").values()
                return (values[0], values[1])
            }
        }
    }

    /// Lets the peak start again from what is held now (on the CPU only where the system allows it: Linux).
    ///
    /// - Throws: `TorchError` when the device is not there.
    public static func resetPeak(on device: Device = .cpu) throws {
        guard device == .cpu else { return try Engine.check(Engine.api().resetDevicePeak(device.code)) }
        if let file = fopen("/proc/self/clear_refs", "w") {
            fputs("5", file)
            fclose(file)
        }
    }

    /// Runs `body` while large blocks of main memory that tensors give up are kept for the next tensors of their size.
    ///
    /// For work that repeats itself, such as training steps: it takes less memory, and no time to ask the system for
    /// memory anew. Blocks in use and kept ones together take no more than the blocks in use once did, and a little.
    ///
    /// - Throws: `TorchError` when the engine cannot be loaded, and what `body` throws.
    public static func keepingBlocks<Result>(_ body: () throws -> Result) throws -> Result {
        let api = try Engine.api()
        api.setKeepsBlocks(true)
        defer { api.setKeepsBlocks(false) }
        return try body()
    }

    /// What ``keepingBlocks(_:)`` may keep beyond the most that was in use at once, in bytes.
    package static let keptBytes = 32 << 20

    /// The first whole number of a file, or that behind a word at the beginning of a line.
    private static func fileNumber(_ path: String, after word: String? = nil) -> Int? {
        guard let file = fopen(path, "r") else { return nil }
        defer { fclose(file) }
        var line = [CChar](repeating: 0, count: 256)
        while fgets(&line, Int32(line.count), file) != nil {
            let text = line.withUnsafeBufferPointer {
                String(decoding: $0.prefix { $0 != 0 }.map(UInt8.init(bitPattern:)), as: UTF8.self)
            }
            guard text.hasPrefix(word ?? "") else { continue }
            return text.split(whereSeparator: \.isWhitespace).compactMap { Int($0) }.first
        }
        return nil
    }

    private static func statusBytes(_ field: String) -> Int? {
        fileNumber("/proc/self/status", after: field).map { $0 * 1024 }
    }

    private static func peakFromUsage() -> Int {
        var usage = rusage()
        #if canImport(Darwin)
        return getrusage(RUSAGE_SELF, &usage) == 0 ? usage.ru_maxrss : 0
        #elseif canImport(Glibc)
        return getrusage(__rusage_who_t(RUSAGE_SELF.rawValue), &usage) == 0 ? usage.ru_maxrss * 1024 : 0
        #else
        return getrusage(RUSAGE_SELF, &usage) == 0 ? usage.ru_maxrss * 1024 : 0
        #endif
    }
}
