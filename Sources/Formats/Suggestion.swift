/// The candidate nearest to a mistyped name, for "did you mean"; nil when none is near.
///
/// Near is at most one edit for every three characters (at least one): an insertion, a deletion, a change of one
/// character, or two neighbours swapped. Case, `-` and `_` do not count. The first of equally near candidates wins.
public func closestMatch(to name: String, in candidates: some Sequence<String>) -> String? {
    let wanted = folded(name)
    let limit = max(1, wanted.count / 3)
    var best: (candidate: String, distance: Int)?
    for candidate in candidates {
        let other = folded(candidate)
        guard abs(other.count - wanted.count) <= limit else { continue }
        let distance = editDistance(wanted, other)
        if distance <= limit, distance < best?.distance ?? Int.max { best = (candidate, distance) }
    }
    return best?.candidate
}

/// ` Did you mean "x"?` for the end of a message, or nothing when no candidate is near.
public func suggestion(for name: String, in candidates: some Sequence<String>) -> String {
    closestMatch(to: name, in: candidates).map { " Did you mean \"\($0)\"?" } ?? ""
}

private func folded(_ name: String) -> [Unicode.Scalar] {
    name.lowercased().unicodeScalars.map { $0 == "-" ? "_" : $0 }
}

/// Edits between two texts, a swap of neighbours counting as one (optimal string alignment).
private func editDistance(_ a: [Unicode.Scalar], _ b: [Unicode.Scalar]) -> Int {
    var beforeLast = [Int](repeating: 0, count: b.count + 1)
    var last = Array(0...b.count)
    for i in a.indices {
        var current = [i + 1] + beforeLast.dropFirst()
        for j in b.indices {
            let change = last[j] + (a[i] == b[j] ? 0 : 1)
            current[j + 1] = min(change, last[j + 1] + 1, current[j] + 1)
            if i > 0, j > 0, a[i] == b[j - 1], a[i - 1] == b[j] {
                current[j + 1] = min(current[j + 1], beforeLast[j - 1] + 1)
            }
        }
        (beforeLast, last) = (last, current)
    }
    return last[b.count]
}
