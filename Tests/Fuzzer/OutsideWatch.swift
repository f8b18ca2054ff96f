import Foundation

#if canImport(Glibc)
import Glibc
#endif

/// Notices when a file beside the folder that a reader was given is opened, made, moved or removed.
///
/// The names that files are given lead there, as `../outside.safetensors` does. Where the system has no such notice,
/// the readers' own checks are all there is.
final class OutsideWatch {
    #if os(Linux)
    private let descriptor: Int32

    /// Watches the folder that holds the readers' one.
    init(_ parent: String) {
        descriptor = inotify_init1(Int32(IN_NONBLOCK) | Int32(IN_CLOEXEC))
        let events = IN_OPEN | IN_CREATE | IN_DELETE | IN_MOVED_FROM | IN_MOVED_TO
        if descriptor >= 0 { inotify_add_watch(descriptor, parent, UInt32(events)) }
    }

    deinit { close(descriptor) }

    /// The name of a file that was touched since the last call, or nil.
    func touched() -> String? {
        var buffer = [UInt8](repeating: 0, count: 4096)
        let count = Glibc.read(descriptor, &buffer, buffer.count)
        var found: String?
        var place = 0
        // An event: watch (4 bytes), what happened (4), cookie (4), length of the name (4), the name with zeros.
        while place + 16 <= count {
            let words = (0..<4).map { word in
                (0..<4).reduce(UInt32(0)) { $0 | UInt32(buffer[place + 4 * word + $1]) << UInt32(8 * $1) }
            }
            let end = place + 16 + Int(words[3])
            guard end <= count else { break }
            let name = String(decoding: buffer[place + 16..<end].prefix { $0 != 0 }, as: UTF8.self)
            // The readers' own folder is opened to list what is in it.
            if words[1] & UInt32(IN_ISDIR) == 0 || name != FuzzRun.folderName { found = found ?? name }
            place = end
        }
        return found
    }
    #else
    init(_ parent: String) {}

    func touched() -> String? { nil }
    #endif
}
