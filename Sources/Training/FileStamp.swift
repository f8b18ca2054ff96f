import Formats
import Foundation

/// What tells that a file has not been touched: where it lies on the disk, its size and the times of its last changes.
///
/// The time of the last change of the entry itself (`ctime`) cannot be set back, unlike that of the content.
struct FileStamp: Equatable {
    let text: String
    /// When the file was last changed, in seconds since 1970.
    private let changed: Double

    /// Looks at a file; nil where there is none.
    init?(_ path: String) {
        var info = stat()
        guard stat(path, &info) == 0 else { return nil }
        #if os(Linux)
        let (content, entry) = (info.st_mtim, info.st_ctim)
        #else
        let (content, entry) = (info.st_mtimespec, info.st_ctimespec)
        #endif
        text = [
            "\(info.st_dev)", "\(info.st_ino)", "\(info.st_size)", "\(content.tv_sec).\(content.tv_nsec)",
            "\(entry.tv_sec).\(entry.tv_nsec)",
        ].joined(separator: ":")
        changed = Double(max(content.tv_sec, entry.tv_sec))
    }

    /// Whether a change from now on is sure to change the stamp.
    ///
    /// File systems count time in ticks, the coarsest in two seconds: of two changes in one tick the second would not
    /// show.
    var isSettled: Bool { Date().timeIntervalSince1970 - changed > 3 }
}
