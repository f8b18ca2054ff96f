import Formats
import Foundation
import TestSupport
import Testing
import Tokenizers

/// Chat templates beside Jinja in the environment of `transformers`.
struct ChatTemplateTests {
    private struct Case {
        let source: String
        let variables: KeyedList<JSON>
        /// What the reference gives: a text, or nil for an error.
        var expected: String?
        var reason = ""
    }

    private func referenced(_ cases: [Case]) async throws -> [Case] {
        let request = cases.map { JSON.object(["source": .string($0.source), "variables": .object($0.variables)]) }
        let answers = try #require(try await Oracle.shared.call("tokenizers.render", ["cases": JSON(request)]).array)
        return zip(cases, answers).map { pair, answer in
            var pair = pair
            pair.expected = answer["text"]?.string
            pair.reason = answer["error"]?.string ?? ""
            return pair
        }
    }

    @Test func theModelsTemplateIsRenderedAsByJinja() async throws {
        let tokenizer = try await smolLM2.value
        let template = try tokenizer.chatTemplate()
        try await compare([("SmolLM2's own", template.source)], count: 100, seed: 51)
        #expect(
            try template.render(messages: [ChatMessage(role: "user", content: "Hi")], addGenerationPrompt: true)
                == "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
                + "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n")
    }

    @Test func templatesOfManyFamiliesAreRenderedAsByJinja() async throws {
        #expect(TemplateFamily.all.count >= 30)
        try await compare(TemplateFamily.all.map { ($0.name, $0.source) }, count: 40, seed: 52)
    }

    private func compare(_ templates: [(name: String, source: String)], count: Int, seed: UInt64) async throws {
        for (index, (name, source)) in templates.enumerated() {
            var random = ConversationGenerator(seed: seed &+ UInt64(index))
            var cases: [Case] = []
            let talks = (0..<count).map { _ in random.conversation() }
            for (number, talk) in talks.enumerated() {
                var variables: KeyedList<JSON> = [
                    "messages": JSON(talk.messages.map { .object($0.fields) }),
                    "add_generation_prompt": JSON(number % 2 == 0),
                    "tools": talk.tools.isEmpty ? nil : JSON(talk.tools), "documents": nil, "bos_token": "<s>",
                    "eos_token": "</s>",
                ]
                for pair in talk.variables { variables[pair.key] = pair.value }
                cases.append(Case(source: source, variables: variables))
            }
            let template = try ChatTemplate(
                source: source, specialTokens: ["bos_token": "<s>", "eos_token": "</s>"])
            let referenced = try await referenced(cases)
            let accepted = referenced.count { $0.expected != nil }
            #expect(accepted >= count / 8, "\(name): \(referenced.first { $0.expected == nil }?.reason ?? "")")
            for (number, (talk, reference)) in zip(talks, referenced).enumerated() {
                var message = ""
                var text: String?
                do {
                    text = try template.render(talk, addGenerationPrompt: number % 2 == 0)
                } catch {
                    message = "\(error)"
                }
                #expect(
                    text.map { Array($0.utf8) } == reference.expected.map { Array($0.utf8) },
                    "\(name): \(talk) gives \(text ?? message), not \(reference.expected ?? reference.reason)")
            }
        }
    }

    /// Expressions and statements, each beside the reference; where it gives an error, so must we.
    @Test func constructsGiveWhatJinjaGives() async throws {
        let data: JSON = [
            "n": 7, "f": 2.5, "s": "Hello, Wörld 👩‍👩‍👧 e\u{301}!", "t": true, "none_value": nil, "l": [3, 1, 2],
            "words": ["b", "A", "c", "B"], "empty": [],
            "d": ["b": 2, "a": [1, "x\"'\n", nil, true, 1.5, "ü"], "C": ["k": "v"]],
            "people": [
                ["name": "Zoe", "age": 30, "x": ["y": 1]], ["name": "adam", "age": 25], ["name": "Bo", "age": 30],
            ],
            "lines": "one\n\n  two\r\nthree\n",
        ]
        let sources = JinjaSamples.expressions.map { "{{ \($0) }}" } + JinjaSamples.templates
        let cases = sources.map { Case(source: $0, variables: ["data": data, "messages": [], "tools": nil]) }
        for reference in try await referenced(cases) {
            let variables = KeyedList<JSON>(dictionaryLiteral: ("data", data))
            var message = ""
            var text: String?
            do {
                text = try ChatTemplate(source: reference.source)
                    .render(messages: [], addGenerationPrompt: false, variables: variables)
            } catch {
                message = "\(error)"
            }
            #expect(
                text.map { Array($0.utf8) } == reference.expected.map { Array($0.utf8) },
                "\(reference.source) gives \(text ?? message), not \(reference.expected ?? reference.reason)")
        }
    }

    @Test func mistakesNameTheirLine() throws {
        let cases: [(String, Int?, String)] = [
            ("a\n{% foo %}", 2, "{% foo %}"), ("{{ a | upperr }}", 1, "Did you mean \"upper\"?"),
            ("\n\n{% if x is defind %}{% endif %}", 3, "Did you mean \"defined\"?"),
            ("{{ 1 +\n }}", 2, "expected an expression"),
            ("{% for x in y %}", 1, "endfor"), ("{{ (1 }}", 1, ""), ("{{ 'abc }}", 1, "string"),
            ("x\n{{ x.y.z }}", 2, "x.y"),
            ("{{ raise_exception('no\nway') }}", 1, "no\nway"), ("{{ 1 / 0 }}", 1, "division by zero"),
            ("{{ 'a' + 1 }}", 1, "\"+\""), ("{% include 'x' %}", 1, "include"), ("{{ x() }}", 1, "x"),
            ("{% set x = 1", 1, "not closed"), ("{# abc", 1, "comment"), ("{% raw %}x", 1, "endraw"),
            ("{{ range(1000000) }}", 1, "100000"), ("{{ 'abc' * 99999999999 }}", 1, "larger"),
            ("{{ 9223372036854775807 + 1 }}", 1, "too large"), ("{{ 99999999999999999999 }}", 1, "too large"),
            ("{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}", 1, "steps"),
            ("{% set s = 'x' %}{% for a in range(99) %}{% set s = s + s %}{% set x = s %}{% endfor %}{{ s }}", nil, ""),
            (
                "{% set ns = namespace(s='x') %}{% for a in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}", 1,
                "larger"
            ),
            (
                "{% set ns = namespace(x=0) %}{% for a in range(9999) %}{% set ns.x = [ns.x] %}{% endfor %}", 1,
                "levels deep"
            ),
            (
                "{% set ns = namespace(x=0) %}{% for a in range(9999) %}{% for b in [ns.x] %}{% set ns.x = loop %}"
                    + "{% endfor %}{% endfor %}", 1, "levels deep"
            ),
            ("{% set s = 'x' * 9999999 %}{% for a in range(9999) %}{% set x = s ~ a %}{% endfor %}", 1, "steps"),
            ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", 1, "levels deep"),
            (String(repeating: "(", count: 5000) + "1" + String(repeating: ")", count: 5000), nil, ""),
            (
                "{{ " + String(repeating: "(", count: 5000) + "1" + String(repeating: ")", count: 5000) + " }}", 1,
                "deep"
            ),
            ("{{ " + String(repeating: "not ", count: 5000) + "1 }}", 1, "deep"),
            ("{{ 1" + String(repeating: " + 1", count: 5000) + " }}", 1, "deep"),
            ("{{ x" + String(repeating: ".a", count: 5000) + " }}", 1, "deep"),
            (String(repeating: "{% if 1 %}", count: 500), 1, "deep"), ("{% break %}", nil, "outside a loop"),
            ("{% set ns = namespace(_x=1) %}", 1, "_x"), ("{% set x.y = 1 %}", 1, "not a namespace"),
            ("{% for a, b in [1] %}{% endfor %}", 1, "unpacked"), ("{{ dict(*1) }}", 1, "*"),
            ("{{ {[1]: 2} }}", 1, "a list cannot be a key"),
            ("{% import 'x' as y %}", 1, "stands alone"),
            ("{% for x in [[1]] recursive %}{{ loop(9) }}{% endfor %}", 1, "run over"),
            ("{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}", 1, "levels deep"),
            ("{{ '%99999999d' % 1 }}", 1, "larger"), ("{{ 'a'.center(99999999) }}", 1, "larger"),
            ("{% for x in [1] %}{{ loop([2]) }}{% endfor %}", 1, "recursive"),
            ("{{ [1]|batch(99999999, 0) }}", 1, "larger"), ("{{ [1]|slice(99999999) }}", 1, "larger"),
        ]
        for (source, line, part) in cases {
            do {
                _ = try ChatTemplate(source: source).render(messages: [], addGenerationPrompt: false)
                #expect(line == nil && part.isEmpty, "no error: \(source.prefix(60))")
            } catch let error as TemplateError {
                #expect(error.line == line, "\(source.prefix(60)): \(error)")
                #expect(part.isEmpty || error.description.contains(part), "\(source.prefix(60)): \(error)")
            }
        }
    }

    @Test func strftimeGivesTheDate() async throws {
        let source = "{{ strftime_now('%d %b %Y %%') }}"
        let own = try ChatTemplate(source: source).render(messages: [], addGenerationPrompt: false)
        #expect(try await referenced([Case(source: source, variables: [:])])[0].expected == own)
    }
}
