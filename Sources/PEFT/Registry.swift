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
            name: "melora", title: "MELoRA", summary: "Small LoRAs between chunks of the inputs and of the outputs.",
            paper: "2402.17263", kind: "A weight map", type: MELoRA.self, settings: [:]),
        Entry(
            name: "loretta-rep", title: "LoRETTA-rep", summary: "LoRA whose factors are tensor trains of small cores.",
            paper: "2402.11417", kind: "A weight map", type: LoRETTA.self, settings: [:]),
        Entry(
            name: "miss", title: "MiSS", summary: "One matrix a layer, shared by all shards of the inputs.",
            paper: "2409.15371", kind: "A weight map", type: MiSS.self, settings: [:]),
        Entry(
            name: "bone", title: "Bone", summary: "Blocks of the weight, each changed by itself and one small matrix.",
            paper: "2409.15371", kind: "A weight map", type: MiSS.self, settings: ["init_weights": "bat"]),
        Entry(
            name: "hut", title: "HUT",
            summary: "Each entry of the weight times a factor of its input and of its output.",
            paper: "2409.13501", kind: "A weight map", type: HUT.self, settings: [:]),
        Entry(
            name: "ia3", title: "(IA)^3", summary: "A vector that scales keys, values and the MLP's inner features.",
            paper: "2205.05638", kind: "B output map", type: IA3.self, settings: [:]),
        Entry(
            name: "houlsby", title: "Houlsby adapter",
            summary: "Bottlenecks behind attention and MLP, and trained norms.",
            paper: "1902.00751", kind: "B output map", type: BottleneckAdapter.self,
            settings: [
                "attention_adapter": "output", "mlp_adapter": "output", "non_linearity": "gelu",
                "init_weights": "truncated_normal", "init_std": 1e-3, "train_norms": true,
            ]),
        Entry(
            name: "pfeiffer", title: "Pfeiffer adapter", summary: "One bottleneck a block, behind the MLP.",
            paper: "2005.00247", kind: "B output map", type: BottleneckAdapter.self, settings: [:]),
        Entry(
            name: "parallel-adapter", title: "Parallel adapter", summary: "One bottleneck a block, beside the MLP.",
            paper: "2110.04366", kind: "B output map", type: BottleneckAdapter.self,
            settings: ["reduction_factor": 2, "mlp_adapter": "input", "scale": 4, "init_weights": "zero_up"]),
        Entry(
            name: "adaptformer", title: "AdaptFormer",
            summary: "A weak bottleneck beside the MLP, over the stream as it is.",
            paper: "2205.13535", kind: "B output map", type: BottleneckAdapter.self,
            settings: [
                "r": 64, "mlp_adapter": "stream", "scale": 0.1, "adapter_dropout": 0.1, "init_weights": "zero_up",
            ]),
        Entry(
            name: "capaboost-adapter", title: "CapaBoost-Adapter",
            summary: "Houlsby's bottlenecks as parallel masked branches over the same weights.",
            paper: "2407.01320", kind: "B output map", type: CapaBoostAdapter.self,
            settings: ["attention_adapter": "output", "mlp_adapter": "output"]),
        Entry(
            name: "capaboost-padapter", title: "CapaBoost-PAdapter",
            summary: "Pfeiffer's bottleneck as parallel masked branches over the same weights.",
            paper: "2407.01320", kind: "B output map", type: CapaBoostAdapter.self, settings: [:]),
        Entry(
            name: "prefix-tuning", title: "Prefix tuning",
            summary: "Trained keys and values in front of every block's own.",
            paper: "2101.00190", kind: "C attention state", type: PrefixTuning.self, settings: [:]),
        Entry(
            name: "prompt-tuning", title: "Prompt tuning", summary: "Trained vectors in front of the tokens.",
            paper: "2104.08691", kind: "D token stream", type: PromptTuning.self, settings: [:]),
        Entry(
            name: "p-tuning", title: "P-tuning", summary: "Vectors in front of the tokens, made by a small network.",
            paper: "2103.10385", kind: "D token stream", type: PTuning.self, settings: [:]),
        Entry(
            name: "dept", title: "DePT",
            summary: "A short prompt, and a low-rank term on the embeddings by position.",
            paper: "2309.05173", kind: "D token stream", type: DePT.self, settings: [:]),
        Entry(
            name: "bitfit", title: "BitFit", summary: "The biases of linear layers; zero ones where there are none.",
            paper: "2106.10199", kind: "E selected parameters", type: BitFit.self, settings: [:]),
        Entry(
            name: "ln-tuning", title: "LN-tuning", summary: "The gains of norms.", paper: "2312.11420",
            kind: "E selected parameters", type: LNTuning.self, settings: [:]),
        Entry(
            name: "paca", title: "PaCA", summary: "A few random columns of each weight, trained in place.",
            paper: "2503.01905", kind: "E selected parameters", type: PaCA.self, settings: [:]),
        Entry(
            name: "s2ft", title: "S2FT", summary: "A few heads and channels of the whole model, trained in place.",
            paper: "2412.06289", kind: "E selected parameters", type: S2FT.self, settings: [:]),
        Entry(
            name: "id3", title: "ID3", summary: "Single scalars of the model, more of them with every step.",
            paper: "2408.14470", kind: "E selected parameters", type: ID3.self, settings: [:]),
        Entry(
            name: "full", title: "Full fine-tuning", summary: "Every parameter, as a copy in fp32.",
            paper: "1810.04805", kind: "E selected parameters", type: FullFineTuning.self, settings: [:]),
        Entry(
            name: "meft", title: "MEFT", summary: "Reversible blocks of two coupled streams, trained by adapters.",
            paper: "2306.00477", kind: "G block execution", type: MEFT.self, settings: [:]),
        Entry(
            name: "adalora", title: "AdaLoRA", summary: "LoRA whose ranks go where they matter most, under a budget.",
            paper: "2303.10512", kind: "I training hook", type: AdaLoRA.self, settings: [:]),
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
