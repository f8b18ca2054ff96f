import Formats

/// A choice that peft writes as `true`, `false` or a name, such as `init_lora_weights`.
public protocol FlagOrName: FieldValue, RawRepresentable, CaseIterable where RawValue == String {}

extension FlagOrName {
    /// `true`, `false` or a name in any case.
    public init?(json: JSON) {
        if let flag = json.bool {
            self.init(rawValue: flag ? "true" : "false")
        } else if let name = json.string {
            self.init(rawValue: name.lowercased())
        } else {
            return nil
        }
    }

    /// As peft has it: `true`, `false` or a name.
    public var json: JSON {
        switch rawValue {
        case "true": true
        case "false": false
        default: .string(rawValue)
        }
    }
}
