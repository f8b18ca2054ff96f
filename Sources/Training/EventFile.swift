import Formats
import Foundation

/// A TensorBoard event file: scalar curves that `tensorboard --logdir` shows while the run goes on.
///
/// The file is a sequence of TFRecords (length, masked CRC-32C of the length, data, masked CRC-32C of the data; all
/// little-endian), whose data are `Event` messages of TensorFlow's `event.proto` in protobuf's wire format. The first
/// names the version, `brain.Event:2`.
package final class EventFile {
    /// The path of the file: `events.out.tfevents.<Unix time>.<host>.<process>`.
    package var path: String { file.path }
    private let file: AppendFile
    private let now: () -> Double

    /// Creates a new event file.
    ///
    /// - Parameters:
    ///   - folder: The folder of the run, which may already hold event files of the same run.
    ///   - resumedStep: The step after which a resumed run goes on. TensorBoard is told to forget the later steps that
    ///     the interrupted run had written. `nil` for a run from the start.
    ///   - now: The wall clock, in seconds since 1970.
    /// - Throws: `FormatError` when the file cannot be created or written.
    package init(
        in folder: String, resumedStep: Int? = nil,
        now: @escaping () -> Double = { Date().timeIntervalSince1970 }
    ) throws {
        self.now = now
        let time = Self.freeTime(in: folder, now: now())
        let digits = String(repeating: "0", count: max(0, 10 - "\(time)".count)) + "\(time)"
        let process = ProcessInfo.processInfo.processIdentifier
        let name = "events.out.tfevents.\(digits).\(Self.safeHostName).\(process)"
        file = try AppendFile(path: joined(folder, name), isNew: true)

        try append { $0.string(3, "brain.Event:2") }
        if let resumedStep {
            // A session log that starts (status 1) at a step voids what was recorded from that step on.
            try append(step: resumedStep + 1) { $0.message(7) { $0.varint(1, 1) } }
        }
    }

    /// Appends one point to each of some curves.
    ///
    /// - Parameters:
    ///   - scalars: Curves, such as `train/loss`, and their values. TensorBoard groups them by what precedes the slash.
    ///   - step: The optimiser steps taken so far.
    /// - Throws: `FormatError` when the record could not be written; the file then lacks all of it.
    package func append(_ scalars: some Collection<(key: String, value: Double)>, step: Int) throws {
        guard !scalars.isEmpty else { return }
        try append(step: step) { event in
            event.message(5) { summary in
                for (tag, value) in scalars {
                    summary.message(1) {
                        $0.string(1, tag)
                        $0.float(2, Float(value))
                    }
                }
            }
        }
    }

    private func append(step: Int = 0, _ body: (inout ProtobufWriter) -> Void) throws {
        var event = ProtobufWriter()
        event.double(1, now())
        if step != 0 { event.varint(2, UInt64(bitPattern: Int64(step))) }
        body(&event)
        try file.append(Self.record(event.bytes))
    }

    private static func record(_ data: [UInt8]) -> [UInt8] {
        let length = littleEndian(UInt64(data.count))
        return length + littleEndian(CRC32C.masked(length)) + data + littleEndian(CRC32C.masked(data))
    }

    /// The time to put in the name.
    ///
    /// TensorBoard reads files in the order of their names, so a resumed run's file must
    /// sort behind the earlier ones even within one second or after the clock was set back.
    private static func freeTime(in folder: String, now: Double) -> Int {
        let names = (try? FileManager.default.contentsOfDirectory(atPath: folder)) ?? []
        let taken = names.compactMap { name -> Int? in
            let parts = name.split(separator: ".")
            return name.hasPrefix("events.out.tfevents.") && parts.count > 3 ? Int(parts[3]) : nil
        }
        let time = Int(exactly: now.rounded(.down)) ?? 0
        guard let last = taken.max(), last >= time, last < 9_999_999_999 else { return max(0, time) }
        return last + 1
    }

    /// The host's name with signs that are safe in a file name; a dot would move the parts of the name.
    private static var safeHostName: String {
        String(hostName().map { $0.isASCII && ($0.isLetter || $0.isNumber) ? $0 : "-" })
    }
}

/// Protobuf's wire format, as far as events need it.
private struct ProtobufWriter {
    var bytes: [UInt8] = []

    mutating func varint(_ field: Int, _ value: UInt64) {
        tag(field, wireType: 0)
        varint(value)
    }

    mutating func double(_ field: Int, _ value: Double) {
        tag(field, wireType: 1)
        bytes += littleEndian(value.bitPattern)
    }

    mutating func string(_ field: Int, _ value: String) {
        tag(field, wireType: 2)
        varint(UInt64(value.utf8.count))
        bytes += value.utf8
    }

    mutating func message(_ field: Int, _ body: (inout ProtobufWriter) -> Void) {
        var inner = ProtobufWriter()
        body(&inner)
        tag(field, wireType: 2)
        varint(UInt64(inner.bytes.count))
        bytes += inner.bytes
    }

    mutating func float(_ field: Int, _ value: Float) {
        tag(field, wireType: 5)
        bytes += littleEndian(value.bitPattern)
    }

    private mutating func tag(_ field: Int, wireType: UInt64) { varint(UInt64(field) << 3 | wireType) }

    /// Seven bits a byte, the lowest first; the top bit says that more follow.
    private mutating func varint(_ value: UInt64) {
        var rest = value
        while rest >= 0x80 {
            bytes.append(UInt8(truncatingIfNeeded: rest) | 0x80)
            rest >>= 7
        }
        bytes.append(UInt8(rest))
    }
}

/// The CRC-32 with Castagnoli's polynomial, as TFRecords use it.
private enum CRC32C {
    /// The remainder of each byte, for the polynomial 0x1EDC6F41 with its bits reversed.
    private static let table: [UInt32] = (0..<256).map { byte in
        (0..<8).reduce(UInt32(byte)) { crc, _ in crc & 1 == 1 ? crc >> 1 ^ 0x82F6_3B78 : crc >> 1 }
    }

    /// The checksum, rotated and offset so that data which contain checksums can be summed again.
    static func masked(_ bytes: [UInt8]) -> UInt32 {
        let crc = ~bytes.reduce(~0) { crc, byte in table[Int((crc ^ UInt32(byte)) & 0xFF)] ^ crc >> 8 }
        return (crc >> 15 | crc << 17) &+ 0xA282_EAD8
    }
}

private func littleEndian(_ value: some FixedWidthInteger) -> [UInt8] {
    withUnsafeBytes(of: value.littleEndian) { Array($0) }
}
