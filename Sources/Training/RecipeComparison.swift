import Crypto
import Formats
import PEFT

extension Recipe {
    /// The keys whose change does not change what a run learns, beyond rounding: a resumed run may have others.
    static let freeKeys: Set = [
        "eval_data", "eval_steps", "eval_batch_size", "save_steps", "save_total_limit",
        "load_best_model_at_end", "logging_steps", "threads", "device", "versions", "data",
        "columns", "max_bad_rows", "cache", "memory", "gradient_checkpointing",
    ]
    /// The length of a run: it may grow where no learning rate of the steps taken depends on it.
    static let lengthKeys: Set = ["steps", "epochs"]

    /// Refuses to go on with a run under another recipe.
    ///
    /// - Parameter begun: The recipe that the run was begun with, with all settings.
    /// - Throws: ``TrainingError`` naming the first key that differs, with both values.
    func requireSame(as begun: Recipe) throws {
        for field in Self.fields where !Self.freeKeys.contains(field.name) {
            let (old, new) = (field.read(begun), field.read(self))
            guard old != new else { continue }
            if field.name == "settings" {
                throw difference(in: begun.settings)
            }
            if Self.lengthKeys.contains(field.name) {
                if canChangeLength { continue }
                throw TrainingError(
                    "\(field.name) is \(new.compact), but the run was begun with \(old.compact); a run can be made longer only "
                        + "with lr_scheduler_type constant and without warmup_ratio, because otherwise its earlier "
                        + "learning rates depend on its length")
            }
            throw Self.difference(field.name, old, new)
        }
    }

    /// The digest of what must stay the same over a run, data apart.
    var fixedDigest: String {
        var hash = SHA256()
        for field in Self.fields where !Self.freeKeys.contains(field.name) && !Self.lengthKeys.contains(field.name) {
            hash.update(data: Array("\(field.name)=\(field.read(self).compact)\n".utf8))
        }
        return hexadecimal(hash.finalize())
    }

    private var canChangeLength: Bool { schedule == .constant && (warmupSteps != nil || warmupRatio == 0) }

    private func difference(in begun: KeyedList<JSON>) -> TrainingError {
        for (key, new) in settings where begun[key] != new {
            return Self.difference("settings, \(key)", begun[key] ?? .null, new)
        }
        let missing = begun.keys.first { settings[$0] == nil } ?? ""
        return Self.difference("settings, \(missing)", begun[missing] ?? .null, .null)
    }

    private static func difference(_ key: String, _ old: JSON, _ new: JSON) -> TrainingError {
        TrainingError(
            "\(key) is \(new.compact), but the run was begun with \(old.compact); resume it with the same value, or begin "
                + "another run in another folder")
    }
}
