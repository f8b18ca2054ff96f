import Graft

/// LoRA-XS: a small trained matrix between frozen singular directions of the weight, `dW = s B R A`. arXiv 2405.17604
struct LoRAXS: Method {
    static let peftType = "LORA_XS"
    static let fields: [Field<LoRAXS>] = [
        Field("r", \.r, "rank of the update, and the size of the trained matrix"),
        Field("lora_alpha", \.loraAlpha, "the update is scaled by lora_alpha / r"),
    ]

    var r = 16
    var loraAlpha = 16.0

    init() {}

    func attach(to points: AttachPoints, seed: Seed) throws -> Attachment {
        var attachment = Attachment(trainables: [], updates: [])
        for layer in points.linears {
            let svd = try callTensors("aten::linalg_svd", layer.weight.values(dtype: .float32), false)
            let strengths = try svd[1].narrowed(0, start: 0, length: r).unsqueezed(1)  // [r, 1]
            let down = try strengths * svd[2].narrowed(0, start: 0, length: r)  // [r, in]
            let up = try svd[0].narrowed(1, start: 0, length: r)  // [out, r]
            let core = try Trainable(adapterKey(layer.path, "lora_R"), Tensor.zeros([r, r]), device: points.device)
            attachment.trainables.append(core)
            attachment.updates.append(
                (layer, LoRAXSUpdate(core: core.tensor, frozen: (down, up), scale: loraAlpha / Double(r))))
        }
        return attachment
    }
}

struct LoRAXSUpdate: LowRankUpdate {
    let core: Tensor  // [r, r]
    let frozen: (down: Tensor, up: Tensor)
    let scale: Double
    let dropout = 0.0

    func factors() throws -> (down: Tensor, up: Tensor) { (try core.matmul(frozen.down), frozen.up) }
}
