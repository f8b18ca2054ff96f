import Foundation

/// A TCP port of this machine that nobody uses.
///
/// Drawn from below the range of which systems take the ports of outgoing connections: such a connection could have
/// the port before the one who asked for it.
///
/// - Throws: `POSIXError` when there is none.
public func freePort() throws -> Int {
    for _ in 0..<100 {
        let port = Int.random(in: 15_000..<32_000)
        if try isFree(port) { return port }
    }
    throw POSIXError(.EADDRINUSE)
}

private func isFree(_ port: Int) throws -> Bool {
    #if canImport(Glibc) || canImport(Musl)
    let stream = Int32(SOCK_STREAM.rawValue)
    #else
    let stream = SOCK_STREAM
    #endif
    let descriptor = socket(AF_INET, stream, 0)
    guard descriptor >= 0 else { throw POSIXError(.EMFILE) }
    defer { close(descriptor) }
    var address = sockaddr_in()
    address.sin_family = sa_family_t(AF_INET)
    address.sin_port = in_port_t(port).bigEndian
    address.sin_addr.s_addr = INADDR_ANY.bigEndian
    return withUnsafePointer(to: &address) { pointer in
        pointer.withMemoryRebound(to: sockaddr.self, capacity: 1) {
            bind(descriptor, $0, socklen_t(MemoryLayout<sockaddr_in>.size)) == 0
        }
    }
}
