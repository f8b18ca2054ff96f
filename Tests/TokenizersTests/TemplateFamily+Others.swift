extension TemplateFamily {
    static let phi: [TemplateFamily] = [
        TemplateFamily(
            "Phi 3", ends: ["<|end|>", "<|endoftext|>", "<|assistant|>"], spans: [" Yes. é <|end|>", "Four<|end|>"],
            #"""
            {% for message in messages %}{% if message['role'] == 'system' %}{{'<|system|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'user' %}{{'<|user|>\n' + message['content'] + '<|end|>\n'}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>\n' + message['content'] + '<|end|>\n'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% else %}{{ eos_token }}{% endif %}
            """#),
        TemplateFamily(
            "Phi 3.5", ends: ["<|end|>"], spans: [" Yes. é <|end|>", "Four<|end|>"],
            #"""
            {% for message in messages %}{% if message['role'] == 'system' and message['content'] %}{{'<|system|>
            ' + message['content'] + '<|end|>
            '}}{% elif message['role'] == 'user' %}{{'<|user|>
            ' + message['content'] + '<|end|>
            '}}{% elif message['role'] == 'assistant' %}{{'<|assistant|>
            ' + message['content'] + '<|end|>
            '}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>
            ' }}{% else %}{{ eos_token }}{% endif %}
            """#),
        TemplateFamily(
            "Phi 4", ends: ["<|im_end|>"], spans: [" Yes. é <|im_end|>", "Four<|im_end|>"],
            #"""
            {% for message in messages %}{% if (message['role'] == 'system') %}{{'<|im_start|>system<|im_sep|>' + message['content'] + '<|im_end|>'}}{% elif (message['role'] == 'user') %}{{'<|im_start|>user<|im_sep|>' + message['content'] + '<|im_end|>'}}{% elif (message['role'] == 'assistant') %}{{'<|im_start|>assistant<|im_sep|>' + message['content'] + '<|im_end|>'}}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant<|im_sep|>' }}{% endif %}
            """#),
        TemplateFamily(
            "Phi 4 mini", ends: ["<|end|>"], spans: [" Yes. é <|end|>", "Four<|end|>"],
            #"""
            {% for message in messages %}{% if message['role'] == 'system' and 'tools' in message and message['tools'] is not none %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|tool|>' + message['tools'] + '<|/tool|>' + '<|end|>' }}{% else %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% else %}{{ eos_token }}{% endif %}
            """#),
    ]

    static let deepSeek: [TemplateFamily] = [
        TemplateFamily(
            "DeepSeek V2", ends: ["<｜end▁of▁sentence｜>"],
            spans: ["  Yes. é <｜end▁of▁sentence｜>", " Four<｜end▁of▁sentence｜>"],
            #"""
            {{ bos_token }}{% for message in messages %}{% if message['role'] == 'user' %}{{ 'User: ' + message['content'] + '\n\n' }}{% elif message['role'] == 'assistant' %}{{ 'Assistant: ' + message['content'] + '<｜end▁of▁sentence｜>' }}{% elif message['role'] == 'system' %}{{ message['content'] + '\n\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}
            """#),
        TemplateFamily(
            "DeepSeek R1", ends: ["<｜end▁of▁sentence｜>"],
            spans: [" Yes. é <｜end▁of▁sentence｜>", "Four<｜end▁of▁sentence｜>"],
            toolSpans: [
                "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>add\n```json\n"
                    + "{\"a\": 2, \"b\": \"é\"}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜><｜end▁of▁sentence｜>",
                "It is 4.<｜end▁of▁sentence｜>",
            ],
            #"""
            {% if not add_generation_prompt is defined %}{% set add_generation_prompt = false %}{% endif %}
            {%- set ns = namespace(is_first=false, is_tool=false, is_output_first=true, system_prompt='') %}
            {%- for message in messages %}{%- if message['role'] == 'system' %}{% set ns.system_prompt = message['content'] %}{%- endif %}{%- endfor %}
            {{- bos_token }}{{ ns.system_prompt }}
            {%- for message in messages %}
                {%- if message['role'] == 'user' %}
                    {%- set ns.is_tool = false -%}{{'<｜User｜>' + message['content']}}
                {%- endif %}
                {%- if message['role'] == 'assistant' and message['tool_calls'] %}
                    {%- set ns.is_tool = false -%}
                    {%- for tool in message['tool_calls'] %}
                        {%- if not ns.is_first %}{{'<｜Assistant｜><｜tool▁calls▁begin｜><｜tool▁call▁begin｜>' + (tool['type'] or 'function') + '<｜tool▁sep｜>' + tool['function']['name'] + '\n' + '```json' + '\n' + tool['function']['arguments'] | tojson + '\n' + '```' + '<｜tool▁call▁end｜>'}}
                            {%- set ns.is_first = true -%}
                        {%- else %}{{'\n' + '<｜tool▁call▁begin｜>' + tool['type'] + '<｜tool▁sep｜>' + tool['function']['name'] + '\n' + '```json' + '\n' + tool['function']['arguments'] | tojson + '\n' + '```' + '<｜tool▁call▁end｜>'}}
                        {%- endif %}
                    {%- endfor %}
                    {{- '<｜tool▁calls▁end｜><｜end▁of▁sentence｜>'}}
                {%- elif message['role'] == 'assistant' and message['content'] is not none %}
                    {%- if ns.is_tool %}{{'<｜tool▁outputs▁end｜>' + message['content'] + '<｜end▁of▁sentence｜>'}}
                        {%- set ns.is_tool = false -%}
                    {%- else %}
                        {%- set content = message['content'] %}
                        {%- if '</think>' in content %}{% set content = content.split('</think>')[-1] %}{% endif %}
                        {{- '<｜Assistant｜>' + content + '<｜end▁of▁sentence｜>'}}
                    {%- endif %}
                {%- endif %}
                {%- if message['role'] == 'tool' %}
                    {%- set ns.is_tool = true -%}
                    {%- if ns.is_output_first %}{{'<｜tool▁outputs▁begin｜><｜tool▁output▁begin｜>' + message['content'] + '<｜tool▁output▁end｜>'}}
                        {%- set ns.is_output_first = false %}
                    {%- else %}{{'\n<｜tool▁output▁begin｜>' + message['content'] + '<｜tool▁output▁end｜>'}}{%- endif %}
                {%- endif %}
            {%- endfor -%}
            {% if ns.is_tool %}{{'<｜tool▁outputs▁end｜>'}}{% endif %}
            {%- if add_generation_prompt and not ns.is_tool %}{{'<｜Assistant｜><think>\n'}}{% endif %}
            """#),
    ]

    /// Templates that write roles as tags.
    static let tagged: [TemplateFamily] = [
        TemplateFamily(
            "Zephyr", ends: ["</s>"], spans: [" Yes. é </s>", "Four</s>"],
            #"""
            {% for message in messages %}
            {% if message['role'] == 'user' %}
            {{ '<|user|>\n' + message['content'] + eos_token }}
            {% elif message['role'] == 'system' %}
            {{ '<|system|>\n' + message['content'] + eos_token }}
            {% elif message['role'] == 'assistant' %}
            {{ '<|assistant|>\n'  + message['content'] + eos_token }}
            {% endif %}
            {% if loop.last and add_generation_prompt %}
            {{ '<|assistant|>' }}
            {% endif %}
            {% endfor %}
            """#),
        TemplateFamily(
            "Tulu", ends: ["</s>"], spans: [" Yes. é </s>", "Four</s>"],
            #"""
            {{ bos_token }}{% for message in messages %}
            {% if message['role'] == 'system' %}
            {{ '<|system|>\n' + message['content'] + '\n' }}
            {%- elif message['role'] == 'user' %}
            {{ '<|user|>\n' + message['content'] + '\n' }}
            {%- elif message['role'] == 'assistant' %}
            {% if not loop.last %}{{ '<|assistant|>\n' + message['content'] + eos_token + '\n' }}{% else %}{{ '<|assistant|>\n' + message['content'] + eos_token }}{% endif %}
            {%- endif %}
            {% if loop.last and add_generation_prompt %}
            {{ '<|assistant|>\n' }}
            {% endif %}
            {% endfor %}
            """#),
        TemplateFamily(
            "Granite 3", ends: ["<|end_of_text|>"], spans: [" Yes. é <|end_of_text|>", "Four<|end_of_text|>"],
            #"""
            {%- if tools %}{{- '<|start_of_role|>available_tools<|end_of_role|>\n' }}
                {%- for tool in tools %}{{- tool | tojson(indent=4) }}{%- if not loop.last %}{{- '\n\n' }}{%- endif %}{%- endfor %}
                {{- '<|end_of_text|>\n' }}
            {%- endif %}
            {%- for message in messages %}
                {%- if message['role'] == 'system' %}{{- '<|start_of_role|>system<|end_of_role|>' + message['content'] + '<|end_of_text|>\n' }}
                {%- elif message['role'] == 'user' %}{{- '<|start_of_role|>user<|end_of_role|>' + message['content'] + '<|end_of_text|>\n' }}
                {%- elif message['role'] == 'assistant' %}{{- '<|start_of_role|>assistant<|end_of_role|>' + message['content'] + '<|end_of_text|>\n' }}
                {%- elif message['role'] == 'tool' %}{{- '<|start_of_role|>tool_response<|end_of_role|>' + message['content'] + '<|end_of_text|>\n' }}
                {%- endif %}
                {%- if loop.last and add_generation_prompt %}{{- '<|start_of_role|>assistant<|end_of_role|>' }}{%- endif %}
            {%- endfor %}
            """#),
        TemplateFamily(
            "Command R", ends: ["<|END_OF_TURN_TOKEN|>"],
            spans: ["Yes. é<|END_OF_TURN_TOKEN|>", "Four<|END_OF_TURN_TOKEN|>"],
            #"""
            {{ bos_token }}{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}{% if system_message != false %}{{ '<|START_OF_TURN_TOKEN|><|SYSTEM_TOKEN|>' + system_message + '<|END_OF_TURN_TOKEN|>' }}{% endif %}{% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate') }}{% endif %}{% set content = message['content'] %}{% if message['role'] == 'user' %}{{ '<|START_OF_TURN_TOKEN|><|USER_TOKEN|>' + content.strip() + '<|END_OF_TURN_TOKEN|>' }}{% elif message['role'] == 'assistant' %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>'  + content.strip() + '<|END_OF_TURN_TOKEN|>' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|>' }}{% endif %}
            """#),
        TemplateFamily(
            "StableLM", ends: ["<|endoftext|>"], spans: [" Yes. é <|endoftext|>", "Four<|endoftext|>"],
            #"""
            {% for message in messages %}{% if message['role'] == 'user' %}{{ '<|user|>' }}{% elif message['role'] == 'system' %}{{ '<|system|>' }}{% else %}{{ '<|assistant|>' }}{% endif %}
            {{ '\n' + message['content'] + '<|endoftext|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>\n' }}{% endif %}
            """#),
        TemplateFamily(
            "Falcon 3", ends: ["<|endoftext|>"], spans: [" Yes. é <|endoftext|>", "Four<|endoftext|>"],
            #"""
            {%- for message in messages %}
                {%- if message['role'] == 'system' %}{{- '<|system|>\n' + message['content'] + '\n' }}
                {%- elif message['role'] == 'user' %}{{- '<|user|>\n' + message['content'] + '\n' }}
                {%- elif message['role'] == 'assistant' %}
                    {%- if not loop.last %}{{- '<|assistant|>\n' + message['content'] + '<|endoftext|>\n' }}
                    {%- else %}{{- '<|assistant|>\n' + message['content'] + '<|endoftext|>' }}{%- endif %}
                {%- endif %}
                {%- if loop.last and add_generation_prompt %}{{- '<|assistant|>\n' }}{%- endif %}
            {%- endfor %}
            """#),
        TemplateFamily(
            "GLM 4", ends: ["<|user|>", "<|endoftext|>"], spans: ["\n Yes. é <|user|>", "\nFour"],
            #"""
            [gMASK]<sop>{% for item in messages %}{% if item['tools'] is defined and item['tools'] %}<|system|>
            {{ item['tools'] | tojson }}{% endif %}{% if item['content'] %}<|{{ item['role'] }}|>{{ item['metadata'] }}
            {{ item['content'] }}{% endif %}{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}
            """#),
        TemplateFamily(
            "gpt-oss", ends: ["<|return|>", "<|call|>", "<|end|>"],
            spans: ["<|channel|>final<|message|> Yes. é <|end|>", "<|channel|>final<|message|>Four<|return|>"],
            #"""
            {%- macro render_tool(tool) -%}{{- "// " + (tool.description or "") + "\ntype " + tool.name + " = (_: {\n" }}
                {%- for name, spec in tool.parameters.properties.items() %}{{- name + ("?" if name not in (tool.parameters.required or []) else "") + ": " + (spec.type or "any") + ",\n" }}{%- endfor %}{{- "}) => any;\n" }}
            {%- endmacro -%}
            {{- "<|start|>system<|message|>Reasoning: " + (reasoning_effort | default("medium")) + "<|end|>" }}
            {%- set loop_messages = messages %}
            {%- if messages[0].role in ["system", "developer"] %}{%- set developer = messages[0].content %}{%- set loop_messages = messages[1:] %}{%- endif %}
            {%- if developer or tools %}
                {{- "<|start|>developer<|message|>" }}{%- if developer %}{{- "# Instructions\n\n" + developer }}{%- endif %}
                {%- if tools %}{%- for tool in tools %}{%- set tool = tool.function %}{{- render_tool(tool) }}{%- endfor %}{%- endif %}
                {{- "<|end|>" }}
            {%- endif %}
            {%- set last_tool = namespace(name=none) %}
            {%- for message in loop_messages -%}
                {%- if message.role == "assistant" -%}
                    {%- if "tool_calls" in message -%}
                        {%- set call = message.tool_calls[0].function %}
                        {%- if message.content %}{{- "<|start|>assistant<|channel|>analysis<|message|>" + message.content + "<|end|>" }}{%- endif %}
                        {{- "<|start|>assistant to=functions." + call.name + "<|channel|>commentary json<|message|>" + call.arguments|tojson + "<|call|>" }}
                        {%- set last_tool.name = call.name %}
                    {%- elif loop.last and not add_generation_prompt -%}
                        {%- if "thinking" in message %}{{- "<|start|>assistant<|channel|>analysis<|message|>" + message.thinking + "<|end|>" }}{%- endif %}
                        {{- "<|start|>assistant<|channel|>final<|message|>" + message.content + "<|return|>" }}
                    {%- else -%}
                        {{- "<|start|>assistant<|channel|>final<|message|>" + message.content + "<|end|>" }}
                    {%- endif %}
                {%- elif message.role == "tool" -%}
                    {%- if last_tool.name is none %}{{- raise_exception("There is no call before the tool's message") }}{%- endif %}
                    {{- "<|start|>functions." + last_tool.name + " to=assistant<|channel|>commentary<|message|>" + message.content|tojson + "<|end|>" }}
                {%- elif message.role == "user" -%}{{- "<|start|>user<|message|>" + message.content + "<|end|>" }}
                {%- endif -%}
            {%- endfor -%}
            {%- if add_generation_prompt -%}<|start|>assistant{%- endif -%}
            """#),
        TemplateFamily(
            "Exaone", ends: ["[|endofturn|]"], spans: [" Yes. é [|endofturn|]", "Four[|endofturn|]"],
            #"""
            {% for message in messages %}{% if loop.first and message['role'] != 'system' %}{{ '[|system|][|endofturn|]\n' }}{% endif %}{{ '[|' + message['role'] + '|]' + message['content'] }}{% if message['role'] == 'user' %}{{ '\n' }}{% else %}{{ '[|endofturn|]\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '[|assistant|]' }}{% endif %}
            """#),
        TemplateFamily(
            "generation tags", ends: ["[/A]"], spans: [" Yes. é [/A]", "Four[/A]"],
            #"""
            {% for message in messages %}
              {% if message.role == 'assistant' %}
            [A]{% generation %}{{ message.content }}[/A]{% endgeneration %}

              {% else %}
            [U]{{ message.content }}[/U]
              {% endif %}
            {% endfor %}
            {% if add_generation_prompt %}[A]{% endif %}
            """#),
    ]

    /// Templates that write roles as words.
    static let plain: [TemplateFamily] = [
        TemplateFamily(
            "Vicuna", ends: ["</s>"], spans: ["  Yes. é </s>", " Four</s>"],
            #"""
            {% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = 'A chat.' %}{% endif %}{{ system_message.strip() }}{% for message in loop_messages %}{% if message['role'] == 'user' %}{{ ' USER: ' + message['content'].strip() }}{% elif message['role'] == 'assistant' %}{{ ' ASSISTANT: ' + message['content'] + eos_token }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ ' ASSISTANT:' }}{% endif %}
            """#),
        TemplateFamily(
            "Alpaca", ends: ["</s>"], spans: [" Yes. é </s>", "Four</s>"],
            #"""
            {% for message in messages %}{% if message['role'] == 'system' %}{{ message['content'] + '\n\n' }}{% elif message['role'] == 'user' %}{{ '### Instruction:\n' + message['content'] + '\n\n' }}{% else %}{{ '### Response:\n' + message['content'] + eos_token + '\n\n' }}{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '### Response:\n' }}{% endif %}
            """#),
        TemplateFamily(
            "OpenChat", ends: ["<|end_of_turn|>"], spans: ["  Yes. é <|end_of_turn|>", " Four<|end_of_turn|>"],
            #"""
            {{ bos_token }}{% for message in messages %}{% if message['role'] in ['user', 'assistant'] %}{% set content = 'GPT4 Correct ' + message['role'].title() + ': ' + message['content'] + '<|end_of_turn|>' %}{% elif message['role'] == 'system' %}{% set content = message['content'] + '<|end_of_turn|>' %}{% else %}{{ raise_exception('Only user, assistant and system roles are supported!') }}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ 'GPT4 Correct Assistant:' }}{% endif %}
            """#),
        TemplateFamily(
            "Nemotron", ends: ["</s>"], spans: ["Yes. é\n", "Four\n"],
            #"""
            {{'<extra_id_0>System'}}{% for message in messages %}{% if message['role'] == 'system' %}{{'\n' + message['content'].strip()}}{% if tools or contexts %}{{'\n'}}{% endif %}{% endif %}{% endfor %}{% if tools %}{% for tool in tools %}{{ '\n<tool> ' + tool|tojson + ' </tool>' }}{% endfor %}{% endif %}{{'\n\n'}}{% for message in messages %}{% if message['role'] == 'user' %}{{ '<extra_id_1>User\n' + message['content'].strip() + '\n' }}{% elif message['role'] == 'assistant' %}{{ '<extra_id_1>Assistant\n' + message['content'].strip() + '\n' }}{% elif message['role'] == 'tool' %}{{ '<extra_id_1>Tool\n' + message['content'].strip() + '\n' }}{% endif %}{% endfor %}{%- if add_generation_prompt %}{{'<extra_id_1>Assistant\n'}}{%- endif %}
            """#),
    ]
}
