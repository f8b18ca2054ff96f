import Formats
import TestSupport
import Testing
import Training

@Suite struct ScheduleTests {
    @Test(arguments: Schedule.Shape.allCases)
    func sharesAreThoseOfTransformersBitForBit(shape: Schedule.Shape) async throws {
        var generator = SeededGenerator(seed: UInt64(shape.rawValue.utf8.count))
        for trial in 0..<12 {
            let total = trial == 0 ? 0 : Int.random(in: 1...5000, using: &generator)
            let warmUp =
                trial % 4 == 1 ? 0 : Int.random(in: 0...(trial % 4 == 2 ? 2 * total + 3 : total), using: &generator)
            let steps = (0..<40).map { _ in Int.random(in: 0...(total + 20), using: &generator) }
            let schedule = try Schedule(shape, warmUp: .steps(warmUp), totalSteps: total)
            let answer = try await Oracle.shared.call(
                "report.schedule",
                [
                    "shape": JSON(shape.rawValue), "warmup_steps": JSON(warmUp), "total_steps": JSON(total),
                    "steps": .array(steps.map { JSON($0) }),
                ])
            let at = try #require(answer["at"]?.array).compactMap(\.double)
            let walked = try #require(answer["walked"]?.array).compactMap(\.double)
            #expect(steps.map { schedule.factor(at: $0) } == at)
            #expect((0..<walked.count).map { schedule.factor(at: $0) } == walked)
            #expect(walked.count == min(20, total))
        }
    }

    @Test func ratiosRoundUpAsTransformersTrainerDoes() async throws {
        var generator = SeededGenerator(seed: 5)
        for _ in 0..<10 {
            let total = Int.random(in: 1...3000, using: &generator)
            let ratio = generator.uniform()
            let steps = try await Oracle.shared.call(
                "report.warmup_steps", ["ratio": JSON(ratio), "total_steps": JSON(total)])
            #expect(try Schedule(.linear, warmUp: .ratio(ratio), totalSteps: total).warmUpSteps == steps.int)
        }
        #expect(try Schedule(.linear, warmUp: .ratio(1), totalSteps: 7).warmUpSteps == 7)
        #expect(try Schedule(.linear, warmUp: .ratio(0), totalSteps: 7).warmUpSteps == 0)
    }

    @Test func settingsThatAreNoScheduleAreRefused() {
        #expect(throws: ScheduleError.negativeSteps(-1)) { try Schedule(.linear, totalSteps: -1) }
        #expect(throws: ScheduleError.negativeWarmUp(-2)) { try Schedule(.linear, warmUp: .steps(-2), totalSteps: 9) }
        #expect(throws: ScheduleError.warmUpRatio(1.5)) { try Schedule(.cosine, warmUp: .ratio(1.5), totalSteps: 9) }
        #expect(throws: ScheduleError.self) { try Schedule(.cosine, warmUp: .ratio(.nan), totalSteps: 9) }
        #expect(
            ScheduleError.warmUpRatio(1.5).description == "warmup_ratio is 1.5; give a share of the run from 0 to 1")
    }
}
