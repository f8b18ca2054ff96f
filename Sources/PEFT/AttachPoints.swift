import Backbones
import Torch

/// What a method finds where its adapter is loaded and does not begin.
///
/// Trainable tensors are filled from the folder in any case; this is for what decides their shapes.
public struct StoredFolder {
    /// The tensor of a key in `adapter_model.safetensors`, or nil.
    public let tensor: (String) throws -> Tensor?
    /// The pretrained values of a parameter in fp32, also where the model in memory has none.
    public let pretrained: (Parameter) throws -> Tensor
}

/// What a method may touch in a model: the selected places with their roles, and the sizes around them.
public struct AttachPoints {
    /// The selected linear layers, in the checkpoint's order.
    public let linears: [Linear]
    /// Attention and MLP of the selected blocks, in order.
    public let sublayers: [Sublayer]
    /// The keys and values of the selected blocks, in order.
    public let attentionStates: [AttentionState]
    /// The model, for what is one of a kind in it and for its parameters.
    public let backbone: any Backbone
    /// The folder that is being loaded; nil where an adapter begins.
    public internal(set) var folder: StoredFolder?

    /// Makes the points of a model.
    ///
    /// - Parameters:
    ///   - linears: The selected layers.
    ///   - backbone: The model.
    ///   - layers: The indices of the selected blocks; nil: all.
    package init(linears: [Linear], of backbone: any Backbone, layers: [Int]? = nil) {
        func isSelected(_ layer: Int) -> Bool { layers?.contains(layer) ?? true }
        self.linears = linears
        self.backbone = backbone
        sublayers = backbone.sublayers.filter { isSelected($0.layer) }
        attentionStates = backbone.attentionStates.filter { isSelected($0.layer) }
    }

    /// The model's sizes.
    public var configuration: LlamaConfiguration { backbone.configuration }
    /// Where the model lives, and so the trainable tensors.
    public var device: Device { backbone.device }
    /// The table of token vectors.
    public var embedding: TokenEmbedding { backbone.embedding }
    /// The blocks of the model.
    public var blockStack: BlockStack { backbone.blockStack }

    /// The selected layers with one of the given roles.
    public func linears(_ roles: LinearRole...) -> [Linear] {
        linears.filter { roles.contains($0.role) }
    }

    /// The selected sublayers with one of the given roles.
    public func sublayers(_ roles: Sublayer.Role...) -> [Sublayer] {
        sublayers.filter { roles.contains($0.role) }
    }
}
