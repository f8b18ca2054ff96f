import Formats
import TestSupport
import Testing
import Training

@Suite struct EventFileTests {
    @Test func tensorBoardReadsEveryRecordWhileTheFileIsOpen() async throws {
        var generator = SeededGenerator(seed: 21)
        try await withTemporaryFolder { folder in
            var time = 1_700_000_000.25
            let file = try EventFile(in: folder.path, now: { time })
            let tags = ["train/loss", "eval/loss", "Größe/損失", "x", String(repeating: "long", count: 60)]
            let values: [Double] = [.nan, .infinity, -.infinity, 0, 1e300, 1e-50]
            var expected: [(time: Double, step: Int, scalars: [(key: String, value: Double)])] = []
            for index in 0..<60 {
                time += generator.uniform()
                let step = [0, index, 1 << 40, Int.max][min(index % 9, 3)]
                let scalars = (0..<Int.random(in: 1...4, using: &generator)).map { place in
                    (
                        key: tags[Int.random(in: tags.indices, using: &generator)],
                        value: index < values.count && place == 0 ? values[index] : generator.normal()
                    )
                }
                expected.append((time, step, scalars))
                try file.append(scalars, step: step)
            }
            try file.append([:] as KeyValuePairs, step: 3)

            let answer = try await Oracle.shared.call("report.events", ["path": JSON(file.path)])
            let events = try #require(answer.array)
            #expect(events.count == 61)
            #expect(events[0]["version"]?.string == "brain.Event:2")
            #expect(events[0]["kind"]?.string == "file_version")
            #expect(events[0]["wall_time"]?.double == 1_700_000_000.25)
            for (event, expected) in zip(events.dropFirst(), expected) {
                #expect(event["wall_time"]?.double == expected.time)
                #expect(event["step"]?.int == expected.step)
                let scalars = try #require(event["scalars"]?.array)
                #expect(scalars.map { $0[0]?.string } == expected.scalars.map(\.key))
                #expect(scalars.compactMap { $0[1].map(number) } == expected.scalars.map { python(Float($0.value)) })
            }

            let records = try await Oracle.shared.call("report.records", ["path": JSON(file.path)])
            #expect(records.array?.count == 61)
        }
    }

    @Test func aResumedRunVoidsTheStepsItTakesAgain() async throws {
        try await withTemporaryFolder { folder in
            // The same second, and then an earlier one: the files must still sort in the order of the runs.
            let first = try EventFile(in: folder.path, now: { 1_700_000_000 })
            for step in 1...9 { try first.append(["train/loss": Double(step)], step: step) }
            let second = try EventFile(in: folder.path, resumedStep: 6, now: { 1_700_000_000 })
            for step in 7...8 { try second.append(["train/loss": Double(10 * step)], step: step) }
            let third = try EventFile(in: folder.path, resumedStep: 7, now: { 1_600_000_000 })
            try third.append(["train/loss": 800.0, "eval/loss": 0.5] as KeyValuePairs, step: 8)
            #expect([first, second, third].map(\.path) == [first, second, third].map(\.path).sorted())
            #expect(try folder.contents().count == 3)

            let curves = try await Oracle.shared.call("report.curves", ["folder": JSON(folder.path)])
            #expect(
                curves["train/loss"] == [
                    [1, 1.0], [2, 2.0], [3, 3.0], [4, 4.0], [5, 5.0], [6, 6.0], [7, 70.0], [8, 800.0],
                ])
            #expect(curves["eval/loss"] == [[8, 0.5]])
        }
    }

    @Test func aMissingFolderIsAnErrorThatNamesIt() throws {
        try withTemporaryFolder { folder in
            let error = #expect(throws: FormatError.self) { try EventFile(in: folder("absent")) }
            #expect(error?.description.contains("absent/events.out.tfevents.") == true)
        }
    }

    private func number(_ value: JSON) -> String { value.string ?? value.double.map { python(Float($0)) } ?? "?" }

    private func python(_ value: Float) -> String { pythonRepr(Double(value)) }
}
