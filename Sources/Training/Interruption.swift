import Foundation
import Synchronization

/// Turns SIGINT (Ctrl-C) and SIGTERM into a wish to stop after the current step, while it lives.
///
/// The second signal ends the process at once, as it would without this, unless a launcher repeats signals.
package final class Interruption {
    private static let wish = Atomic<Bool>(false)
    private static let signals = [SIGINT, SIGTERM]
    private let earlier: [sigaction]

    /// Whether a signal has come.
    package var isRequested: Bool { Self.wish.load(ordering: .relaxed) }

    /// Begins to listen.
    ///
    /// - Parameter endsAtSecond: Whether a second signal ends the process; launchers send again what the terminal has
    ///   sent already.
    package init(endsAtSecond: Bool = true) {
        // Also makes the flag, which a handler must not do.
        Self.wish.store(false, ordering: .relaxed)
        var action = sigaction()
        #if canImport(Darwin)
        action.__sigaction_u.__sa_handler = Self.handler
        #else
        action.__sigaction_handler.sa_handler = Self.handler
        #endif
        // Reads and writes that the signal interrupts go on; the handler is for one signal only.
        action.sa_flags = Int32(SA_RESTART) | (endsAtSecond ? Int32(bitPattern: UInt32(SA_RESETHAND)) : 0)
        earlier = Self.signals.map { signal in
            var old = sigaction()
            // A run that was started with the signal ignored (nohup, a background job) keeps ignoring it.
            sigaction(signal, nil, &old)
            if !Self.isIgnored(old) { sigaction(signal, &action, nil) }
            return old
        }
    }

    deinit {
        for (signal, old) in zip(Self.signals, earlier) {
            var old = old
            sigaction(signal, &old, nil)
        }
    }

    private static let handler: @convention(c) (Int32) -> Void = { _ in
        Interruption.wish.store(true, ordering: .relaxed)
    }

    private static func isIgnored(_ action: sigaction) -> Bool {
        #if canImport(Darwin)
        let handler = action.__sigaction_u.__sa_handler
        #else
        let handler = action.__sigaction_handler.sa_handler
        #endif
        return unsafeBitCast(handler, to: Int.self) == unsafeBitCast(SIG_IGN, to: Int.self)
    }
}
