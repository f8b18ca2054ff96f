/// Cuts text where the script changes.
enum ScriptRuns {
    static func split(_ piece: TextPiece, _ emit: (TextPiece) -> Void) { emit(piece) }
}
