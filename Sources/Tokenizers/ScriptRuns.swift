/// Cuts text where the script changes.
enum ScriptRuns {
    /// Calls `emit` for the runs of a piece; as in the reference, what stands before the first script goes.
    static func split(_ piece: TextPiece, _ emit: (TextPiece) -> Void) {
        var begin: Int?
        var last: UInt8?
        var index = 0
        while index < piece.bytes.count {
            let scalar = DecodedScalar(piece.bytes, at: index, end: piece.bytes.count)
            let script = ScriptTable.script(of: scalar.value)
            if script != ScriptTable.none {
                if last != script {
                    if let begin { emit(piece.part(begin..<index)) }
                    begin = index
                }
                last = script
            }
            index += scalar.length
        }
        if let begin { emit(piece.part(begin..<index)) }
    }
}
