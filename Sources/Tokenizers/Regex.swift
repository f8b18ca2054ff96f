import CPCRE2
import Synchronization

/// A compiled regular expression in the dialect of tokenizer.json: Oniguruma's Ruby syntax over Unicode.
///
/// PCRE2 does the work, with its just-in-time compiler where the machine has one. A search that needs more than ten million
/// steps or more memory than the limits below gives up: the rest of its text then counts as not matching.
final class Regex: Sendable {
    /// The expression as it was given.
    let pattern: String

    private let code: Handle
    private let searches = Mutex<[Search]>([])

    /// A pointer of the C library to something that does not change once it is made.
    private struct Handle: @unchecked Sendable {
        let pointer: OpaquePointer
    }

    /// What one search needs of its own.
    private struct Search: @unchecked Sendable {
        let result: OpaquePointer
        let context: OpaquePointer
        let stack: OpaquePointer?

        func free() {
            pcre2_match_data_free_8(result)
            pcre2_match_context_free_8(context)
            if let stack { pcre2_jit_stack_free_8(stack) }
        }
    }

    private static let mostSteps: UInt32 = 10_000_000
    private static let smallestStack = 32 << 10
    private static let largestStack = 4 << 20
    /// In kibibytes, for searches that the just-in-time compiler's stack is too small for.
    private static let mostHeap: UInt32 = 64 << 10

    /// Compiles an expression.
    ///
    /// - Throws: ``RegexError`` with the place of what cannot be read.
    convenience init(_ pattern: String) throws {
        try self.init(plain: try RegexTranslation.pcre2(pattern), written: pattern)
    }

    private init(plain: String, written pattern: String? = nil) throws {
        let pattern = pattern ?? plain
        self.pattern = pattern
        let translated = Array(plain.utf8)
        var status: Int32 = 0
        var offset = 0
        let context = pcre2_compile_context_create_8(nil)
        defer { pcre2_compile_context_free_8(context) }
        pcre2_set_newline_8(context, UInt32(PCRE2_NEWLINE_LF))
        let options = UInt32(PCRE2_UTF) | UInt32(PCRE2_UCP) | UInt32(PCRE2_MULTILINE) | UInt32(PCRE2_NEVER_BACKSLASH_C)
        let compiled = translated.withUnsafeBufferPointer {
            pcre2_compile_8($0.baseAddress, $0.count, options, &status, &offset, context)
        }
        guard let compiled else {
            throw RegexError(
                "the regular expression \(pythonRepr(pattern)) cannot be used: \(Self.message(status)), at byte "
                    + "\(offset) of \(pythonRepr(String(decoding: translated, as: UTF8.self)))")
        }
        code = Handle(pointer: compiled)
        // Without a just-in-time compiler for the machine the interpreter runs; the matches are the same.
        pcre2_jit_compile_8(compiled, UInt32(PCRE2_JIT_COMPLETE))
    }

    deinit {
        searches.withLock { for search in $0 { search.free() } }
        pcre2_code_free_8(code.pointer)
    }

    private static func message(_ status: Int32) -> String {
        var buffer = [UInt8](repeating: 0, count: 256)
        let length = pcre2_get_error_message_8(status, &buffer, buffer.count)
        return String(decoding: buffer.prefix(max(0, Int(length))), as: UTF8.self)
    }

    /// Calls `body` with each match from left to right.
    ///
    /// As the reference does, an empty match right after another match is passed over.
    func forEachMatch(_ text: UnsafeBufferPointer<UInt8>, _ body: (Range<Int>) -> Void) {
        guard let base = text.baseAddress, let search = takeSearch() else { return }
        defer { searches.withLock { $0.append(search) } }
        let bounds = pcre2_get_ovector_pointer_8(search.result)
        var start = 0
        var lastEnd = -1
        while start <= text.count, let bounds {
            // The text is known to be well-formed UTF-8.
            let options = UInt32(PCRE2_NO_UTF_CHECK)
            var status = pcre2_match_8(
                code.pointer, base, text.count, start, options, search.result, search.context)
            if status == PCRE2_ERROR_JIT_STACKLIMIT {
                status = pcre2_match_8(
                    code.pointer, base, text.count, start, options | UInt32(PCRE2_NO_JIT), search.result,
                    search.context)
            }
            guard status >= 0, bounds[0] <= bounds[1], bounds[0] >= start else { return }
            let match = bounds[0]..<bounds[1]
            if match.isEmpty, match.upperBound == lastEnd {
                guard start < text.count else { return }
                start += DecodedScalar(text, at: start, end: text.count).length
                continue
            }
            start = match.upperBound
            lastEnd = match.upperBound
            body(match)
        }
    }

    /// The characters of a text that match an expression of PCRE2's own, which finds single characters.
    static func matches(ofPlain pattern: String, in text: String) -> [Unicode.Scalar] {
        guard let regex = try? Regex(plain: pattern) else { return [] }
        var text = text
        var found: [Unicode.Scalar] = []
        text.withUTF8 { bytes in
            regex.forEachMatch(bytes) { match in
                let scalar = DecodedScalar(bytes, at: match.lowerBound, end: bytes.count)
                if let scalar = Unicode.Scalar(scalar.value) { found.append(scalar) }
            }
        }
        return found
    }

    private func takeSearch() -> Search? {
        if let search = searches.withLock({ $0.popLast() }) { return search }
        guard let result = pcre2_match_data_create_8(1, nil) else { return nil }
        guard let context = pcre2_match_context_create_8(nil) else {
            pcre2_match_data_free_8(result)
            return nil
        }
        pcre2_set_match_limit_8(context, Self.mostSteps)
        pcre2_set_heap_limit_8(context, Self.mostHeap)
        let stack = pcre2_jit_stack_create_8(Self.smallestStack, Self.largestStack, nil)
        if let stack { pcre2_jit_stack_assign_8(context, nil, UnsafeMutableRawPointer(stack)) }
        return Search(result: result, context: context, stack: stack)
    }
}

/// A regular expression that cannot be used.
struct RegexError: Error {
    /// One clause: which expression, what is wrong with it and where.
    let message: String

    init(_ message: String) { self.message = message }
}
