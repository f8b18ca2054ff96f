// Trains a method that is not in Graft's registry: swift run -c release CustomMethod rows.jsonl runs/lora-xs
import Foundation
import Graft

let paths = Array(CommandLine.arguments.dropFirst())
guard paths.count == 2 else {
    print("usage: CustomMethod <rows.jsonl> <run folder>")
    exit(2)
}

let model = try LanguageModel.load("smollm2-135m")
let adapter = try Adapter(AdapterConfiguration(LoRAXS()), on: model.backbone, seed: Seed(7))
print("LoRA-XS trains \(adapter.parameterCount) values")
print("loss before:", try model.evaluate(on: paths[0]).loss)
try model.train(adapter, on: paths[0], steps: 20, output: paths[1]) { $0.learningRate = 5e-3 }
print("loss after:", try model.evaluate(on: paths[0]).loss)
