// `make demo`: SmolLM2-135M-Instruct learns a real task with three methods, and shows what it has learnt.
import Graft

do {
    try Demo.run()
} catch {
    Console.note("demo: error: \(error)")
    Console.exit(1)
}
