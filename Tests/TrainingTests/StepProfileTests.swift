import Formats
import TestSupport
import Testing
import Torch
import Training

@Suite struct StepProfileTests {
    @Test func operatorsAddUpByKind() {
        let lines = """
            mkldnn::_linear_pointwise\t3\t1000000\t10
            autograd::engine::evaluate_function: torch::autograd::CppNode<graft::(anonymous namespace)::Attention>\t2\t500000\t7
            aten::mm\t1\t250000\t1
            aten::roll\t4\t125000\t0
            not a line
            """
        let rows = StepProfile.rows(of: lines).sorted { $0.seconds > $1.seconds }
        #expect(rows.map(\.kind) == ["products", "attention", "other operators"])
        #expect(rows.map(\.calls) == [4, 2, 4])
        #expect(rows.map(\.bytes) == [11, 7, 0])
        #expect(abs(rows[0].seconds - 0.00125) < 1e-12)
    }

    @Test func operatorsAreRecordedOnceAtATime() throws {
        try call("graft::profile_begin")
        #expect(throws: TorchError.self) { try call("graft::profile_begin") }
        let x = try Tensor.ones([40, 16]).requiringGrad()
        let weight = try Tensor.ones([8, 16])
        try frozenLinears([FrozenLinear(weight: weight)], x)[0].sum().backward()
        let texts = try callTensors("graft::profile_end").map {
            String(decoding: try $0.values(as: UInt8.self), as: UTF8.self)
        }
        #expect(throws: TorchError.self) { try call("graft::profile_end") }
        #expect(texts[0].contains("graft::linears\t"))
        #expect(texts[0].contains("AdaptedLinears"))
        // Chrome's format: complete events with times in microseconds.
        let trace = try JSON.parse(texts[1])
        let events = try #require(trace["traceEvents"]?.array)
        // Operators of every thread are recorded, so those of other tests may be among them.
        let begin = try #require(events.first { $0["name"]?.string == "graft::profile_begin" })
        let own = events.filter { $0["tid"]?.int == begin["tid"]?.int }
        #expect(own.count { $0["name"]?.string == "graft::linears" } == 1)
        #expect(events.allSatisfy { $0["ph"]?.string == "X" && ($0["dur"]?.double ?? -1) >= 0 })
    }
}
