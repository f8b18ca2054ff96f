import Torch

/// An adapter that the rows of a batch can choose, beside others.
public protocol RoutedAdapter: AnyObject {
    /// What it is called.
    var name: String { get }
    /// What the adapter has in a place of the model, or nil where it leaves the place alone.
    func occupant(of point: any AttachPoint) -> AnyObject?
}

/// Which adapter each row of a batch, or of a packed sequence, uses; nil stands for the pretrained model.
///
/// It holds its adapters: a text that is being written goes on with them when others take their place meanwhile. What
/// low-rank adapters multiply with is put together once for a routing, so an adapter that is trained on needs a new one.
public struct Routing {
    /// The adapter of each row.
    public let rows: [(any RoutedAdapter)?]
    /// What places of the model keep for the next pass with the same routing.
    package let memory = RoutingMemory()
    /// How low-rank terms are computed; for tests, which hold the ways against each other.
    package var form = Form.automatic

    /// A way to compute low-rank terms of several adapters.
    package enum Form: Sendable {
        /// `gathered` for few tokens a row, else `grouped`.
        case automatic
        /// Each row's factors side by side, in one product over all rows.
        case gathered
        /// The rows of each adapter by themselves.
        case grouped
    }

    /// Makes a routing of one adapter, or none, for each row.
    public init(_ rows: [(any RoutedAdapter)?]) {
        self.rows = rows
    }

    /// The routing of some of the rows, in a new order.
    func keeping(_ kept: [Int]) -> Routing {
        var routing = Routing(kept.map { rows[$0] })
        routing.form = form
        return routing
    }

    /// The adapter of all rows, where it is the same; nil where it is not, `.some(nil)` where there is none.
    package var common: (any RoutedAdapter)?? {
        guard let first = rows.first, rows.allSatisfy({ $0 === first }) else { return nil }
        return .some(first)
    }

    /// The rows of each adapter, in the order in which the adapters are met first.
    package var groups: [(adapter: (any RoutedAdapter)?, rows: [Int])] {
        var groups: [(adapter: (any RoutedAdapter)?, rows: [Int])] = []
        for (row, adapter) in rows.enumerated() {
            if let index = groups.firstIndex(where: { $0.adapter === adapter }) {
                groups[index].rows.append(row)
            } else {
                groups.append((adapter, [row]))
            }
        }
        return groups
    }
}

/// What is worked out once for a routing.
package final class RoutingMemory {
    private var kept: [ObjectIdentifier: Any] = [:]

    init() {}

    /// What is kept for an object, or what `make` gives.
    package func value<Value>(for owner: AnyObject, _ make: () throws -> Value) rethrows -> Value {
        if let value = kept[ObjectIdentifier(owner)] as? Value { return value }
        let value = try make()
        kept[ObjectIdentifier(owner)] = value
        return value
    }
}

extension Context {
    /// The same pass for code that sees one adapter alone.
    package var unrouted: Context {
        var context = self
        context.routing = nil
        return context
    }
}
