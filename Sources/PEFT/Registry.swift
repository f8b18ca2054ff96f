import Formats

/// Everything that Graft can train: names, what they stand for, and where they come from.
///
/// The command line's help, the recipe's keys, the table in the documentation and the generic tests are made from it.
public enum MethodRegistry {
    /// A name after `--method`.
    public struct Entry: Sendable {
        /// The name, such as `dora`.
        public let name: String
        /// What it is called in print.
        public let title: String
        /// What it does, in one sentence.
        public let summary: String
        /// The arXiv identifier of the paper.
        public let paper: String
        /// The kind of attachment, of the ten in docs/architecture.md.
        public let kind: String
        /// The method that computes it.
        public let type: any Method.Type
        /// The settings that make the method this variant.
        public let settings: KeyedList<JSON>

        /// The method with its defaults and the variant's settings.
        ///
        /// - Throws: `PEFTError` when the registry itself is wrong.
        public func make() throws -> any Method {
            var method: any Method = type.init()
            for (key, value) in settings {
                guard let changed = try method.setting(key, to: value) else {
                    throw PEFTError("the method \(name) presets \"\(key)\", which \(type.peftType) does not have")
                }
                method = changed
            }
            return method
        }
    }

    /// All names, in the order of the documentation.
    public static let entries: [Entry] = [
        Entry(
            name: "lora", title: "LoRA", summary: "Two thin factors a layer.", paper: "2106.09685",
            kind: "A weight map", type: LoRA.self, settings: [:]),
        Entry(
            name: "rslora", title: "rsLoRA", summary: "LoRA scaled by the root of the rank.", paper: "2312.03732",
            kind: "A weight map", type: LoRA.self, settings: ["use_rslora": true]),
        Entry(
            name: "dora", title: "DoRA", summary: "LoRA for the direction of the weight's rows, trained norms beside.",
            paper: "2402.09353", kind: "A weight map", type: LoRA.self, settings: ["use_dora": true]),
        Entry(
            name: "pissa", title: "PiSSA", summary: "LoRA that starts from the weight's largest singular directions.",
            paper: "2404.02948", kind: "A weight map", type: LoRA.self, settings: ["init_lora_weights": "pissa"]),
        Entry(
            name: "olora", title: "OLoRA", summary: "LoRA that starts from the weight's QR factors.",
            paper: "2406.01775", kind: "A weight map", type: LoRA.self, settings: ["init_lora_weights": "olora"]),
        Entry(
            name: "lorta", title: "LoRTA", summary: "One tensor in CP form for the attention matrices of all blocks.",
            paper: "2410.04060", kind: "A weight map", type: LoRTA.self, settings: [:]),
        Entry(
            name: "capaboost-lora", title: "CapaBoost-LoRA",
            summary: "Parallel LoRA branches over shared factors, each through masks of its own.",
            paper: "2407.01320", kind: "A weight map", type: CapaBoost.self, settings: [:]),
        Entry(
            name: "meft", title: "MEFT", summary: "Reversible blocks of two coupled streams, trained by adapters.",
            paper: "2306.00477", kind: "G block execution", type: MEFT.self, settings: [:]),
        Entry(
            name: "ist", title: "IST", summary: "LoRA of which each step trains a few layers, drawn by a learnt score.",
            paper: "2410.11772", kind: "I training hook", type: IST.self, settings: [:]),
    ]

    /// The entry of a name.
    ///
    /// - Throws: `PEFTError` with the nearest name and all there are.
    public static func entry(_ name: String) throws -> Entry {
        guard let entry = entries.first(where: { $0.name == name }) else {
            let names = entries.map(\.name)
            throw PEFTError(
                "there is no method \"\(name)\".\(suggestion(for: name, in: names)) The methods are "
                    + names.joined(separator: ", ")
            )
        }
        return entry
    }

    /// The type that reads folders of a `peft_type`.
    ///
    /// - Throws: `PEFTError` naming the types that can be read.
    public static func type(peftType: String) throws -> any Method.Type {
        guard let entry = entries.first(where: { $0.type.peftType == peftType }) else {
            let known = Set(entries.map { $0.type.peftType }).sorted()
            throw PEFTError(
                "adapters of type \"\(peftType)\" cannot be read; those that can: \(known.joined(separator: ", "))")
        }
        return entry.type
    }
}
