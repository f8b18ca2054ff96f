import Formats
import TestSupport
import Tokenizers

/// Random conversations with all that a message may have: tools and their calls, parts, reasoning, odd characters.
struct ConversationGenerator {
    private var random: SeededGenerator
    private var lines: LineGenerator

    init(seed: UInt64) {
        random = SeededGenerator(seed: seed)
        lines = LineGenerator(
            seed: seed + 1, specials: ["<|im_end|>", "<think>\nhm\n</think>\n", "</think>", "<tool_response>", "</s>"])
    }

    /// Mostly a system message and alternating turns; sometimes with tools, sometimes in any order.
    mutating func conversation() -> ChatConversation {
        let kind = Int.random(in: 0..<8, using: &random)
        var messages = Bool.random(using: &random) ? [message("system")] : []
        for _ in 0..<Int.random(in: 1...3, using: &random) {
            messages.append(message("user"))
            if kind < 3 { messages += toolUse() }
            messages.append(message("assistant"))
        }
        if Bool.random(using: &random) { messages.removeLast() }
        if kind == 7 { messages.shuffle(using: &random) }
        if kind == 6, let place = messages.indices.randomElement(using: &random) {
            messages[place].fields["content"] = .array([
                ["type": "text", "text": .string(text())], ["type": "image"], ["type": "text", "text": "two"],
            ])
        }
        var variables: KeyedList<JSON> = ["date_string": "1 Jan 2025"]
        if Bool.random(using: &random) { variables["enable_thinking"] = JSON(Bool.random(using: &random)) }
        return ChatConversation(messages, tools: kind < 4 && kind != 1 ? tools() : [], variables: variables)
    }

    mutating func text() -> String { lines.line(fragments: 4) }

    private mutating func message(_ role: String) -> ChatMessage {
        var message = ChatMessage(role: role, content: text())
        if role == "assistant", Int.random(in: 0..<5, using: &random) == 0 {
            message.fields["reasoning_content"] = .string(text())
        }
        if Int.random(in: 0..<9, using: &random) == 0 { message.fields["unknown"] = ["a": 1] }
        return message
    }

    /// A call, or two, and what the tools answer.
    private mutating func toolUse() -> [ChatMessage] {
        let count = Int.random(in: 0..<4, using: &random) == 0 ? 2 : 1
        var call = ChatMessage(role: "assistant", content: "")
        switch Int.random(in: 0..<4, using: &random) {
        case 0: call.fields["content"] = nil
        case 1: call.fields["content"] = .null
        case 2: call.content = text()
        default: break
        }
        call.fields["tool_calls"] = .array(
            (0..<count).map { index in
                [
                    "id": .string("call0000\(index)"), "type": "function",
                    "function": ["name": index == 0 ? "add" : "find", "arguments": value(depth: 2)],
                ]
            })
        return [call]
            + (0..<count).map { index in
                var answer = ChatMessage(role: "tool", content: text())
                answer.fields["name"] = index == 0 ? "add" : "find"
                answer.fields["tool_call_id"] = .string("call0000\(index)")
                return answer
            }
    }

    private mutating func value(depth: Int) -> JSON {
        var pairs = KeyedList<JSON>()
        for _ in 0..<Int.random(in: 0...3, using: &random) {
            let value: JSON
            switch Int.random(in: 0..<(depth > 0 ? 8 : 6), using: &random) {
            case 0: value = nil
            case 1: value = JSON(Bool.random(using: &random))
            case 2: value = JSON(Int.random(in: -1000...1000, using: &random))
            case 3: value = JSON(Double(Int.random(in: -1000...1000, using: &random)) / 8)
            case 4, 5: value = .string(text())
            case 6: value = [self.value(depth: depth - 1), 1, "a"]
            default: value = self.value(depth: depth - 1)
            }
            pairs[lines.line(fragments: 1)] = value
        }
        return .object(pairs)
    }

    private mutating func tools() -> [JSON] {
        ["add", "find"].prefix(Int.random(in: 1...2, using: &random)).map { name in
            [
                "type": "function",
                "function": [
                    "name": .string(name), "description": .string(text()),
                    "parameters": [
                        "type": "object",
                        "properties": [
                            "a": ["type": "integer", "description": "A number"], "b": ["type": ["string", "null"]],
                            "c": ["type": "array", "items": ["type": "number"]],
                        ],
                        "required": ["a"],
                    ],
                ],
            ]
        }
    }
}
