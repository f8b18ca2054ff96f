import Backbones
import Formats

/// Which parts of a model an adapter acts on, by the fields and rules of Hugging Face peft.
public struct Selection: Sendable {
    /// Which biases are trained beside the adapter.
    public enum Bias: String, FieldValue, CaseIterable {
        /// None, and every one of the model.
        case none, all
        /// Those of adapted layers.
        case adapted = "adapted_only"

        /// One of the names; `adapted_only` has others in peft, such as `lora_only` and `boft_only`.
        public init?(json: JSON) {
            guard let name = json.string else { return nil }
            if name.hasSuffix("_only") { self = .adapted } else { self.init(rawValue: name) }
        }
    }

    /// Names of modules, or one regular expression over paths, or `all-linear`.
    public enum Modules: FieldValue, Equatable {
        /// Ends of paths.
        case names([String])
        /// An expression over whole paths, or `all-linear`.
        case expression(String)

        /// A list of names, an expression or `all-linear`.
        public static var form: String { "a list of module names, a regular expression or \"all-linear\"" }

        /// A list of strings or a string.
        public init?(json: JSON) {
            if let text = json.string {
                self = .expression(text)
            } else if let items = json.array {
                let names = items.compactMap(\.string)
                guard names.count == items.count else { return nil }
                self = .names(names)
            } else {
                return nil
            }
        }

        /// A list of strings, sorted so that two runs write the same file, or a string.
        public var json: JSON {
            switch self {
            case .names(let names): JSON(names.sorted().map { JSON($0) })
            case .expression(let text): .string(text)
            }
        }

        var isAllLinear: Bool {
            if case .expression(let text) = self { text.lowercased() == "all-linear" } else { false }
        }

        var names: [String] {
            if case .names(let names) = self { names } else { [] }
        }

        func matches(_ path: String) throws -> Bool {
            switch self {
            case .names(let names): names.contains { path == $0 || path.hasSuffix("." + $0) }
            case .expression(let text): try PathExpression(text).matches(path)
            }
        }
    }

    /// A number or a list of numbers.
    public struct Layers: FieldValue {
        var indices: [Int]

        /// A whole number or several.
        public static var form: String { "a whole number or a list of them" }

        /// One index or several.
        public init?(json: JSON) {
            let items = json.array ?? [json]
            indices = items.compactMap(\.int)
            guard indices.count == items.count else { return nil }
        }

        /// A list.
        public var json: JSON { JSON(indices.map { JSON($0) }) }
    }

    /// A name or a list of names.
    public struct Names: FieldValue {
        /// The names.
        public var names: [String]

        /// Some names.
        public init(_ names: [String]) { self.names = names }

        /// A name or several.
        public static var form: String { "a name or a list of names" }

        /// One name or several.
        public init?(json: JSON) {
            let items = json.array ?? [json]
            names = items.compactMap(\.string)
            guard names.count == items.count else { return nil }
        }

        /// A list.
        public var json: JSON { JSON(names.map { JSON($0) }) }
    }

    /// The layers to adapt; nil: those that the method adapts by default.
    public var targetModules: Modules?
    /// The layers to leave out.
    public var excludeModules: Modules?
    /// The indices of the blocks to adapt; nil: all.
    public var layersToTransform: Layers?
    /// The name in front of the blocks' indices in paths; nil: any.
    public var layersPattern: Names?
    /// The modules to train and save whole.
    public var modulesToSave: Names?
    /// The biases to train.
    public var bias = Bias.none

    /// The fields, as `adapter_config.json` names them.
    public static let fields: [Field<Selection>] = [
        Field("target_modules", \.targetModules, "layers to adapt; null: those that the method adapts by default"),
        Field("exclude_modules", \.excludeModules, "layers to leave out"),
        Field("layers_to_transform", \.layersToTransform, "indices of the blocks to adapt; null: all"),
        Field("layers_pattern", \.layersPattern, "name of the list of blocks in paths, for layers_to_transform"),
        Field("modules_to_save", \.modulesToSave, "modules to train and save whole"),
        Field("bias", \.bias, "biases to train: none, all, lora_only (those of adapted layers)"),
    ]

    /// Selects what peft selects by default.
    public init() {}

    /// The selected layers of a model.
    ///
    /// - Throws: `PEFTError` when nothing matches, naming what there is.
    public func linears(of backbone: any Backbone) throws -> [Linear] {
        let wholeModules = modulesToSave?.names ?? []
        let targets = targetModules ?? .names(["q_proj", "v_proj"])
        try validate(targets, for: backbone)
        let selected = try backbone.linears.filter { layer in
            if Self.isInside(layer.path, wholeModules) { return false }
            if try excludeModules?.matches(layer.path) == true { return false }
            if targets.isAllLinear { return layer.role != .head }
            // A module that is named by its whole path is meant wherever it lies.
            if targets.names.contains(layer.path) { return true }
            return try targets.matches(layer.path) && isInLayersToTransform(layer.path)
        }
        if selected.isEmpty {
            let names = Set(backbone.linears.map { String($0.path.split(separator: ".").last ?? "") }).sorted()
            let asked = targets.json.compact
            throw PEFTError(
                "target_modules \(asked) matches no linear layer of the model; its layers are "
                    + names.joined(separator: ", ")
            )
        }
        return selected
    }

    /// Refuses what peft refuses: fields that do not go together, and targets that are no linear layers.
    private func validate(_ targets: Modules, for backbone: any Backbone) throws {
        let (layers, patterns) = (layersToTransform?.indices ?? [], layersPattern?.names.filter { !$0.isEmpty } ?? [])
        if case .expression = targets, !layers.isEmpty || !patterns.isEmpty {
            throw PEFTError(
                "layers_to_transform and layers_pattern go with target_modules as a list of names; put the blocks into "
                    + "the expression, or write a list")
        }
        guard patterns.isEmpty || !layers.isEmpty else {
            throw PEFTError("layers_pattern: expected layers_to_transform beside it")
        }
        guard !targets.isAllLinear else { return }
        let linears = Set(backbone.linears.map(\.path))
        for parameter in backbone.parameters where !linears.contains(parameter.modulePath) {
            guard try targets.matches(parameter.modulePath), try excludeModules?.matches(parameter.modulePath) != true
            else { continue }
            throw PEFTError(
                "target_modules: \(parameter.modulePath) is no linear layer; modules_to_save trains such modules whole")
        }
    }

    /// The parameters that `modules_to_save` selects.
    ///
    /// They are those of modules whose path ends with one of the names, and of the modules inside. As in peft the end
    /// need not be a whole name: `norm` selects `input_layernorm` too.
    ///
    /// - Throws: `PEFTError` when a name matches nothing.
    func wholeParameters(of backbone: any Backbone) throws -> [Parameter] {
        var names = modulesToSave?.names ?? []
        // peft names the heads of all classifiers, of which a model has one.
        if backbone is SequenceClassifier { names.removeAll { $0 == "classifier" } }
        func isSelected(_ parameter: Parameter, _ name: String) -> Bool {
            var path = parameter.modulePath[...]
            while !path.isEmpty {
                if path.hasSuffix(name) { return true }
                path = path[..<(path.lastIndex(of: ".") ?? path.startIndex)]
            }
            return false
        }
        for name in names where name.isEmpty || !backbone.parameters.contains(where: { isSelected($0, name) }) {
            throw PEFTError("modules_to_save: no module of the model is called \"\(name)\"")
        }
        return backbone.parameters.filter { parameter in names.contains { isSelected(parameter, $0) } }
    }

    /// Whether a path is, or lies below, a module of one of the names.
    private static func isInside(_ path: String, _ names: [String]) -> Bool {
        names.contains { name in
            ("." + path + ".").contains("." + name + ".")
        }
    }

    /// Trains a module whole beside what is selected.
    mutating func train(head name: String) {
        let names = modulesToSave?.names ?? []
        if !names.contains(name) { modulesToSave = Names(names + [name]) }
    }

    private func isInLayersToTransform(_ path: String) throws -> Bool {
        guard let indices = layersToTransform?.indices, !indices.isEmpty else { return true }
        let names = layersPattern?.names.filter { !$0.isEmpty } ?? []
        // The first number in the path is the block's, also where experts have numbers behind it.
        let patterns = names.isEmpty ? [".*?\\.[^.]*"] : names.map { "(?:|.*?\\.)\($0)" }
        for pattern in patterns {
            let expression: Regex<AnyRegexOutput>
            do {
                expression = try Regex("\(pattern)\\.(\\d+)\\.").matchingSemantics(.unicodeScalar)
            } catch {
                throw PEFTError("layers_pattern: \"\(pattern)\" is not a valid regular expression: \(error)")
            }
            guard let match = path.prefixMatch(of: expression),
                let digits = match.output[match.output.count - 1].substring
            else { continue }
            return Int(digits).map(indices.contains) ?? false
        }
        return false
    }
}
