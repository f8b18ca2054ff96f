import Formats
import Foundation

/// A lock that processes take one after the other; the system lifts it when its holder ends in any way.
///
/// Where it cannot be had, as in a file system without locks, work goes on without: whoever holds it only saves others
/// from doing the same twice.
final class WaitingLock {
    private let descriptor: Int32

    /// Waits for the lock.
    ///
    /// - Parameter path: The file that carries it, which stays.
    init(_ path: String) {
        descriptor = retrying { open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0o666) }
        if descriptor >= 0 { _ = retrying { flock(descriptor, LOCK_EX) } }
    }

    deinit {
        if descriptor >= 0 { close(descriptor) }
    }
}
