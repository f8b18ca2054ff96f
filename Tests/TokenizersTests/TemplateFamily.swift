/// A chat template in the style of a model family, and what its assistant's turns are.
struct TemplateFamily: Sendable {
    let name: String
    let source: String
    /// The tokens that end a turn, as the family's generation configuration has them.
    let ends: [String]
    /// The assistant's spans in ``talk``, written by hand; none where the template refuses that conversation.
    let spans: [String]
    /// The spans of ``toolTalk``, where the family has tools.
    var toolSpans: [String] = []
    /// Whether ``talk`` has its system message.
    var hasSystem = true

    init(
        _ name: String, ends: [String], spans: [String], toolSpans: [String] = [], hasSystem: Bool = true,
        _ source: String
    ) {
        self.name = name
        self.source = source
        self.ends = ends
        self.spans = spans
        self.toolSpans = toolSpans
        self.hasSystem = hasSystem
    }

    /// All families.
    static let all = qwen + llama + mistral + gemma + phi + deepSeek + tagged + plain
}

extension TemplateFamily {
    static let qwen: [TemplateFamily] = [
        TemplateFamily(
            "ChatML", ends: ["<|im_end|>"], spans: [" Yes. é <|im_end|>", "Four<|im_end|>"],
            #"""
            {% for m in messages %}{{'<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n'}}{% endfor %}
            {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}
            """#),
        TemplateFamily(
            "ChatML, trimmed", ends: ["<|im_end|>"], spans: ["Yes. é<|im_end|>", "Four<|im_end|>"],
            #"""
            {%- for message in messages -%}
                {{- '<|im_start|>' ~ message.role ~ '\n' ~ (message.content | trim) ~ '<|im_end|>\n' -}}
            {%- endfor -%}
            {%- if add_generation_prompt -%}<|im_start|>assistant
            {% endif -%}
            """#),
        TemplateFamily(
            "SmolLM2", ends: ["<|im_end|>"], spans: [" Yes. é <|im_end|>", "Four<|im_end|>"],
            #"""
            {% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system
            You are a small model.<|im_end|>
            ' }}{% endif %}{{'<|im_start|>' + message['role'] + '
            ' + message['content'] + '<|im_end|>' + '
            '}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant
            ' }}{% endif %}
            """#),
        TemplateFamily(
            "Qwen 2.5", ends: ["<|im_end|>", "<|endoftext|>"], spans: [" Yes. é <|im_end|>", "Four<|im_end|>"],
            toolSpans: [
                "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 2, \"b\": \"é\"}}\n</tool_call><|im_end|>",
                "It is 4.<|im_end|>",
            ], qwen25),
        TemplateFamily(
            "Qwen 3", ends: ["<|im_end|>", "<|endoftext|>"],
            spans: [" Yes. é <|im_end|>", "<think>\n\n</think>\n\nFour<|im_end|>"],
            toolSpans: [
                "<think>\n\n</think>\n\n<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 2, \"b\": \"é\"}}\n"
                    + "</tool_call><|im_end|>",
                "<think>\n\n</think>\n\nIt is 4.<|im_end|>",
            ], qwen3),
        TemplateFamily(
            "Qwen 3 Instruct 2507", ends: ["<|im_end|>"], spans: [" Yes. é <|im_end|>", "Four<|im_end|>"],
            toolSpans: [
                "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 2, \"b\": \"é\"}}\n</tool_call><|im_end|>",
                "It is 4.<|im_end|>",
            ], qwen25.replacing("You are a helpful assistant.", with: "")),
        TemplateFamily(
            "Qwen 3 Thinking 2507", ends: ["<|im_end|>"],
            spans: [" Yes. é <|im_end|>", "\n</think>\n\nFour<|im_end|>"],
            qwen3.replacing("'<|im_start|>assistant\\n' }}", with: "'<|im_start|>assistant\\n<think>\\n' }}")),
        TemplateFamily(
            "SmolLM 3", ends: ["<|im_end|>"],
            spans: ["Yes. é<|im_end|>", "Four<|im_end|>"],
            #"""
            {%- if enable_thinking is not defined -%}{%- set enable_thinking = true -%}{%- endif -%}
            {%- set mode = "/think" if enable_thinking else "/no_think" -%}
            {%- if messages[0].role == "system" -%}
                {%- set own = messages[0].content -%}
                {%- set mode = "/no_think" if "/no_think" in own else mode -%}
                {%- set own = own.replace("/no_think", "").replace("/think", "").rstrip() -%}
            {%- endif -%}
            {{- "<|im_start|>system\n## Mode: " + mode + "\n\n" -}}
            {%- if own %}{{- own + "\n\n" -}}{%- endif -%}{{- "<|im_end|>\n" -}}
            {%- for message in messages -%}
                {%- set content = message.content if message.content is string else "" -%}
                {%- if message.role == "user" -%}{{ "<|im_start|>user\n" + content + "<|im_end|>\n" }}
                {%- elif message.role == "assistant" -%}
                    {% generation %}
                    {%- if mode == "/think" -%}{{ "<|im_start|>assistant\n" + content.lstrip("\n").strip() + "<|im_end|>\n" }}
                    {%- else -%}{{ "<|im_start|>assistant\n<think>\n\n</think>\n" + content.strip() + "<|im_end|>\n" }}
                    {%- endif -%}
                    {% endgeneration %}
                {%- elif message.role == "tool" -%}{{ "<|im_start|>user\n" + message.content + "<|im_end|>\n" }}
                {%- endif -%}
            {%- endfor -%}
            {%- if add_generation_prompt -%}
                {{- "<|im_start|>assistant\n" if mode == "/think" else "<|im_start|>assistant\n<think>\n\n</think>\n" -}}
            {%- endif -%}
            """#),
        TemplateFamily(
            "Hermes", ends: ["<|im_end|>"], spans: [" Yes. é <|im_end|>", "Four<|im_end|>"],
            toolSpans: [
                "<tool_call>\n{\"name\": \"add\", \"arguments\": {\"a\": 2, \"b\": \"é\"}}\n</tool_call><|im_end|>",
                "It is 4.<|im_end|>",
            ],
            #"""
            {%- macro type_of(spec) %}
                {%- set names = {"string": "str", "number": "float", "integer": "int", "boolean": "bool"} %}
                {%- if spec.type in names %}{{- names[spec.type] }}
                {%- elif spec.type == "array" %}{{- "list[" + type_of(spec['items']) + "]" }}
                {%- elif spec.type == "object" %}{{- "dict" }}
                {%- elif spec.type is iterable %}{{- "Union[" }}{%- for t in spec.type %}{{- type_of({"type": t}) }}
                    {%- if not loop.last %}{{- "," }}{%- endif %}{%- endfor %}{{- "]" }}
                {%- else %}{{- "Any" }}{%- endif %}
            {%- endmacro %}
            {{- bos_token }}
            {%- if tools %}
            {{- '<|im_start|>system\nFunctions: <tools> ' }}
            {%- for tool in tools %}
                {%- set tool = tool.function if tool.function is defined else tool %}
                {{- '{"name": "' + tool.name + '", "description": "' + tool.name + '(' }}
                {%- for name, spec in tool.parameters.properties|items %}
                    {{- name + ": " + type_of(spec) }}{%- if not loop.last %}{{- ", " }}{%- endif %}
                {%- endfor %}
                {{- ")\", \"parameters\": " }}{{- tool.parameters|tojson if tool.parameters.properties|length else "{}" }}
                {{- "}" if loop.last else "}\n" }}
            {%- endfor %}
            {{- " </tools><|im_end|>\n" }}
            {%- endif %}
            {%- for message in messages %}
                {%- if message.role in ["user", "system"] or (message.role == "assistant" and message.tool_calls is not defined) %}
                    {{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}
                {%- elif message.role == "assistant" %}
                    {{- '<|im_start|>' + message.role }}
                    {%- for call in message.tool_calls %}
                        {{- '\n<tool_call>\n' }}
                        {%- if call.function is defined %}{%- set call = call.function %}{%- endif %}
                        {{- '{"name": "' + call.name + '", "arguments": ' }}{{- call.arguments|tojson }}{{- '}\n</tool_call>' }}
                    {%- endfor %}
                    {{- '<|im_end|>\n' }}
                {%- elif message.role == "tool" %}
                    {%- if loop.previtem and loop.previtem.role != "tool" %}{{- '<|im_start|>tool\n' }}{%- endif %}
                    {{- '<tool_response>\n' }}{{- message.content }}
                    {{- '\n</tool_response>' if loop.last else '\n</tool_response>\n' }}
                    {%- if not loop.last and loop.nextitem.role != "tool" %}{{- '<|im_end|>' }}
                    {%- elif loop.last %}{{- '<|im_end|>' }}{%- endif %}
                {%- endif %}
            {%- endfor %}
            {%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}
            """#),
    ]

    private static let qwen25 = #"""
        {%- if tools %}
            {{- '<|im_start|>system\n' }}
            {%- if messages[0].role == 'system' %}
                {{- messages[0].content + '\n\n' }}
            {%- else %}
                {{- 'You are a helpful assistant.' }}
            {%- endif %}
            {{- "# Tools\n<tools>" }}
            {%- for tool in tools %}{{- "\n" }}{{- tool | tojson }}{%- endfor %}
            {{- "\n</tools>\nAnswer <tool_call>{\"name\": <name>, \"arguments\": <object>}</tool_call><|im_end|>\n" }}
        {%- elif messages[0].role == 'system' %}
            {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
        {%- elif 'You are a helpful assistant.' %}
            {{- '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n' }}
        {%- endif %}
        {%- for message in messages %}
            {%- if message.content is string %}{%- set content = message.content %}{%- else %}{%- set content = '' %}{%- endif %}
            {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
                {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
            {%- elif message.role == "assistant" and not message.tool_calls %}
                {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>\n' }}
            {%- elif message.role == "assistant" %}
                {{- '<|im_start|>' + message.role }}
                {%- if message.content %}{{- '\n' + message.content }}{%- endif %}
                {%- for tool_call in message.tool_calls %}
                    {%- if tool_call.function is defined %}{%- set tool_call = tool_call.function %}{%- endif %}
                    {{- '\n<tool_call>\n{"name": "' }}
                    {{- tool_call.name }}
                    {{- '", "arguments": ' }}
                    {{- tool_call.arguments | tojson }}
                    {{- '}\n</tool_call>' }}
                {%- endfor %}
                {{- '<|im_end|>\n' }}
            {%- elif message.role == "tool" %}
                {%- if loop.index0 == 0 or messages[loop.index0 - 1].role != "tool" %}{{- '<|im_start|>user' }}{%- endif %}
                {{- '\n<tool_response>\n' }}{{- message.content }}{{- '\n</tool_response>' }}
                {%- if loop.last or messages[loop.index0 + 1].role != "tool" %}{{- '<|im_end|>\n' }}{%- endif %}
            {%- endif %}
        {%- endfor %}
        {%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}{%- endif %}
        """#

    /// Drops what the assistant thought before the last question.
    private static let qwen3 = #"""
        {%- if tools %}
            {{- '<|im_start|>system\n' }}
            {%- if messages[0].role == 'system' %}{{- messages[0].content + '\n\n' }}{%- endif %}
            {{- "# Tools\n<tools>" }}
            {%- for tool in tools %}{{- "\n" }}{{- tool | tojson }}{%- endfor %}
            {{- "\n</tools><|im_end|>\n" }}
        {%- elif messages[0].role == 'system' %}
            {{- '<|im_start|>system\n' + messages[0].content + '<|im_end|>\n' }}
        {%- endif %}
        {%- set ns = namespace(searching=true, last_query=messages|length - 1) %}
        {%- for message in messages[::-1] %}
            {%- set index = (messages|length - 1) - loop.index0 %}
            {%- if ns.searching and message.role == "user" and message.content is string and not (message.content.startswith('<tool_response>') and message.content.endswith('</tool_response>')) %}
                {%- set ns.searching = false %}
                {%- set ns.last_query = index %}
            {%- endif %}
        {%- endfor %}
        {%- for message in messages %}
            {%- if message.content is string %}{%- set content = message.content %}{%- else %}{%- set content = '' %}{%- endif %}
            {%- if message.role == "user" or (message.role == "system" and not loop.first) %}
                {{- '<|im_start|>' + message.role + '\n' + content + '<|im_end|>' + '\n' }}
            {%- elif message.role == "assistant" %}
                {%- set reasoning = '' %}
                {%- if message.reasoning_content is string %}
                    {%- set reasoning = message.reasoning_content %}
                {%- elif '</think>' in content %}
                    {%- set reasoning = content.split('</think>')[0].rstrip('\n').split('<think>')[-1].lstrip('\n') %}
                    {%- set content = content.split('</think>')[-1].lstrip('\n') %}
                {%- endif %}
                {%- if loop.index0 > ns.last_query and (loop.last or (not loop.last and reasoning) or message.tool_calls) %}
                    {{- '<|im_start|>' + message.role + '\n<think>\n' + reasoning.strip('\n') + '\n</think>\n\n' + content.lstrip('\n') }}
                {%- else %}
                    {{- '<|im_start|>' + message.role + '\n' + content }}
                {%- endif %}
                {%- if message.tool_calls %}
                    {%- for tool_call in message.tool_calls %}
                        {%- if (loop.first and content) or (not loop.first) %}{{- '\n' }}{%- endif %}
                        {%- if tool_call.function %}{%- set tool_call = tool_call.function %}{%- endif %}
                        {{- '<tool_call>\n{"name": "' }}{{- tool_call.name }}{{- '", "arguments": ' }}
                        {%- if tool_call.arguments is string %}{{- tool_call.arguments }}
                        {%- else %}{{- tool_call.arguments | tojson }}{%- endif %}
                        {{- '}\n</tool_call>' }}
                    {%- endfor %}
                {%- endif %}
                {{- '<|im_end|>\n' }}
            {%- elif message.role == "tool" %}
                {%- if loop.first or (messages[loop.index0 - 1].role != "tool") %}{{- '<|im_start|>user' }}{%- endif %}
                {{- '\n<tool_response>\n' }}{{- content }}{{- '\n</tool_response>' }}
                {%- if loop.last or (messages[loop.index0 + 1].role != "tool") %}{{- '<|im_end|>\n' }}{%- endif %}
            {%- endif %}
        {%- endfor %}
        {%- if add_generation_prompt %}
            {{- '<|im_start|>assistant\n' }}
            {%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}
        {%- endif %}
        """#
}

extension String {
    /// The string with every occurrence of a part replaced; the part must be there.
    fileprivate func replacing(_ part: String, with new: String) -> String {
        let pieces = components(separated: part)
        precondition(pieces.count > 1, "\(part) is not in the template")
        return pieces.joined(separator: new)
    }

    private func components(separated part: String) -> [String] {
        var pieces: [String] = []
        var rest = self[...]
        while let range = rest.firstRange(of: part) {
            pieces.append(String(rest[..<range.lowerBound]))
            rest = rest[range.upperBound...]
        }
        return pieces + [String(rest)]
    }
}
