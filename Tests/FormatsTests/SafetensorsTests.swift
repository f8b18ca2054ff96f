import Formats
import Foundation
import TestSupport
import Testing

/// Torch's names of the element types that both sides know.
private let torchTypes: [(SafetensorsType, String)] = [
    (.bool, "bool"), (.u8, "uint8"), (.i8, "int8"), (.f8E5M2, "float8_e5m2"), (.f8E4M3, "float8_e4m3fn"),
    (.f8E8M0, "float8_e8m0fnu"),
    (.f8E4M3FNUZ, "float8_e4m3fnuz"), (.f8E5M2FNUZ, "float8_e5m2fnuz"), (.i16, "int16"), (.u16, "uint16"),
    (.f16, "float16"),
    (.bf16, "bfloat16"), (.i32, "int32"), (.u32, "uint32"), (.f32, "float32"), (.c64, "complex64"), (.f64, "float64"),
    (.i64, "int64"),
    (.u64, "uint64"),
]

private struct Sample {
    let name: String
    let type: SafetensorsType
    let torchType: String
    let shape: [Int]
    let data: Data

    var info: SafetensorsInfo { SafetensorsInfo(type: type, shape: shape) }
}

private func samples(count: Int, seed: UInt64) -> [Sample] {
    var generator = SeededGenerator(seed: seed)
    let letters = ["a", "B", "model.", "layers.", "0", "10", "é", "\"", "\\", "\n", "😀", "_", "~", "\u{7f}"]
    var result: [Sample] = []
    var names: Set<[UInt8]> = []
    while result.count < count {
        let name = (0..<Int.random(in: 1..<6, using: &generator)).map { _ in
            letters.randomElement(using: &generator) ?? ""
        }.joined()
        if !names.insert(Array(name.utf8)).inserted { continue }
        let (type, torchType) = torchTypes.randomElement(using: &generator) ?? (.f32, "float32")
        let shape = (0..<Int.random(in: 0..<4, using: &generator)).map { _ in Int.random(in: 0..<6, using: &generator) }
        let bytes = shape.reduce(type.bits / 8, *)
        let data = Data((0..<bytes).map { _ in UInt8.random(in: 0...(type == .bool ? 1 : 255), using: &generator) })
        result.append(Sample(name: name, type: type, torchType: torchType, shape: shape, data: data))
    }
    return result
}

private func infos(_ samples: [Sample]) -> KeyedList<SafetensorsInfo> {
    var result = KeyedList<SafetensorsInfo>()
    for sample in samples { result.appendIfNew(key: sample.name, value: sample.info) }
    return result
}

private func write(_ samples: [Sample], to path: String, metadata: KeyedList<String> = ["format": "pt"]) throws {
    let writer = try SafetensorsWriter(path: path, tensors: infos(samples), metadata: metadata)
    for sample in samples { try sample.data.withUnsafeBytes { try writer.write(sample.name, $0) } }
    try writer.finish()
}

@Test(arguments: [0, 1, 7, 60]) func filesEqualTheReferenceWriter(count: Int) async throws {
    let samples = samples(count: count, seed: UInt64(count) + 10)
    let folder = try TemporaryFolder.lasting("formats")
    let plan = JSON(
        samples.map {
            [JSON($0.name), JSON($0.torchType), JSON($0.shape.map { JSON($0) }), JSON($0.data.hexadecimal)]
        })
    let input = try folder.write(plan.compact, to: "plan.json")
    let theirs = folder("theirs.safetensors")
    try await runOracle("safetensors_write", source: input, target: theirs, ["metadata": ["format": "pt"]])
    let ours = folder("ours.safetensors")
    try write(samples, to: ours)
    let expected = try Data(contentsOf: URL(filePath: theirs))
    #expect(try Data(contentsOf: URL(filePath: ours)) == expected)

    // Reading theirs gives every byte back.
    let file = try SafetensorsFile(path: theirs)
    #expect(file.metadata == ["format": "pt"])
    #expect(file.tensors.count == count)
    for sample in samples {
        let tensor = try file.tensor(sample.name)
        #expect(tensor.type == sample.type && tensor.shape == sample.shape)
        #expect(Data(tensor.bytes.bytes) == sample.data)
    }
}

@Test func theReferenceReaderReadsOurs() async throws {
    let samples = samples(count: 40, seed: 20)
    let folder = try TemporaryFolder.lasting("formats")
    let path = folder("a.safetensors")
    try write(samples, to: path, metadata: ["format": "pt", "b": "ü\"", "a": ""])
    try await runOracle("safetensors_read", source: path, target: folder("out.json"))
    let answer = try JSON.read(path: folder("out.json"))
    #expect(answer["metadata"] == ["format": "pt", "b": "ü\"", "a": ""])
    #expect(answer["tensors"]?.object?.count == 40)
    for sample in samples {
        let expected: JSON = [
            JSON(sample.torchType), JSON(sample.shape.map { JSON($0) }), JSON(sample.data.hexadecimal),
        ]
        #expect(answer["tensors"]?[sample.name] == expected, "\(sample.name)")
    }
}

@Test func subByteTypesHaveWholeBytes() throws {
    let folder = try TemporaryFolder.lasting("formats")
    let path = folder("a.safetensors")
    let writer = try SafetensorsWriter(
        path: path, tensors: ["a": .init(type: .f4, shape: [2, 4]), "b": .init(type: .f6E2M3, shape: [4])])
    try Data([1, 2, 3, 4]).withUnsafeBytes { try writer.write("a", $0) }
    try Data([5, 6, 7]).withUnsafeBytes { try writer.write("b", $0) }
    try writer.finish()
    let file = try SafetensorsFile(path: path)
    #expect(try Data(file.tensor("a").bytes.bytes) == Data([1, 2, 3, 4]))
    #expect(try Data(file.tensor("b").bytes.bytes) == Data([5, 6, 7]))
    _ = try formatError { _ = try SafetensorsWriter(path: path, tensors: ["a": .init(type: .f4, shape: [3])]) }
}

@Test func shardsAreSplitAndRead() throws {
    let samples = samples(count: 60, seed: 30)
    let folder = try TemporaryFolder.lasting("formats")
    let shards = try SafetensorsShards(folder: folder.path, tensors: infos(samples), maxShardBytes: 300)
    // Any order will do.
    for sample in samples.reversed() { try sample.data.withUnsafeBytes { try shards.write(sample.name, $0) } }
    try shards.finish()
    try #require(shards.names.count > 2)
    #expect(try folder.contents() == (shards.names + ["model.safetensors.index.json"]).sorted())
    #expect(shards.names[1].hasPrefix("model-00002-of-0000"))
    for path in [folder.path, folder("model.safetensors.index.json")] {
        let checkpoint = try SafetensorsCheckpoint(path: path)
        #expect(checkpoint.tensors.count == samples.count)
        for sample in samples {
            let tensor = try checkpoint.tensor(sample.name)
            #expect(tensor.type == sample.type && tensor.shape == sample.shape)
            #expect(Data(tensor.bytes.bytes) == sample.data)
        }
    }
    for file in try SafetensorsCheckpoint(path: folder.path).files {
        #expect(file.tensors.entries.reduce(0) { $0 + $1.value.bytes.count } <= 300)
    }
    let index = try JSON.read(path: folder("model.safetensors.index.json"))
    #expect(index["metadata"]?["total_size"]?.int == samples.reduce(0) { $0 + $1.data.count })

    // One file when it fits, and no index.
    let whole = try TemporaryFolder.lasting("formats")
    let single = try SafetensorsShards(folder: whole.path, tensors: infos(samples))
    for sample in samples { try sample.data.withUnsafeBytes { try single.write(sample.name, $0) } }
    try single.finish()
    #expect(try whole.contents() == ["model.safetensors"])
    #expect(try SafetensorsCheckpoint(path: whole.path).tensors.count == samples.count)
}

@Test func shardsAndIndexMustAgree() throws {
    let folder = try TemporaryFolder.lasting("formats")
    let infos: KeyedList<SafetensorsInfo> = ["a": .init(type: .f32, shape: [4]), "b": .init(type: .f32, shape: [4])]
    let shards = try SafetensorsShards(folder: folder.path, tensors: infos, maxShardBytes: 16)
    let data = Data(count: 16)
    for name in infos.keys { try data.withUnsafeBytes { try shards.write(name, $0) } }
    try shards.finish()
    let index = folder("model.safetensors.index.json")
    let first = "model-00001-of-00002.safetensors"
    let second = "model-00002-of-00002.safetensors"
    func message(_ weightMap: JSON) throws -> String {
        try AtomicFile.write((["weight_map": weightMap] as JSON).compact, to: index)
        return try formatError { _ = try SafetensorsCheckpoint(path: folder.path) }.description
    }
    #expect(try message(["a": JSON(first), "b": JSON(first)]).contains("\"b\""))
    #expect(try message(["a": JSON(first), "b": JSON(second), "c": JSON(second)]).contains("\"c\""))
    #expect(try message(["b": JSON(second), "a": JSON(second)]).contains("which lacks it"))
    #expect(try message(["a": JSON(first), "b": "missing.safetensors"]).contains("missing.safetensors"))
    #expect(try message(["a": JSON(first), "b": "../b.safetensors"]).contains("same folder"))
    #expect(try message(["a": JSON(first), "b": 3]).contains("same folder"))
    let empty = try TemporaryFolder.lasting("formats")
    #expect(try formatError { _ = try SafetensorsCheckpoint(path: empty.path) }.message.contains("holds neither"))
}

@Test func theWriterLeavesNothingUnfinished() throws {
    let folder = try TemporaryFolder.lasting("formats")
    let path = folder("a.safetensors")
    let infos: KeyedList<SafetensorsInfo> = ["a": .init(type: .f32, shape: [2]), "b": .init(type: .u8, shape: [3])]
    do {
        let writer = try SafetensorsWriter(path: path, tensors: infos)
        let bytes = Data([1, 2, 3, 4, 5, 6, 7, 8])
        try bytes.prefix(5).withUnsafeBytes { try writer.write("a", $0) }
        #expect(try formatError { try writer.finish() }.description.contains("5 of the tensor's 8"))
        #expect(try formatError { try bytes.withUnsafeBytes { try writer.write("a", $0) } }.message.contains("8 bytes"))
        #expect(
            try formatError { try bytes.withUnsafeBytes { try writer.write("c", $0) } }.message.contains("name this"))
        try bytes.suffix(3).withUnsafeBytes { try writer.write("a", $0) }
        #expect(try folder.contents().count == 1 && folder.contents() != ["a.safetensors"])
    }
    #expect(try folder.contents().isEmpty)
    #expect(
        try formatError {
            _ = try SafetensorsWriter(path: path, tensors: ["__metadata__": .init(type: .u8, shape: [1])])
        }
        .message.contains("name"))
    #expect(
        try formatError { _ = try SafetensorsWriter(path: path, tensors: ["a": .init(type: .u8, shape: [.max, 3])]) }
            .message.contains("cannot be written"))
    #expect(try folder.contents().isEmpty)
}

// MARK: Broken files

private func file(header: String, data: Int, padding: Bool = false) -> Data {
    var bytes = Array(header.utf8)
    while padding && bytes.count % 8 != 0 { bytes.append(0x20) }
    return Data(values: [UInt64(bytes.count)]) + Data(bytes) + Data(count: data)
}

@Test(arguments: [
    (#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 8, ""),
    (
        #"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[0],"data_offsets":[8,8]}}  "#,
        8, ""
    ),
    (#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 7, "truncated"),
    (#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 9, "1 bytes follow"),
    (#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[4,12]}}"#, 12, "hole"),
    (
        #"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[4],"data_offsets":[4,8]}}"#,
        8, "overlaps"
    ),
    (
        #"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"U8","shape":[4],"data_offsets":[10,14]}}"#,
        14, "hole"
    ),
    (#"{"a":{"dtype":"F32","shape":[3],"data_offsets":[0,8]}}"#, 8, "takes 12 bytes"),
    (#"{"a":{"dtype":"F32","shape":[-2],"data_offsets":[0,8]}}"#, 8, "no size"),
    (#"{"a":{"dtype":"F32","shape":[2.0],"data_offsets":[0,8]}}"#, 8, "no size"),
    (#"{"a":{"dtype":"F33","shape":[2],"data_offsets":[0,8]}}"#, 8, "F33"),
    (#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[8,0]}}"#, 8, "increasing"),
    (#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0]}}"#, 8, "increasing"),
    (#"{"a":{"dtype":"F32","shape":[4611686018427387904,4],"data_offsets":[0,0]}}"#, 0, "no size in bytes"),
    // Without elements, but with strides that no library can hold.
    (#"{"a":{"dtype":"F32","shape":[0,480,4294967297,8589934592],"data_offsets":[0,0]}}"#, 0, "no size in bytes"),
    (
        #"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#,
        8, "twice"
    ),
    (#"{"a":{"dtype":"F4","shape":[3],"data_offsets":[0,1]}}"#, 1, "no size in bytes"),
    (#"{"__metadata__":{"a":1}}"#, 0, "not a string"),
    (#"{"__metadata__":[]}"#, 0, "expected an object"),
    (#"{"a":1}"#, 0, "dtype"),
    (#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}"#, 8, "line 1"),
    (#" {}"#, 0, "does not begin with {"),
    (#"[]"#, 0, "does not begin with {"),
])
func rulesOfTheFormat(header: String, data: Int, message: String) throws {
    let folder = try TemporaryFolder.lasting("formats")
    let path = try folder.write(file(header: header, data: data), to: "a.safetensors")
    if message.isEmpty {
        _ = try SafetensorsFile(path: path)
    } else {
        let error = try formatError { _ = try SafetensorsFile(path: path) }
        #expect(error.description.contains(message), "\(error)")
        #expect(error.file == path && !error.description.contains("\n"))
    }
}

@Test func brokenFilesGiveErrorsAsInTheReference() async throws {
    let folder = try TemporaryFolder.lasting("formats")
    try write(samples(count: 8, seed: 40), to: folder("whole.safetensors"))
    let whole = [UInt8](try Data(contentsOf: URL(filePath: folder("whole.safetensors"))))
    var generator = SeededGenerator(seed: 41)
    var files: [[UInt8]] = [[], [1, 2, 3], [0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF, 0xFF], whole]
    for _ in 0..<150 { files.append(Array(whole.prefix(Int.random(in: 0..<whole.count, using: &generator)))) }
    for _ in 0..<450 {
        var bytes = whole
        for _ in 0..<Int.random(in: 1..<4, using: &generator) {
            let end = Bool.random(using: &generator) ? 40 : whole.count
            bytes[Int.random(in: 0..<end, using: &generator)] = UInt8.random(in: 0...255, using: &generator)
        }
        files.append(bytes)
    }
    let input = files.reduce(into: Data()) { data, bytes in
        data += Data(values: [UInt32(bytes.count)])
        data += Data(bytes)
    }
    let expected = try #require(try JSON.parse(try await oracleAnswer("safetensors_accepts", to: input)).array)
    try #require(expected.count == files.count)
    var accepted = 0
    for (bytes, verdict) in zip(files, expected) {
        let path = try folder.write(bytes, to: "broken.safetensors")
        do {
            let file = try SafetensorsFile(path: path)
            accepted += 1
            for tensor in file.tensors.values { #expect(Data(tensor.bytes.bytes).count == tensor.bytes.count) }
            #expect(verdict == .bool(true), "accepted \(String(decoding: bytes, as: UTF8.self))")
        } catch {
            #expect(error is FormatError)
            #expect(verdict == .bool(false), "refused \(String(decoding: bytes, as: UTF8.self)): \(error)")
        }
    }
    #expect(accepted > 1)
}
