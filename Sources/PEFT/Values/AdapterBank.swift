import Backbones
import Torch

/// Several adapters on one model: each row of a batch chooses its own, and they come and go while the model stays.
///
/// ```swift
/// let bank = AdapterBank(on: model.backbone)
/// try bank.load("adapters/french", as: "french")
/// try bank.load("adapters/legal", as: "legal")
/// var context = Context()
/// context.routing = try bank.routing(["french", nil, "legal"])
/// let logits = try model.backbone.logits(ids, context)  // ids has three rows
/// ```
///
/// Each row is computed as if it were alone with its adapter. As long as the bank is there, every pass of the model
/// needs a routing, or adapters turned off.
public final class AdapterBank {
    private let backbone: any Backbone
    private var entries: [Entry] = []
    /// Adapters that were taken out and that a routing may still hold.
    private var retired: [Retired] = []
    /// What stands in the model's places.
    private var places: [Attached] = []

    private struct Retired {
        weak var entry: Entry?
    }

    /// Makes an empty bank.
    public init(on backbone: any Backbone) {
        self.backbone = backbone
    }

    deinit { detach() }

    /// The adapters' names, in the order in which they came.
    public var names: [String] { entries.map(\.name) }

    /// Loads an adapter's folder; an adapter of that name is replaced, once the new one is there.
    ///
    /// - Parameters:
    ///   - folder: A folder that Graft or peft wrote.
    ///   - name: What rows call it.
    /// - Throws: As ``Adapter/load(from:onto:)``, and `PEFTError` when rows cannot choose the adapter; the bank is as it
    ///   was then.
    public func load(_ folder: String, as name: String) throws {
        detach()
        defer { attach() }
        let adapter = try Adapter.load(from: folder, onto: backbone)
        adapter.detach()
        try insert(adapter, name, origin: folder)
    }

    /// Takes an adapter that is made already; it is taken off the model and has to stay off.
    ///
    /// - Throws: `PEFTError` when rows cannot choose the adapter; the bank is as it was then.
    public func add(_ adapter: Adapter, as name: String) throws {
        guard adapter.backbone === backbone else {
            throw PEFTError("the adapter \"\(name)\" was made for another model than the bank's")
        }
        adapter.detach()
        detach()
        defer { attach() }
        try insert(adapter, name, origin: name)
    }

    /// Takes an adapter out; rows that a routing has given it go on with it.
    ///
    /// - Throws: `PEFTError` when there is none of the name.
    public func remove(_ name: String) throws {
        let entry = try entry(name)
        detach()
        retired.append(Retired(entry: entry))
        entries.removeAll { $0 === entry }
        attach()
    }

    /// The routing of rows by names; nil stands for the pretrained model.
    ///
    /// - Throws: `PEFTError` for a name that is not there, with those that are.
    public func routing(_ rows: [String?]) throws -> Routing {
        Routing(try rows.map { try $0.map(entry) })
    }

    /// The rows that can share a pass, as indices: adapters with virtual tokens or a prefix need one of their own.
    ///
    /// - Throws: As ``routing(_:)``.
    public func batches(_ rows: [String?]) throws -> [[Int]] {
        var batches: [(alone: Entry?, rows: [Int])] = []
        for (row, name) in rows.enumerated() {
            let entry = try name.map(entry)
            let alone = entry?.needsPassOfItsOwn == true ? entry : nil
            if let index = batches.firstIndex(where: { $0.alone === alone }) {
                batches[index].rows.append(row)
            } else {
                batches.append((alone, [row]))
            }
        }
        return batches.map(\.rows)
    }

    private func entry(_ name: String) throws -> Entry {
        guard let entry = entries.first(where: { $0.name == name }) else {
            throw PEFTError(
                "there is no adapter \"\(name)\" on the model; "
                    + (names.isEmpty ? "none is loaded" : "loaded are \(names.joined(separator: ", "))"))
        }
        return entry
    }

    private func insert(_ adapter: Adapter, _ name: String, origin: String) throws {
        guard !name.isEmpty else { throw PEFTError("\(origin): an adapter needs a name") }
        let entry = try Entry(name, adapter, origin: origin)
        for place in adapter.places where place.point.occupant != nil {
            throw PEFTError("\(place.point.path) already has an adapter that is not the bank's; detach it first")
        }
        if let index = entries.firstIndex(where: { $0.name == name }) {
            retired.append(Retired(entry: entries[index]))
            entries[index] = entry
        } else {
            entries.append(entry)
        }
    }

    /// Empties the places.
    private func detach() {
        for place in places { place.clear() }
        places = []
    }

    /// Fills the places of all adapters that are there or still in use.
    private func attach() {
        retired.removeAll { $0.entry == nil }
        var seen: Set<ObjectIdentifier> = []
        for entry in entries + retired.compactMap(\.entry) {
            for place in entry.adapter.places where seen.insert(ObjectIdentifier(place.point)).inserted {
                if let routed = Self.routed(place.point) { places.append(routed) }
            }
        }
        for place in places { place.fill() }
    }

    /// What stands in a place for several adapters; nil where rows cannot differ.
    fileprivate static func routed(_ point: any AttachPoint) -> Attached? {
        switch point {
        case let linear as Linear: Attached(linear, RoutedLinear())
        case let sublayer as Sublayer: Attached(sublayer, RoutedSublayer())
        case let state as AttentionState: Attached(state, RoutedPrefix(state))
        case let embedding as TokenEmbedding: Attached(embedding, RoutedEmbedding(embedding))
        default: nil
        }
    }
}

/// An adapter in a bank.
private final class Entry: RoutedAdapter {
    let name: String
    let adapter: Adapter
    private let occupants: [ObjectIdentifier: AnyObject]

    init(_ name: String, _ adapter: Adapter, origin: String) throws {
        if let place = adapter.places.first(where: { AdapterBank.routed($0.point) == nil }) {
            let method = type(of: adapter.configuration.method).peftType
            throw PEFTError(
                "\(origin): \(method) changes \(place.point.path) for all rows or for none, so rows cannot choose it; use "
                    + "the adapter by itself, or merge it into a model of its own")
        }
        self.name = name
        self.adapter = adapter
        var occupants: [ObjectIdentifier: AnyObject] = [:]
        for place in adapter.places { occupants[ObjectIdentifier(place.point)] = place.occupant }
        self.occupants = occupants
    }

    func occupant(of point: any AttachPoint) -> AnyObject? { occupants[ObjectIdentifier(point)] }

    /// Whether the adapter puts something in front of the tokens.
    var needsPassOfItsOwn: Bool {
        adapter.places.contains { place in
            place.point is AttentionState || (place.occupant as? any EmbeddingAdapter)?.virtualTokens ?? 0 > 0
        }
    }
}
