import Formats

/// What a run learns from, file by file, for `data.json` in its folder.
struct RunData {
    private let json: JSON

    /// Describes the data of a run.
    init(_ setup: TrainingSetup) {
        let epoch = setup.epochRows
        let files = setup.data.summaries.enumerated().map { index, summary in
            var file = summary.json
            file["rows_per_epoch"] = JSON(epoch.count(ofSource: index))
            return file
        }
        var document: KeyedList<JSON> = [
            "digest": .string(setup.data.digest), "rows_per_epoch": JSON(epoch.count), "files": JSON(files),
        ]
        if let evalData = setup.evalData { document["eval_files"] = JSON(evalData.summaries.map(\.json)) }
        json = .object(document)
    }

    /// - Throws: `FormatError` when the file cannot be written.
    func write(to path: String) throws {
        try AtomicFile.write(json.pythonText(ensureASCII: false) + "\n", to: path)
    }
}
