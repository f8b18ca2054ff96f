// Gives broken files to a reader.
//
//     Fuzzer                                     lists the readers
//     Fuzzer READER SEED COUNT [FIRST]           COUNT files made from good ones by the mutator
//     Fuzzer replay READER FILE                  one file
//     Fuzzer guided READER FOLDER SECONDS        files that reach new code, where it was built for that
//
// Reports each file that is refused without a typed error that names it, for which the reader leaves its folder, or which
// takes too much memory; a crash, a hang or far too much memory ends the process, and the file `status` in the folder
// that the first line of the output names holds the number of the file.
import Foundation

/// Writes a line at once, so that it is there whatever happens next.
func say(_ line: String) { FileHandle.standardOutput.write(Data((line + "\n").utf8)) }

func fuzz(_ fuzzCase: FuzzCase, seed: UInt64, first: Int, count: Int) throws -> Int32 {
    let run = try FuzzRun(fuzzCase)
    say("in \(run.parent)")
    var defects = 0
    func report(_ number: Int, _ text: String) {
        defects += 1
        say("defect: \(fuzzCase.name), seed \(seed), file \(number): \(text)")
    }
    for (place, bytes) in run.seeds.enumerated() {
        switch run.read(bytes) {
        case .accepted: break
        case .refused(let text): report(-1 - place, "a good file is refused: \(text)")
        case .defect(let text): report(-1 - place, text)
        }
    }
    run.limitAddresses(to: 256 << 20)
    run.limitMemory()
    let before = FuzzRun.peakMemory()
    var (accepted, tried) = (0, 0)
    for number in first..<first + count where defects < 20 {
        var mutator = Mutator(
            seed: seed &* 0x9E37_79B9_7F4A_7C15 &+ UInt64(truncatingIfNeeded: number), words: run.words)
        let bytes = mutator.file(from: run.seeds, form: fuzzCase.form)
        run.note(number)
        alarm(fuzzCase.seconds)
        tried += 1
        switch run.read(bytes) {
        case .accepted: accepted += 1
        case .refused: break
        case .defect(let text): report(number, text)
        }
    }
    alarm(0)
    let memory = (FuzzRun.peakMemory() - before) >> 20
    say("\(fuzzCase.name): \(tried) files, \(accepted) accepted, \(defects) defects, \(memory) MiB more memory")
    if defects == 0 { run.clear() }
    return defects == 0 ? 0 : 3
}

func replay(_ fuzzCase: FuzzCase, _ path: String) throws -> Int32 {
    let run = try FuzzRun(fuzzCase)
    defer { run.clear() }
    switch run.read(try Seeds.text(path)) {
    case .accepted: say("accepted")
    case .refused(let text): say("refused: \(text)")
    case .defect(let text):
        say("defect: \(text)")
        return 3
    }
    return 0
}

func command(_ words: [String]) throws -> Int32 {
    let isWord = ["replay", "guided"].contains(words.first)
    let name = isWord ? words.dropFirst().first : words.first
    guard let name else {
        for fuzzCase in fuzzCases { say(fuzzCase.name) }
        return 0
    }
    guard let fuzzCase = (fuzzCases + controlCases).first(where: { $0.name == name }) else {
        say("there is no reader \(name)")
        return 2
    }
    if isWord {
        let isReplay = words[0] == "replay"
        guard words.count == (isReplay ? 3 : 4) else {
            say(isReplay ? "expected: replay READER FILE" : "expected: guided READER FOLDER SECONDS")
            return 2
        }
        if isReplay { return try replay(fuzzCase, words[2]) }
        #if GUIDED
        return try GuidedRun.run(fuzzCase, folder: words[2], seconds: Int(words[3]) ?? 60)
        #else
        say("this program was not built to be guided by coverage; run make fuzz-coverage")
        return 2
        #endif
    }
    let numbers = words.dropFirst().map { Int($0) ?? 0 }
    return try fuzz(
        fuzzCase, seed: UInt64(truncatingIfNeeded: numbers.first ?? 1), first: numbers.count > 2 ? numbers[2] : 0,
        count: numbers.count > 1 ? numbers[1] : 2000)
}

do {
    exit(try command(Array(CommandLine.arguments.dropFirst())))
} catch {
    say("defect: the run cannot be prepared: \(error)")
    exit(3)
}
