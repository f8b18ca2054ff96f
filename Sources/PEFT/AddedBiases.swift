import Backbones
import Formats
import Torch

/// Biases that a merged model has and its base model has not.
struct AddedBiases {
    /// The values by name, fp32; zeros for layers that have one only because their neighbours do.
    let tensors: KeyedList<Tensor>
    /// The keys of `config.json` that say that there are such biases.
    let flags: [String]

    /// The families of models with the biases that their `config.json` can speak of.
    private static let families: [String: [(flag: String, roles: Set<LinearRole>)]] = [
        "llama": [("attention_bias", [.query, .key, .value, .output]), ("mlp_bias", [.gate, .up, .down])],
        "qwen3": [("attention_bias", [.query, .key, .value, .output])],
    ]

    /// Collects the biases that an adapter gives to layers without one.
    ///
    /// - Throws: `PEFTError` when the model's family has no place for one of them.
    init(_ adapter: Adapter, of backbone: any Backbone) throws {
        var made: [String: Tensor] = [:]
        for (layer, update) in adapter.updates where layer.bias == nil {
            made[layer.path] = try withoutGrad { try update.mergedBias(nil)?.detached() }
        }
        let family = backbone.configuration.modelType
        let places = Self.families[family] ?? []
        var (tensors, flags) = (KeyedList<Tensor>(), [String]())
        for layer in backbone.linears where made[layer.path] != nil {
            guard let place = places.first(where: { $0.roles.contains(layer.role) }) else {
                throw PEFTError(
                    "\(layer.path): a merged model of type \(family) has no place for the adapter's bias of this layer; "
                        + "use the adapter unmerged, or train only layers whose bias config.json can speak of")
            }
            if !flags.contains(place.flag) { flags.append(place.flag) }
        }
        for layer in backbone.linears where layer.bias == nil {
            guard places.contains(where: { flags.contains($0.flag) && $0.roles.contains(layer.role) }) else { continue }
            tensors[layer.path + ".bias"] = try made[layer.path] ?? Tensor.zeros([layer.outFeatures])
        }
        (self.tensors, self.flags) = (tensors, flags)
    }
}
