// Trains by a recipe in a model that has had other adapters before: AttachFirst RECIPE OUTPUT
//
// A program of its own, because the number of threads, which orders sums, is the whole process's.
import Graft

let recipe = try Recipe(path: CommandLine.arguments[1])
if let threads = recipe.threads { try Machine.setThreads(threads) }
let model = try LanguageModel.load(recipe.model, dtype: .float32, device: .cpu)
for (index, other) in ["dora", "lora", "lorta", "capaboost-lora"].enumerated() {
    try model.attach(other, seed: Seed(UInt64(index))).detach()
}
let adapter = try Adapter(recipe.adapterConfiguration(), on: model.backbone, seed: Seed(UInt64(recipe.seed)))
try model.train(adapter, on: recipe.data, output: CommandLine.arguments[2], showsProgress: false) { $0 = recipe }
