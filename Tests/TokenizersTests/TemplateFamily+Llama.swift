extension TemplateFamily {
    static let llama: [TemplateFamily] = [
        TemplateFamily(
            "Llama 2", ends: ["</s>"], spans: [" Yes. é </s>", " Four </s>"],
            #"""
            {% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set system_message = false %}{% endif %}
            {% for message in loop_messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate') }}{% endif %}
            {% if loop.index0 == 0 and system_message != false %}{% set content = '<<SYS>>\n' + system_message + '\n<</SYS>>\n\n' + message['content'] %}{% else %}{% set content = message['content'] %}{% endif %}
            {% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}
            """#),
        TemplateFamily(
            "Llama 3", ends: ["<|eot_id|>", "<|end_of_text|>"], spans: ["Yes. é<|eot_id|>", "Four<|eot_id|>"],
            #"""
            {% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>

            '+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>

            ' }}{% endif %}
            """#),
        TemplateFamily(
            "Llama 3.1", ends: ["<|eot_id|>", "<|eom_id|>", "<|end_of_text|>"],
            spans: ["Yes. é<|eot_id|>", "Four<|eot_id|>"],
            toolSpans: [
                "{\"name\": \"add\", \"parameters\": {\"a\": 2, \"b\": \"é\"}}<|eot_id|>", "It is 4.<|eot_id|>",
            ], llama31),
        TemplateFamily(
            "Llama 3.2", ends: ["<|eot_id|>"], spans: ["Yes. é<|eot_id|>", "Four<|eot_id|>"],
            toolSpans: [
                "{\"name\": \"add\", \"parameters\": {\"a\": 2, \"b\": \"é\"}}<|eot_id|>", "It is 4.<|eot_id|>",
            ],
            #"{%- if not date_string is defined %}{%- if strftime_now is defined %}{%- set date_string = "#
                + #"strftime_now("%Y") %}{%- else %}{%- set date_string = "26 Jul 2024" %}{%- endif %}{%- endif %}"#
                + llama31),
    ]

    private static let llama31 = #"""
        {{- bos_token }}
        {%- if custom_tools is defined %}{%- set tools = custom_tools %}{%- endif %}
        {%- if not tools_in_user_message is defined %}{%- set tools_in_user_message = true %}{%- endif %}
        {%- if not date_string is defined %}{%- set date_string = "26 Jul 2024" %}{%- endif %}
        {%- if not tools is defined %}{%- set tools = none %}{%- endif %}
        {%- if messages[0]['role'] == 'system' %}
            {%- if messages[0]['content'] is string %}
                {%- set system_message = messages[0]['content']|trim %}
            {%- else %}
                {%- set system_message = messages[0]['content'][0]['text']|trim %}
            {%- endif %}
            {%- set messages = messages[1:] %}
        {%- else %}
            {%- set system_message = "" %}
        {%- endif %}
        {{- "<|start_header_id|>system<|end_header_id|>\n\n" }}
        {%- if builtin_tools is defined or tools is not none %}{{- "Environment: ipython\n" }}{%- endif %}
        {%- if builtin_tools is defined %}
            {{- "Tools: " + builtin_tools | reject('equalto', 'code_interpreter') | join(", ") + "\n\n" }}
        {%- endif %}
        {{- "Today Date: " + date_string + "\n\n" }}
        {{- system_message }}
        {{- "<|eot_id|>" }}
        {%- if tools_in_user_message and not tools is none %}
            {%- if messages | length != 0 %}
                {%- set first_user_message = messages[0]['content']|trim %}
                {%- set messages = messages[1:] %}
            {%- else %}
                {{- raise_exception("Cannot put tools in the first user message when there's no first user message!") }}
            {%- endif %}
            {{- '<|start_header_id|>user<|end_header_id|>\n\n' -}}
            {{- "Functions, to be called as {\"name\": name, \"parameters\": dictionary}:\n\n" }}
            {%- for t in tools %}{{- t | tojson(indent=4) }}{{- "\n\n" }}{%- endfor %}
            {{- first_user_message + "<|eot_id|>" }}
        {%- endif %}
        {%- for message in messages %}
            {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
                {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}
                {%- if message['content'] is string %}{{- message['content'] | trim }}
                {%- else %}
                    {%- for content in message['content'] %}
                        {%- if content['type'] == 'text' %}{{- content['text'] | trim }}{%- endif %}
                    {%- endfor %}
                {%- endif %}
                {{- '<|eot_id|>' }}
            {%- elif 'tool_calls' in message %}
                {%- if not message.tool_calls|length == 1 %}
                    {{- raise_exception("This model only supports single tool-calls at once!") }}
                {%- endif %}
                {%- set tool_call = message.tool_calls[0].function %}
                {%- if builtin_tools is defined and tool_call.name in builtin_tools %}
                    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n<|python_tag|>' + tool_call.name + ".call(" }}
                    {%- for arg_name, arg_val in tool_call.arguments | items %}
                        {{- arg_name + '="' ~ arg_val ~ '"' }}{%- if not loop.last %}{{- ", " }}{%- endif %}
                    {%- endfor %}
                    {{- ")<|eom_id|>" }}
                {%- else %}
                    {{- '<|start_header_id|>assistant<|end_header_id|>\n\n' -}}
                    {{- '{"name": "' + tool_call.name + '", ' }}
                    {{- '"parameters": ' }}
                    {{- tool_call.arguments | tojson }}
                    {{- "}" }}
                    {{- "<|eot_id|>" }}
                {%- endif %}
            {%- else %}
                {{- "<|start_header_id|>ipython<|end_header_id|>\n\n" }}
                {%- if message.content is mapping or (message.content is iterable and message.content is not string) %}
                    {{- message.content | tojson }}
                {%- else %}{{- message.content }}{%- endif %}
                {{- "<|eot_id|>" }}
            {%- endif %}
        {%- endfor %}
        {%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{%- endif %}
        """#

    static let mistral: [TemplateFamily] = [
        TemplateFamily(
            "Mistral v0.1", ends: ["</s>"], spans: [" Yes. é </s>", "Four</s>"], hasSystem: false,
            #"""
            {{ bos_token }}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if message['role'] == 'user' %}{{ '[INST] ' + message['content'] + ' [/INST]' }}{% elif message['role'] == 'assistant' %}{{ message['content'] + eos_token}}{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}
            """#),
        TemplateFamily(
            "Mistral v0.3", ends: ["</s>"], spans: ["  Yes. é </s>", " Four</s>"],
            toolSpans: [
                "[TOOL_CALLS] [{\"name\": \"add\", \"arguments\": {\"a\": 2, \"b\": \"é\"}, \"id\": \"abcdefghi\"}]</s>",
                " It is 4.</s>",
            ], mistralTools(space: " ")),
        TemplateFamily(
            "Mistral Nemo", ends: ["</s>"], spans: [" Yes. é </s>", "Four</s>"],
            toolSpans: [
                "[TOOL_CALLS][{\"name\": \"add\", \"arguments\": {\"a\": 2, \"b\": \"é\"}, \"id\": \"abcdefghi\"}]</s>",
                "It is 4.</s>",
            ], mistralTools(space: "")),
        TemplateFamily(
            "Mistral Small", ends: ["</s>"], spans: [" Yes. é </s>", "Four</s>"],
            #"""
            {%- set default_system_message = "You are Small, made on " + (date_string or "a day") + "." %}
            {{- bos_token }}
            {%- if messages[0]['role'] == 'system' %}
                {%- if messages[0]['content'] is string %}{%- set system_message = messages[0]['content'] %}
                {%- else %}{%- set system_message = messages[0]['content'][0]['text'] %}{%- endif %}
                {%- set loop_messages = messages[1:] %}
            {%- else %}
                {%- set system_message = default_system_message %}
                {%- set loop_messages = messages %}
            {%- endif %}
            {{- '[SYSTEM_PROMPT]' + system_message + '[/SYSTEM_PROMPT]' }}
            {%- for message in loop_messages %}
                {%- if message['role'] == 'user' %}
                    {%- if message['content'] is string %}{{- '[INST]' + message['content'] + '[/INST]' }}
                    {%- else %}
                        {{- '[INST]' }}
                        {%- for block in message['content'] %}
                            {%- if block['type'] == 'text' %}{{- block['text'] }}
                            {%- elif block['type'] in ['image', 'image_url'] %}{{- '[IMG]' }}
                            {%- else %}{{- raise_exception('Only text and image blocks are supported!') }}{%- endif %}
                        {%- endfor %}
                        {{- '[/INST]' }}
                    {%- endif %}
                {%- elif message['role'] == 'system' %}{{- '[SYSTEM_PROMPT]' + message['content'] + '[/SYSTEM_PROMPT]' }}
                {%- elif message['role'] == 'assistant' %}
                    {%- if message['content'] is string %}{{- message['content'] + eos_token }}
                    {%- else %}{{- message['content'][0]['text'] + eos_token }}{%- endif %}
                {%- else %}{{- raise_exception('Only user, system and assistant roles are supported!') }}{%- endif %}
            {%- endfor %}
            """#),
    ]

    private static func mistralTools(space: String) -> String {
        #"""
        {%- if messages[0]["role"] == "system" %}
            {%- set system_message = messages[0]["content"] %}
            {%- set loop_messages = messages[1:] %}
        {%- else %}
            {%- set loop_messages = messages %}
        {%- endif %}
        {%- if not tools is defined %}{%- set tools = none %}{%- endif %}
        {%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
        {%- set ns = namespace() %}
        {%- set ns.index = 0 %}
        {%- for message in loop_messages %}
            {%- if not (message.role == "tool" or message.role == "tool_results" or (message.tool_calls is defined and message.tool_calls is not none)) %}
                {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
                    {{- raise_exception("After the optional system message, conversation roles must alternate") }}
                {%- endif %}
                {%- set ns.index = ns.index + 1 %}
            {%- endif %}
        {%- endfor %}
        {{- bos_token }}
        {%- for message in loop_messages %}
            {%- if message["role"] == "user" %}
                {%- if tools is not none and (message == user_messages[-1]) %}
                    {{- "[AVAILABLE_TOOLS]~[" }}
                    {%- for tool in tools %}
                        {%- set tool = tool.function %}
                        {{- '{"type": "function", "function": {' }}
                        {%- for key, val in tool.items() if key != "return" %}
                            {%- if val is string %}{{- '"' + key + '": "' + val + '"' }}
                            {%- else %}{{- '"' + key + '": ' + val|tojson }}{%- endif %}
                            {%- if not loop.last %}{{- ", " }}{%- endif %}
                        {%- endfor %}
                        {{- "}}" }}
                        {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" }}{%- endif %}
                    {%- endfor %}
                    {{- "[/AVAILABLE_TOOLS]" }}
                {%- endif %}
                {%- if loop.last and system_message is defined %}
                    {{- "[INST]~" + system_message + "\n\n" + message["content"] + "[/INST]" }}
                {%- else %}
                    {{- "[INST]~" + message["content"] + "[/INST]" }}
                {%- endif %}
            {%- elif message.tool_calls is defined and message.tool_calls is not none %}
                {{- "[TOOL_CALLS]~[" }}
                {%- for tool_call in message.tool_calls %}
                    {%- set out = tool_call.function|tojson %}
                    {{- out[:-1] }}
                    {%- if not tool_call.id is defined or tool_call.id|length != 9 %}
                        {{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}
                    {%- endif %}
                    {{- ', "id": "' + tool_call.id + '"}' }}
                    {%- if not loop.last %}{{- ", " }}{%- else %}{{- "]" + eos_token }}{%- endif %}
                {%- endfor %}
            {%- elif message["role"] == "assistant" %}
                {{- "~" + message["content"] + eos_token }}
            {%- elif message["role"] == "tool_results" or message["role"] == "tool" %}
                {%- if message.content is defined and message.content.content is defined %}
                    {%- set content = message.content.content %}
                {%- else %}
                    {%- set content = message.content %}
                {%- endif %}
                {{- '[TOOL_RESULTS]~{"content": ' + content|string + ", " }}
                {%- if not message.tool_call_id is defined or message.tool_call_id|length != 9 %}
                    {{- raise_exception("Tool call IDs should be alphanumeric strings with length 9!") }}
                {%- endif %}
                {{- '"call_id": "' + message.tool_call_id + '"}[/TOOL_RESULTS]' }}
            {%- else %}
                {{- raise_exception("Only user and assistant roles are supported, with the exception of an initial system message!") }}
            {%- endif %}
        {%- endfor %}
        """#.split(separator: "~", omittingEmptySubsequences: false).joined(separator: space)
    }

    static let gemma: [TemplateFamily] = [
        TemplateFamily(
            "Gemma 2", ends: ["<end_of_turn>", "<eos>"], spans: ["Yes. é<end_of_turn>", "Four<end_of_turn>"],
            hasSystem: false,
            #"""
            {{ bos_token }}{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}{% for message in messages %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if (message['role'] == 'assistant') %}{% set role = 'model' %}{% else %}{% set role = message['role'] %}{% endif %}{{ '<start_of_turn>' + role + '
            ' + message['content'] | trim + '<end_of_turn>
            ' }}{% endfor %}{% if add_generation_prompt %}{{'<start_of_turn>model
            '}}{% endif %}
            """#),
        TemplateFamily(
            "Gemma 3", ends: ["<end_of_turn>", "<eos>"], spans: ["Yes. é<end_of_turn>", "Four<end_of_turn>"],
            #"""
            {{ bos_token }}
            {%- if messages[0]['role'] == 'system' -%}
                {%- if messages[0]['content'] is string -%}
                    {%- set first_user_prefix = messages[0]['content'] + '\n\n' -%}
                {%- else -%}
                    {%- set first_user_prefix = messages[0]['content'][0]['text'] + '\n\n' -%}
                {%- endif -%}
                {%- set loop_messages = messages[1:] -%}
            {%- else -%}
                {%- set first_user_prefix = "" -%}
                {%- set loop_messages = messages -%}
            {%- endif -%}
            {%- for message in loop_messages -%}
                {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
                    {{ raise_exception("Conversation roles must alternate user/assistant/user/assistant/...") }}
                {%- endif -%}
                {%- if (message['role'] == 'assistant') -%}
                    {%- set role = "model" -%}
                {%- else -%}
                    {%- set role = message['role'] -%}
                {%- endif -%}
                {{ '<start_of_turn>' + role + '\n' + (first_user_prefix if loop.first else "") }}
                {%- if message['content'] is string -%}
                    {{ message['content'] | trim }}
                {%- elif message['content'] is iterable -%}
                    {%- for item in message['content'] -%}
                        {%- if item['type'] == 'image' -%}{{ '<start_of_image>' }}
                        {%- elif item['type'] == 'text' -%}{{ item['text'] | trim }}
                        {%- endif -%}
                    {%- endfor -%}
                {%- else -%}
                    {{ raise_exception("Invalid content type") }}
                {%- endif -%}
                {{ '<end_of_turn>\n' }}
            {%- endfor -%}
            {%- if add_generation_prompt -%}{{ '<start_of_turn>model\n' }}{%- endif -%}
            """#),
    ]
}
