import Formats
import Foundation
import TestSupport
import Testing
import Training

@Suite struct MetricsLogTests {
    @Test func linesAreJSONThatPythonReadsStrictly() async throws {
        var generator = SeededGenerator(seed: 31)
        try await withTemporaryFolder { folder in
            let path = folder("metrics.jsonl")
            let log = try MetricsLog(path: path)
            let all = (0..<50).map { _ in randomMetrics(&generator) }
            for metrics in all { try log.append(metrics) }

            let lines = try await Oracle.shared.call("report.json_lines", ["path": JSON(path)])
            for (line, metrics) in try zip(#require(lines.array), all) {
                let expected: [(String, Double?)] = [
                    ("step", Double(metrics.step)), ("epoch", metrics.epoch), ("loss", metrics.loss),
                    ("eval_loss", metrics.evalLoss), ("learning_rate", metrics.learningRate),
                    ("grad_norm", metrics.gradNorm), ("tokens_per_second", metrics.tokensPerSecond),
                    ("time", metrics.time), ("tokens", metrics.tokens.map(Double.init)),
                    ("peak_memory_bytes", metrics.peakMemoryBytes.map(Double.init)),
                    ("eval_accuracy", metrics.others["eval_accuracy"]),
                ]
                for (name, value) in expected {
                    let found = line[name].map { $0.string ?? pythonRepr($0.double ?? 0) }
                    #expect(found == value.map(pythonRepr), "\(name)")
                }
                #expect(line.object?.count == expected.filter { $0.1 != nil }.count)
            }
            let read = try MetricsLog.read(path: path)
            #expect(read.map(described) == all.map(described))
        }
    }

    @Test func aResumedLogLosesLaterLinesAndATornOne() throws {
        try withTemporaryFolder { folder in
            let kept = "{\"step\": 1,  \"loss\":2.5}\n{\"step\":2,\"note\":\"by hand\"}\n{\"step\":2,\"eval_loss\":2}\n"
            let path = try folder.write(
                kept + "{\"step\":3,\"loss\":2.25}\n{\"step\":4,\"lo", to: "metrics.jsonl")
            #expect(try MetricsLog.read(path: path).map(\.step) == [1, 2, 2, 3])
            let log = try MetricsLog(path: path, resumedStep: 2)
            var metrics = Metrics(step: 3)
            metrics.loss = 2.125
            try log.append(metrics)
            // The kept lines stay byte for byte.
            #expect(try String(contentsOfFile: path, encoding: .utf8) == kept + "{\"step\":3,\"loss\":2.125}\n")
            #expect(try folder.contents() == ["metrics.jsonl"])
        }
    }

    @Test func aTornLineIsCutEvenIfItIsWholeJSON() throws {
        try withTemporaryFolder { folder in
            let path = try folder.write("{\"step\":1}\n{\"step\":2}", to: "metrics.jsonl")
            try MetricsLog(path: path, resumedStep: 5).append(Metrics(step: 6))
            #expect(try String(contentsOfFile: path, encoding: .utf8) == "{\"step\":1}\n{\"step\":6}\n")
        }
    }

    @Test func aResumeWithoutALogBeginsOne() throws {
        try withTemporaryFolder { folder in
            try MetricsLog(path: folder("metrics.jsonl"), resumedStep: 0).append(Metrics(step: 1))
            #expect(try MetricsLog.read(path: folder("metrics.jsonl")) == [Metrics(step: 1)])
        }
    }

    @Test(arguments: ["no JSON", "[1]", "{\"loss\":1}", "{\"step\":1.5}", "{\"step\":\"1\"}", "\u{0}\u{0}"])
    func aDamagedLineIsNamedAndNothingIsCut(line: String) throws {
        try withTemporaryFolder { folder in
            let text = "{\"step\":1}\n\(line)\n{\"step\":9}\n"
            let path = try folder.write(text, to: "metrics.jsonl")
            for attempt in [
                { _ = try MetricsLog.read(path: path) }, { _ = try MetricsLog(path: path, resumedStep: 5) },
            ] {
                let error = #expect(throws: FormatError.self, performing: attempt)
                #expect(error?.description.contains("metrics.jsonl: line 2 is not a JSON object") == true)
            }
            #expect(try String(contentsOfFile: path, encoding: .utf8) == text)
        }
    }

    @Test func aNewRunDoesNotTouchAnEarlierLog() throws {
        try withTemporaryFolder { folder in
            let path = try folder.write("{\"step\":1}\n", to: "metrics.jsonl")
            #expect(throws: FormatError.self) { try MetricsLog(path: path) }
            #expect(try String(contentsOfFile: path, encoding: .utf8) == "{\"step\":1}\n")
        }
    }

    #if os(Linux)
    @Test func aFullDiskIsAClearSentence() throws {
        try withTemporaryFolder { folder in
            let path = folder("metrics.jsonl")
            try FileManager.default.createSymbolicLink(atPath: path, withDestinationPath: "/dev/full")
            let log = try MetricsLog(path: path, resumedStep: 0)
            let error = #expect(throws: FormatError.self) { try log.append(Metrics(step: 1)) }
            #expect(error?.message.contains("the disk is full") == true)
        }
    }
    #endif

    @Test func aLineThatDoesNotFitIsTakenBackWhole() async {
        // In a process of its own: a limit on the size of files stands in for a disk that fills up in mid-line.
        await #expect(processExitsWith: .success) {
            signal(SIGXFSZ, SIG_IGN)
            try withTemporaryFolder { folder in
                let log = try MetricsLog(path: folder("metrics.jsonl"))
                var limit = rlimit(rlim_cur: 1000, rlim_max: 1000)
                #if os(Linux)
                let resource = __rlimit_resource_t(RLIMIT_FSIZE.rawValue)
                #else
                let resource = RLIMIT_FSIZE
                #endif
                try #require(setrlimit(resource, &limit) == 0)
                var written = 0
                #expect(throws: FormatError.self) {
                    while written < 1000 {
                        try log.append(Metrics(step: 1_000_000 + written))
                        written += 1
                    }
                }
                let text = try String(contentsOfFile: folder("metrics.jsonl"), encoding: .utf8)
                #expect(text.hasSuffix("}\n") && text.utf8.count > 980)
                #expect(try MetricsLog.read(path: folder("metrics.jsonl")).count == written)
            }
        }
    }

    private func randomMetrics(_ generator: inout SeededGenerator) -> Metrics {
        func value() -> Double? {
            let special: [Double] = [.nan, .infinity, -.infinity, 0, .leastNonzeroMagnitude, 1.5]
            let choice = Int.random(in: 0..<12, using: &generator)
            return choice < 6 ? special[choice] : choice < 9 ? generator.normal() : nil
        }
        func count() -> Int? { Bool.random(using: &generator) ? Int.random(in: 0...(1 << 50), using: &generator) : nil }
        var metrics = Metrics(step: Int.random(in: 0...1_000_000, using: &generator))
        metrics.epoch = value()
        metrics.loss = value()
        metrics.evalLoss = value()
        metrics.learningRate = value()
        metrics.gradNorm = value()
        metrics.tokens = count()
        metrics.tokensPerSecond = value()
        metrics.peakMemoryBytes = count()
        metrics.time = value()
        metrics.others["eval_accuracy"] = value()
        return metrics
    }

    /// All fields as text, in which NaN equals itself.
    private func described(_ metrics: Metrics) -> String { "\(metrics)" }
}
