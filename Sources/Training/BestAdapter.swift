import Formats
import PEFT

/// The adapter with the lowest held-out loss that a run has come by: the folder `best/`.
///
/// What it was measured on lies in the folder itself, so that adapter and measure are replaced together.
struct BestAdapter: Equatable, Sendable {
    /// The optimiser steps taken before the evaluation.
    let step: Int
    /// The held-out loss in nats a token.
    let loss: Double
    /// The digest of the held-out rows.
    let data: String

    private static let fileName = "evaluation.json"

    init(step: Int, loss: Double, data: String) {
        self.step = step
        self.loss = loss
        self.data = data
    }

    /// Reads what the adapter of a run was measured on.
    ///
    /// - Returns: nil where the run has no best adapter, or one measured on other rows.
    /// - Throws: `FormatError` when the folder is damaged.
    init?(in layout: RunLayout, data: String) throws {
        guard PathKind(layout.best) == .folder else { return nil }
        let path = joined(layout.best, Self.fileName)
        let json = try JSON.read(path: path)
        guard let step = json["step"]?.int, let loss = json["eval_loss"]?.double, let digest = json["eval_data"]?.string
        else {
            throw FormatError(
                file: path, "expected an object with step, eval_loss and eval_data; remove the folder \(layout.best)")
        }
        guard digest == data else { return nil }
        self.init(step: step, loss: loss, data: digest)
    }

    /// Writes the files of the folder.
    ///
    /// - Throws: `FormatError` when the disk refuses them.
    func write(to folder: String, adapter: Adapter, model: String) throws {
        try adapter.save(to: folder, baseModel: model)
        let json: JSON = ["step": JSON(step), "eval_loss": JSON(loss), "eval_data": JSON(data)]
        try AtomicFile.write(json.pythonText() + "\n", to: joined(folder, Self.fileName))
    }

    /// Copies the adapter's files, without the evaluation's, from a run's `best/` into an empty folder.
    ///
    /// - Throws: `FormatError` when a file cannot be read or written.
    static func copyAdapter(of layout: RunLayout, to folder: String) throws {
        for name in try RunLayout.names(in: layout.best).sorted() where name != fileName {
            let file = try MappedFile(path: joined(layout.best, name))
            try withExtendedLifetime(file) {
                try AtomicFile.write(to: joined(folder, name)) { try $0.write(UnsafeRawBufferPointer(file.bytes)) }
            }
        }
    }
}
