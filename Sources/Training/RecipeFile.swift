import Backbones
import Formats
import PEFT
import Torch

#if canImport(FoundationEssentials)
import FoundationEssentials
#else
import Foundation
#endif

extension Recipe {
    /// Reads a recipe from YAML.
    ///
    /// - Parameters:
    ///   - yaml: A mapping with keys of ``fields``; what is missing has its default.
    ///   - file: The file's name for errors.
    /// - Throws: `FormatError` with the line of a key that is unknown (and the nearest one) or of a value of the wrong
    ///   form.
    public init(yaml: String, file: String? = nil) throws {
        self.init()
        let document = try YAML.parse(yaml, file: file)
        guard let entries = document.value.object else {
            throw FormatError(
                file: file, place: .row(document.line),
                "expected a mapping with keys such as model and data, found \(document.value.kind)")
        }
        for ((key, value), line) in zip(entries, document.keyLines) {
            do {
                try set(key, to: value)
            } catch let error as TrainingError {
                throw FormatError(file: file, place: .row(line), error.description)
            }
        }
    }

    /// Reads a recipe file.
    ///
    /// - Throws: `FormatError` when the file cannot be read, and as ``init(yaml:file:)``.
    public init(path: String) throws {
        let file = try MappedFile(path: path)
        let text = String(decoding: UnsafeRawBufferPointer(file.bytes), as: UTF8.self)
        try self.init(yaml: text, file: path)
    }

    /// Sets the value of a key.
    ///
    /// - Throws: ``TrainingError`` for an unknown key, with the nearest one, or a value of the wrong form.
    public mutating func set(_ key: String, to value: JSON) throws {
        guard let field = Self.fields.first(where: { $0.name == key }) else {
            let keys = Self.fields.map(\.name)
            throw TrainingError(
                "the key \"\(key)\" is unknown.\(suggestion(for: key, in: keys)) The keys are "
                    + keys.joined(separator: ", "))
        }
        guard field.write(&self, value) else {
            throw TrainingError("\(key): expected \(field.form), found \(value.compact)")
        }
    }

    /// The recipe as an object; keys without a value are left out.
    public var json: JSON {
        var object = KeyedList<JSON>()
        for field in Self.fields {
            let value = field.read(self)
            if !value.isNull, value != [:] { object.appendIfNew(key: field.name, value: value) }
            // Its default is not null, so the absence of a limit must be written down.
            if value.isNull, field.name == "save_total_limit" { object.appendIfNew(key: field.name, value: .null) }
        }
        return .object(object)
    }

    /// The recipe as YAML, which ``init(yaml:file:)`` reads back as the same recipe.
    ///
    /// - Throws: `FormatError` when a text cannot be written.
    public func yaml() throws -> String {
        "# Run again: graft train --recipe recipe.yaml --output <folder>\n" + (try YAML.text(json))
    }

    /// The recipe with everything written down that defaults and this machine decided: all settings of the method, dtype
    /// and device, and the versions of the programs.
    func completed(_ backbone: any Backbone, _ configuration: AdapterConfiguration) throws -> Recipe {
        var recipe = self
        let type = Swift.type(of: configuration.method).peftType
        // Variants such as rslora are settings of one method, and those are all written down.
        if (try? MethodRegistry.entry(method))?.type.peftType != type {
            recipe.method = MethodRegistry.entries.first { $0.type.peftType == type }?.name ?? type.lowercased()
        }
        recipe.settings = configuration.allSettings
        recipe.objectiveSettings = try LossFunction.settings(objective, objectiveSettings)
        recipe.dtype = backbone.dtype == .bfloat16 ? .bfloat16 : .float32
        recipe.device = backbone.device == .cpu ? .cpu : .cuda
        recipe.quantization = Quantization(backbone.weightForm)
        if case .nf4(let quantisesScales) = backbone.weightForm { recipe.doubleQuant = quantisesScales }
        recipe.versions = try Self.currentVersions()
        return recipe
    }
}

extension AdapterConfiguration {
    /// The hyper-parameters and selection fields with their values, defaults included.
    var allSettings: KeyedList<JSON> {
        var settings = method.settings
        for field in Selection.fields { settings.appendIfNew(key: field.name, value: field.read(selection)) }
        return settings
    }
}
