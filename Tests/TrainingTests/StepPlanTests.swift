import TestSupport
import Testing
import Torch
import Training

@Suite struct StepPlanTests {
    private let layouts = [
        BatchLayout(rows: 3), BatchLayout(rows: 3, isPacked: true), BatchLayout(rows: 1),
        BatchLayout(rows: 1, tokens: 50), BatchLayout(rows: 1, tokens: 50, isPacked: true),
    ]

    private func plans(_ layout: BatchLayout, count: Int, seed: UInt64) -> (plans: [StepPlan], lengths: [Int]) {
        var generator = SeededGenerator(seed: seed)
        let lengths = (0..<count).map { _ in Int.random(in: 1...40, using: &generator) }
        var order = DataOrder(seed: Seed(seed), count: count, rowsPerStep: 8)
        return ((0..<order.stepsPerEpoch).map { order.plan(step: $0, layout: layout) { lengths[$0] } }, lengths)
    }

    /// Whatever the layout, the steps of a pass take each row once, and the same rows in the same step.
    @Test func everyRowOnceAndTheSameWhateverTheLayout() {
        for seed in 1...20 as ClosedRange<UInt64> {
            let count = 29 + Int(seed)
            let reference = plans(layouts[0], count: count, seed: seed).plans
            #expect(reference.flatMap(\.rows).sorted() == Array(0..<count))
            for layout in layouts {
                let (plans, lengths) = plans(layout, count: count, seed: seed)
                for (plan, expected) in zip(plans, reference) {
                    #expect(plan.rows == expected.rows)
                    #expect(plan.microBatches.flatMap(\.rows).sorted() == plan.rows.sorted())
                    #expect(Set(plan.microBatches.map(\.place)).count == plan.microBatches.count)
                    for pass in plan.microBatches {
                        #expect(pass.rows.map { lengths[$0] } == pass.lengths)
                        #expect(pass.rows.first == plan.rows[pass.place])
                        let total = pass.lengths.reduce(0, +)
                        let filled = pass.lengths.count * (pass.lengths.max() ?? 0)
                        #expect((layout.isPacked ? total : filled) <= layout.tokens ?? .max)
                        #expect(layout.tokens != nil || pass.rows.count <= layout.rows)
                    }
                }
            }
        }
    }

    /// As few passes as the tokens allow, nearly: two of them never fit into one.
    @Test func packedPassesAreFull() {
        for seed in 1...20 as ClosedRange<UInt64> {
            for plan in plans(layouts[4], count: 64, seed: seed).plans {
                let totals = plan.microBatches.map { $0.lengths.reduce(0, +) }
                for (index, one) in totals.enumerated() {
                    for other in totals[(index + 1)...] { #expect(one + other > 50) }
                }
            }
        }
    }

    @Test func aLongRowHasAPassOfItsOwn() {
        let layout = BatchLayout(rows: 1, tokens: 10, isPacked: true)
        let plan = StepPlan(step: 3, rows: [7, 5, 9], lengths: [4, 12, 6], layout: layout)
        #expect(plan.microBatches.map(\.rows) == [[7, 9], [5]])
        #expect(plan.microBatches.map(\.place) == [0, 1])
    }

    /// Processes share a step: each row is with one of them, and none has much more to do than the others need.
    @Test(arguments: 1...11) func sharesAreTheWholeStep(size: Int) {
        for layout in layouts {
            for plan in plans(layout, count: 45, seed: 5).plans {
                let shares = (0..<size).map { plan.share(rank: $0, of: size) }
                #expect(shares.flatMap { $0 }.flatMap(\.rows).sorted() == plan.rows.sorted())
                #expect(Set(shares.flatMap { $0 }.map(\.place)).count == shares.flatMap { $0 }.count)
                for pass in shares.flatMap({ $0 }) { #expect(pass.rows.first == plan.rows[pass.place]) }
                if size <= plan.rows.count { #expect(shares.allSatisfy { !$0.isEmpty }) }
            }
        }
    }
}
