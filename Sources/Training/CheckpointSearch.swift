import Formats
import PEFT

extension TrainingCheckpoint {
    /// Goes to the newest whole checkpoint; without any the run begins anew.
    ///
    /// - Returns: What there is to say about it.
    /// - Throws: ``TrainingError`` when data or recipe are not the run's; `FormatError` when tensors do not fit.
    mutating func restoreNewest(from folder: RunFolder, _ adapter: Adapter, _ optimiser: AdamW) throws -> [String] {
        var notes: [String] = []
        for place in try folder.layout.checkpoints().reversed() {
            let found: TrainingCheckpoint
            do {
                found = try TrainingCheckpoint(folder: place.path)
            } catch {
                notes.append("\(place.path) is passed over: \(error)")
                continue
            }
            guard found.data == data else {
                throw TrainingError(
                    "the data have changed since \(place.path) was written; \(folder.layout.data) says what the run learns "
                        + "from: resume with the same rows, or begin another run")
            }
            guard found.recipe == recipe else {
                throw TrainingError(
                    "\(place.path) was written under another recipe than \(folder.layout.recipe) says; undo the change, or "
                        + "begin another run")
            }
            try found.restore(from: place.path, adapter: adapter, optimiser: optimiser)
            self = found
            return notes + ["resumed after step \(found.step)"]
        }
        return notes + ["there is no whole checkpoint; the run begins anew"]
    }
}
