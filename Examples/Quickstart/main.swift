// The library in five lines: load, attach, train, evaluate, save.
//
//     swift run -c release Quickstart <train.jsonl> <test.jsonl> <new folder>
import Foundation
import Graft

let paths = Array(CommandLine.arguments.dropFirst())
guard paths.count == 3 else {
    print("usage: Quickstart <train.jsonl> <test.jsonl> <new folder>")
    exit(2)
}

do {
    let model = try LanguageModel.load("smollm2-135m")
    let adapter = try model.attach("lora", ["r": 8, "target_modules": "all-linear"])
    try model.train(adapter, on: paths[0], steps: 20, output: paths[2])
    print("loss on held-out rows:", try model.evaluate(on: paths[1]).loss)
    try adapter.save(to: paths[2] + "/my-adapter")
} catch {
    print("error: \(error)")
    exit(1)
}
