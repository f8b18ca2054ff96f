import Formats
import Foundation
import PEFT
import TestSupport
import Testing
import Training

@Suite struct RecipeTests {
    @Test func everyKeyComesBackFromYAML() throws {
        var recipe = Recipe(
            model: "a folder/with: colon", data: "true", method: "dora",
            settings: [
                "r": 4, "target_modules": ["q_proj", "no", "1e3"], "lora_alpha": 2.5,
                "rank_pattern": ["layers\\.[0-3]\\..*": 2, "# x": 3], "modules_to_save": nil,
            ])
        recipe.evalData = "- dash"
        recipe.objective = "dpo"
        recipe.objectiveSettings = ["beta": 0.3]
        recipe.quantization = .nf4
        recipe.doubleQuant = false
        recipe.steps = 17
        recipe.batchSize = 3
        recipe.gradientAccumulationSteps = 5
        recipe.packing = true
        recipe.batchTokens = 88
        recipe.maxLength = 77
        recipe.learningRate = 1.2345678901234567e-4
        recipe.schedule = .cosine
        recipe.warmupSteps = 2
        recipe.warmupRatio = 0.25
        recipe.weightDecay = 0.1
        recipe.adamBeta1 = 0.8
        recipe.adamBeta2 = 0.95
        recipe.adamEpsilon = 1e-6
        recipe.maxGradNorm = 0
        recipe.dtype = .bfloat16
        recipe.device = .cpu
        recipe.memory = .low
        recipe.gradientCheckpointing = .all
        recipe.seed = 9
        recipe.threads = 2
        recipe.evalSteps = 5
        recipe.evalBatchSize = 6
        recipe.saveSteps = 7
        recipe.saveTotalLimit = nil
        recipe.loadBestModelAtEnd = true
        recipe.columns = ["prompt": "question"]
        recipe.maxBadRows = 0.25
        recipe.usesCache = false
        recipe.loggingSteps = 8
        recipe.versions = ["graft": "1"]
        let yaml = try recipe.yaml()
        let read = try Recipe(yaml: yaml)
        #expect(read.json == recipe.json)
        // Every key but epochs, which excludes steps, stands in the text and differs from its default.
        let defaults = Recipe().json
        for field in Recipe.fields where field.name != "epochs" {
            #expect(read.json[field.name] != nil, "\(field.name)")
            #expect(read.json[field.name] != defaults[field.name], "\(field.name)")
        }
        #expect(try read.yaml() == yaml)
    }

    @Test func plainWordsMeanWhatYAML12Says() throws {
        let recipe = try Recipe(
            yaml: "model: m\ndata: no\nlearning_rate: 1e-4\nepochs: 2\nsettings:\n  target_modules: [q_proj, 'true']\n")
        #expect(recipe.data == "no")
        #expect(recipe.learningRate == 1e-4)
        #expect(recipe.epochs == 2)
        #expect(recipe.settings["target_modules"] == ["q_proj", "true"])
        #expect(try YAML.value("[a, 1, 1.5, null, true]") == ["a", 1, 1.5, nil, true])
        #expect(try YAML.value("all-linear") == "all-linear")
        #expect(try YAML.value("{a: 1}") == ["a": 1])
    }

    @Test(arguments: [
        ("modle: x", "line 1: the key \"modle\" is unknown. Did you mean \"model\"?"),
        ("model: x\nlearning_rate: fast", "line 2: learning_rate: expected a number, found \"fast\""),
        ("batch_size: 2.5", "batch_size: expected a whole number, found 2.5"),
        ("lr_scheduler_type: square", "expected one of constant, linear, cosine"),
        ("model: x\nmodel: y", "recipe.yaml"),
        ("- a\n- b", "expected a mapping"),
        ("just words", "expected a mapping"),
        ("", "expected a mapping"),
        ("model: [x", "this is not valid YAML"),
        ("settings: 5", "settings: expected a mapping"),
        ("a: &x [1]\nb: *x", "recipe.yaml"),
    ])
    func aWrongRecipeIsNamedByItsLine(_ yaml: String, _ expected: String) {
        let text = message { _ = try Recipe(yaml: yaml, file: "recipe.yaml") }
        #expect(text.contains(expected), "\(text)")
        #expect(text.contains("recipe.yaml"), "\(text)")
    }

    @Test func whatCannotBeIsRefusedByItsKey() throws {
        func refusal(_ change: (inout Recipe) -> Void) -> String {
            var recipe = Recipe(model: "m", data: "d")
            change(&recipe)
            return message { try recipe.validate() }
        }
        #expect(refusal { _ in }.isEmpty)
        #expect(refusal { $0.model = "" }.contains("model"))
        #expect(refusal { $0.data = "" }.contains("data"))
        #expect(refusal { $0.steps = 0 }.contains("steps is 0"))
        #expect(refusal { ($0.steps, $0.epochs) = (3, 1) }.contains("both steps (3) and epochs (1.0)"))
        #expect(refusal { $0.epochs = -1 }.contains("epochs"))
        #expect(refusal { $0.epochs = .nan }.contains("epochs"))
        #expect(refusal { $0.batchSize = 0 }.contains("batch_size"))
        #expect(refusal { $0.gradientAccumulationSteps = -1 }.contains("gradient_accumulation_steps"))
        #expect(refusal { $0.maxLength = 1 }.contains("max_length"))
        #expect(refusal { $0.learningRate = .infinity }.contains("learning_rate"))
        #expect(refusal { $0.adamBeta2 = 1 }.contains("adam_beta2"))
        #expect(refusal { $0.warmupRatio = 2 }.contains("warmup_ratio"))
        #expect(refusal { $0.seed = -1 }.contains("seed"))
        #expect(refusal { $0.threads = 0 }.contains("threads"))
        #expect(refusal { $0.saveTotalLimit = 0 }.contains("save_total_limit"))
        var recipe = Recipe(model: "m", data: "d", method: "lorra")
        #expect(message { _ = try recipe.adapterConfiguration() }.contains("Did you mean \"lora\"?"))
        recipe = Recipe(model: "m", data: "d", settings: ["rr": 1])
        #expect(message { _ = try recipe.adapterConfiguration() }.contains("rr"))
    }
}
