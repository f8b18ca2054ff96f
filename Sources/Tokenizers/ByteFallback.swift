/// The text of the token that stands for a byte, as SentencePiece vocabularies write it: `<0x0A>`.
func byteToken(_ byte: UInt8) -> String {
    let digits = String(byte, radix: 16, uppercase: true)
    return digits.count == 1 ? "<0x0\(digits)>" : "<0x\(digits)>"
}
