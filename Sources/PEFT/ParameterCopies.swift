import Backbones
import Torch

extension AttachPoints {
    /// The parameters of the selected blocks, and those outside the blocks unless blocks were selected.
    var parameters: [Parameter] {
        let (selected, path) = (Set(sublayers.map(\.layer)), blockStack.path + ".")
        let isWhole = sublayers.count == backbone.sublayers.count
        return backbone.parameters.filter { parameter in
            guard parameter.path.hasPrefix(path) else { return isWhole }
            return Int(parameter.path.dropFirst(path.count).prefix { $0 != "." }).map(selected.contains) ?? isWhole
        }
    }

    /// Adds trained copies of parameters in fp32.
    ///
    /// A head that is the embedding has the embedding's copy, which is trained and saved once.
    ///
    /// - Parameters:
    ///   - parameters: What is trained.
    ///   - attachment: What they are added to.
    ///   - decay: Which elements weight decay shrinks; nil: those of matrices, not those of norms and biases.
    ///   - name: The last part of a copy's key, for the last part of the parameter's name.
    /// - Throws: `TorchError` when memory is short.
    func addCopies(
        of parameters: [Parameter], to attachment: inout Attachment, decay: Trainable.Decay? = nil,
        name: (String) -> String = { $0 }
    ) throws {
        for parameter in parameters where parameter !== tiedHead {
            let copy = try attachment.train(
                adapterKey(parameter.modulePath, name(parameter.name)), from: parameter.values(dtype: .float32),
                on: device, decay: decay ?? (parameter.frozen.rank > 1 ? Trainable.Decay.all : .none))
            for place in places(of: parameter) { attachment.copies.append((place, copy)) }
        }
    }

    /// The output head's weight where it is the embedding.
    var tiedHead: Parameter? {
        let head = backbone.head.weight
        // A head of classes is never the embedding.
        return configuration.tieWordEmbeddings && head.frozen.shape == embedding.table.frozen.shape ? head : nil
    }

    /// The parameters that a parameter's values are for: itself, and a head that is tied to it.
    func places(of parameter: Parameter) -> [Parameter] {
        guard let tiedHead, parameter === embedding.table else { return [parameter] }
        return [parameter, tiedHead]
    }
}

extension Parameter {
    /// The last part of the path: `weight` or `bias`.
    var name: String { String(path.dropFirst(modulePath.isEmpty ? 0 : modulePath.count + 1)) }
}
