import Formats
import Foundation
import TestSupport
import Testing

/// A GGUF file of gguf-py with values of every kind and tensors of several types.
private func writeSample(to path: String, in folder: TemporaryFolder, seed: UInt64) async throws -> [(
    String, Int, [Int], [Float]
)] {
    var generator = SeededGenerator(seed: seed)
    let shapes: [(String, Int, [Int])] = [
        ("token_embd.weight", 8, [6, 64]), ("blk.0.attn_q.weight", 3, [8, 32]), ("norm", 0, [5]), ("half", 1, [3, 7]),
        ("bf16", 30, [2, 3]),
        ("cube", 2, [2, 3, 32]), ("scalar", 0, [1]), ("wide", 6, [1, 96]),
    ]
    let tensors = shapes.map { name, code, shape in
        (name, code, shape, (0..<shape.reduce(1, *)).map { _ in Float.random(in: -2...2, using: &generator) })
    }
    let keys: [JSON] = [
        ["a.u8", "uint8", 200], ["a.i8", "int8", -100], ["a.u16", "uint16", 60000], ["a.i16", "int16", -30000],
        ["a.u32", "uint32", 4_000_000_000],
        ["a.i32", "int32", -2_000_000_000], ["a.u64", "uint64", 5],
        ["a.i64", "int64", -9_000_000_000],
        ["a.f32", "float32", 1.5], ["a.f64", "float64", 0.1], ["a.true", "bool", true], ["a.false", "bool", false],
        ["a.string", "string", "é😀\n"], ["a.strings", "array", ["x", "", "Ġé"]],
        ["a.ints", "array", [1, -2, 3]],
        ["a.floats", "array", [0.5, -1.25]], ["a.bools", "array", [true, false]],
    ]
    let plan: JSON = [
        "keys": JSON(keys),
        "tensors": JSON(
            tensors.map {
                [JSON($0.0), JSON($0.1), JSON($0.2.map { JSON($0) }), JSON(Data(values: $0.3).hexadecimal)]
            }),
    ]
    let input = try folder.write(plan.compact, to: "plan.json")
    try await runOracle("gguf_write", source: input, target: path)
    return tensors
}

@Test func readsWhatGGUFPyWrites() async throws {
    let folder = try TemporaryFolder.lasting("formats")
    let path = folder("a.gguf")
    let tensors = try await writeSample(to: path, in: folder, seed: 50)
    let file = try GGUFFile(path: path)
    #expect(file.version == 3 && file.alignment == 32)
    #expect(file.metadata["general.architecture"]?.string == "llama")
    let ints = [
        "u64": 5, "u8": 200, "i8": -100, "u16": 60000, "i16": -30000, "u32": 4_000_000_000, "i32": -2_000_000_000,
        "i64": -9_000_000_000,
    ]
    for (key, value) in ints { #expect(try file.value("a." + key).int == value) }
    #expect(try file.value("a.f32").double == 1.5 && file.value("a.f64").double == 0.1)
    #expect(try file.value("a.true").bool == true && file.value("a.false").bool == false)
    #expect(try file.value("a.string").string == "é😀\n")
    #expect(try file.value("a.strings").array?.strings() == ["x", "", "Ġé"])
    #expect(try file.value("a.ints").array?.ints() == [1, -2, 3])
    #expect(try file.value("a.floats").array?.doubles() == [0.5, -1.25])
    #expect(try file.value("a.bools").array?.bools() == [true, false])
    #expect(try formatError { _ = try file.value("a.ints").array?.strings() }.message.contains("array of strings"))
    #expect(try formatError { _ = try file.value("a.none") }.description.contains("\"a.none\""))
    #expect(try formatError { _ = try file.tensor("none") }.description.contains("lacks this tensor"))

    let summary = folder("summary.json")
    try await runOracle("gguf_summary", source: path, target: summary)
    let expected = try #require(try JSON.read(path: summary)["tensors"]?.object)
    #expect(expected.count == tensors.count && file.tensors.keys == tensors.map(\.0))
    for (name, code, shape, values) in tensors {
        let tensor = try file.tensor(name)
        #expect(tensor.shape == shape && tensor.type.rawValue == UInt32(code))
        #expect(expected[name]?[2]?.int == tensor.bytes.offset && expected[name]?[3]?.int == tensor.bytes.count)
        let dequantiser = try tensor.dequantiser()
        var read = [Float](repeating: .nan, count: values.count)
        try read.withUnsafeMutableBufferPointer { try dequantiser.write(float32: $0) }
        // Within half a step of 4 bits over the range of the values.
        #expect(zip(read, values).allSatisfy { abs($0 - $1) < 0.3 })
        if code == 0 { #expect(read == values) }
    }
}

@Test func brokenFilesGiveErrors() async throws {
    let folder = try TemporaryFolder.lasting("formats")
    _ = try await writeSample(to: folder("whole.gguf"), in: folder, seed: 51)
    let whole = [UInt8](try Data(contentsOf: URL(filePath: folder("whole.gguf"))))
    var generator = SeededGenerator(seed: 52)
    var refused = 0
    func tryToRead(_ bytes: [UInt8]) throws {
        let path = try folder.write(bytes, to: "broken.gguf")
        do {
            let file = try GGUFFile(path: path)
            for (_, value) in file.metadata.entries {
                _ = try? value.array?.strings()
                _ = try? value.array?.doubles()
                _ = try? value.array?.ints()
            }
            for tensor in file.tensors.values {
                let dequantiser = try tensor.dequantiser()
                var values = [Float](repeating: 0, count: dequantiser.rows * dequantiser.columns)
                try values.withUnsafeMutableBufferPointer { try dequantiser.write(float32: $0) }
            }
        } catch {
            #expect(error is FormatError)
            refused += 1
        }
    }
    let lastTensor =
        try GGUFFile(path: folder("whole.gguf")).tensors.values.map { $0.bytes.offset + $0.bytes.count }.max() ?? 0
    for _ in 0..<250 {
        let before = refused
        try tryToRead(Array(whole.prefix(Int.random(in: 0..<lastTensor, using: &generator))))
        #expect(refused == before + 1)
    }
    let header = try GGUFFile(path: folder("whole.gguf")).dataOffset
    for _ in 0..<800 {
        var bytes = whole
        for _ in 0..<Int.random(in: 1..<3, using: &generator) {
            let extreme: [UInt8] = [0, 1, 0x7F, 0x80, 0xFF]
            let byte = extreme.randomElement(using: &generator) ?? 0
            bytes[Int.random(in: 0..<header, using: &generator)] =
                Bool.random(using: &generator) ? byte : UInt8.random(in: 0...255, using: &generator)
        }
        try tryToRead(bytes)
    }
    // A length or a count of the most hostile size at every place.
    for offset in 4..<header {
        var bytes = whole
        let count = min(8, bytes.count - offset)
        bytes.replaceSubrange(offset..<(offset + count), with: [UInt8](repeating: 0xFF, count: count))
        try tryToRead(bytes)
    }
    #expect(refused > 800)
}

@Test(arguments: [
    ("GGUX", 3, "does not begin with"), ("GGUF", 1, "version 1"), ("GGUF", 4, "version 4"),
    ("GGUF", 0x0300_0000, "big-endian"),
])
func otherFilesAreRefused(magic: String, version: UInt32, message: String) throws {
    let folder = try TemporaryFolder.lasting("formats")
    let path = try folder.write(Data(magic.utf8) + Data(values: [version]) + Data(count: 64), to: "a.gguf")
    #expect(try formatError { _ = try GGUFFile(path: path) }.message.contains(message))
}

/// A file made by hand, with one tensor of the sizes, type and offset given and so many bytes of data.
private func handMade(sizes: [UInt64], type: UInt32, offset: UInt64, data: Int, alignment: UInt32? = nil) -> Data {
    func string(_ text: String) -> Data { Data(values: [UInt64(text.utf8.count)]) + Data(text.utf8) }
    var result = Data("GGUF".utf8) + Data(values: [UInt32(2)]) + Data(values: [UInt64(1), alignment == nil ? 0 : 1])
    if let alignment { result += string("general.alignment") + Data(values: [4, alignment]) }
    result +=
        string("t") + Data(values: [UInt32(sizes.count)]) + Data(values: sizes) + Data(values: [type])
        + Data(values: [offset])
    let multiple = alignment.map(Int.init) ?? 32
    if multiple > 0 { result += Data(count: (multiple - result.count % multiple) % multiple) }
    return result + Data(count: data)
}

@Test func sizesAndOffsetsAreChecked() throws {
    let folder = try TemporaryFolder.lasting("formats")
    func open(_ data: Data) throws -> GGUFFile { try GGUFFile(path: try folder.write(data, to: "a.gguf")) }
    #expect(try open(handMade(sizes: [32, 2], type: 2, offset: 0, data: 36)).tensor("t").shape == [2, 32])
    #expect(try open(handMade(sizes: [4], type: 0, offset: 64, data: 80, alignment: 64)).tensor("t").bytes.count == 16)
    #expect(
        try open(handMade(sizes: [1 << 30, 1 << 30, 0], type: 0, offset: 0, data: 0)).tensor("t").elementCount == 0)
    let mistakes: [(Data, String)] = [
        (handMade(sizes: [32, 2], type: 2, offset: 0, data: 35), "truncated"),
        (handMade(sizes: [33], type: 2, offset: 0, data: 100), "whole number of blocks"),
        (handMade(sizes: [4], type: 0, offset: 8, data: 100), "multiple of the alignment"),
        (handMade(sizes: [4], type: 0, offset: .max, data: 100), "multiple of the alignment"),
        (handMade(sizes: [4], type: 0, offset: 1 << 62, data: 100), "truncated"),
        (handMade(sizes: [1 << 62, 4], type: 0, offset: 0, data: 100), "larger than any file"),
        // Without elements, but with strides that no library can hold.
        (handMade(sizes: [1 << 33, 1 << 32, 480, 0], type: 0, offset: 0, data: 100), "larger than any file"),
        (handMade(sizes: [1 << 32, 1 << 32], type: 24, offset: 0, data: 100), "larger than any file"),
        (handMade(sizes: [1 << 63], type: 0, offset: 0, data: 100), "dimension"),
        (handMade(sizes: [1, 1, 1, 1, 1], type: 0, offset: 0, data: 100), "5 dimensions"),
        (handMade(sizes: [256], type: 16, offset: 0, data: 100), "IQ2_XXS"),
        (handMade(sizes: [256], type: 99, offset: 0, data: 100), "unknown"),
        (handMade(sizes: [4], type: 0, offset: 0, data: 100, alignment: 0), "power of two"),
        (handMade(sizes: [4], type: 0, offset: 0, data: 100, alignment: 48), "power of two"),
    ]
    for (data, message) in mistakes {
        let error = try formatError { _ = try open(data) }
        #expect(error.description.contains(message), "\(error)")
    }
}

// MARK: The real model

@Test func realModelIsRead() async throws {
    let file = try GGUFFile(path: RepositoryPaths.smolLM2)
    let tokens = try #require(try file.value("tokenizer.ggml.tokens").array?.strings())
    let merges = try #require(try file.value("tokenizer.ggml.merges").array?.strings())
    let types = try #require(try file.value("tokenizer.ggml.token_type").array?.ints())
    #expect(file.version == 3 && file.tensors.count == 272 && file.metadata.count == 33)
    #expect(file.dataOffset == 1_785_664)
    #expect(tokens.count == 49152 && merges.count == 48900 && types.count == 49152)
    #expect(tokens[0] == "<|endoftext|>" && tokens[2] == "<|im_end|>")
    #expect(types.indices.filter { types[$0] == 3 } == Array(0...16))
    #expect(file.metadata["tokenizer.ggml.pre"]?.string == "smollm")
    #expect(file.metadata["llama.rope.freq_base"]?.double == 100000)

    let folder = try TemporaryFolder.lasting("formats")
    try await runOracle("gguf_summary", source: RepositoryPaths.smolLM2, target: folder("summary.json"))
    let summary = try JSON.read(path: folder("summary.json"))
    #expect(summary["keys"]?["tokenizer.ggml.tokens"]?.array?.compactMap(\.string) == tokens)
    #expect(summary["keys"]?["tokenizer.ggml.merges"]?.array?.compactMap(\.string) == merges)
    for (name, tensor) in file.tensors.entries {
        let expected: JSON = [
            JSON(Int(tensor.type.rawValue)), JSON(tensor.shape.map { JSON($0) }), JSON(tensor.bytes.offset),
            JSON(tensor.bytes.count),
        ]
        #expect(summary["tensors"]?[name] == expected)
    }
}

@Test(arguments: [
    ("token_embd.weight", [-0.1065445, 0.03297806, 0.0481987, -0.02283096], -15353.0445, 520415.715),
    ("blk.0.attn_q.weight", [-0.09631348, 0.1573486, -0.09631348, -0.7304688], 59.2232208, 26749.5733),
    ("blk.0.attn_k.weight", [-0.1552734, 0.34021, -0.4855957, -0.3204346], 26.9370575, 17499.5613),
    ("blk.0.ffn_down.weight", [-0.3308105, 0.3460693, 0.07531738, -0.4661865], 150.635773, 33220.12),
    ("blk.29.ffn_up.weight", [-0.1286621, 0.06195068, -0.06512451, -0.3828125], 305.732681, 41023.1986),
    ("output_norm.weight", [1.757812, 1.820312, 1.78125, 1.601562], 1038.33203, 1921.73555),
])
func realModelHasItsReferenceValues(name: String, first: [Double], sum: Double, squares: Double) throws {
    let tensor = try GGUFFile(path: RepositoryPaths.smolLM2).tensor(name)
    var values = [Float](repeating: .nan, count: tensor.elementCount)
    try values.withUnsafeMutableBufferPointer { try tensor.dequantiser().write(float32: $0) }
    for (value, expected) in zip(values, first) { #expect(abs(Double(value) - expected) <= 1e-6 * abs(expected)) }
    #expect(abs(values.reduce(0) { $0 + Double($1) } - sum) <= 1e-7 * abs(sum))
    #expect(abs(values.reduce(0) { $0 + Double($1) * Double($1) } - squares) <= 1e-7 * squares)
}

@Test func everyTensorOfTheRealModelIsDequantisedToTheEnd() throws {
    let file = try GGUFFile(path: RepositoryPaths.smolLM2)
    #expect(file.tensors.values.reduce(0) { $0 + $1.elementCount } == 134_515_008)
    for tensor in file.tensors.values {
        let out = UnsafeMutableBufferPointer<UInt16>.allocate(capacity: tensor.elementCount)
        defer { out.deallocate() }
        // A NaN, which no weight is: whatever is not written stays one.
        out.initialize(repeating: 0xFFFF)
        try tensor.dequantiser().write(bfloat16: out, threads: 2)
        #expect(!out.contains(0xFFFF), "\(tensor.name)")
    }
}
