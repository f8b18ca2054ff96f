/// An expression of a template.
indirect enum JinjaExpression: Sendable {
    case literal(JinjaValue)
    case name(String)
    /// `object.name`
    case attribute(JinjaNode, String)
    /// `object[index]`
    case item(JinjaNode, JinjaNode)
    /// `object[start:stop:step]`
    case slice(JinjaNode, start: JinjaNode?, stop: JinjaNode?, step: JinjaNode?)
    case call(JinjaNode, JinjaArguments)
    case filter(JinjaNode, String, JinjaArguments)
    case test(JinjaNode, String, JinjaArguments, isNegated: Bool)
    case negative(JinjaNode)
    case positive(JinjaNode)
    case binary(JinjaNode, String, JinjaNode)
    /// `~` over two or more operands.
    case concatenation([JinjaNode])
    /// `a < b <= c`, with `in` and `not in` among the operators.
    case comparison(JinjaNode, [(symbol: String, operand: JinjaNode)])
    case and(JinjaNode, JinjaNode)
    case or(JinjaNode, JinjaNode)
    case not(JinjaNode)
    /// `then if condition else otherwise`
    case conditional(then: JinjaNode, condition: JinjaNode, otherwise: JinjaNode?)
    case list([JinjaNode])
    case tuple([JinjaNode])
    case dictionary([(key: JinjaNode, value: JinjaNode)])
}

/// An expression and its line.
struct JinjaNode: Sendable {
    let expression: JinjaExpression
    let line: Int
    /// Levels of expressions below and with this one; limited, since evaluation is recursive.
    let depth: Int
}

/// The arguments of a call, a filter or a test.
struct JinjaArguments: Sendable {
    var positional: [JinjaNode] = []
    var named: [(name: String, value: JinjaNode)] = []
    /// The operand of `*`.
    var unpacked: JinjaNode?
    /// The operand of `**`.
    var unpackedNamed: JinjaNode?

    /// All values, positional ones first.
    var nodes: [JinjaNode] { positional + named.map(\.value) + [unpacked, unpackedNamed].compactMap(\.self) }
}

/// What `set` and `for` assign to.
indirect enum JinjaTarget: Sendable {
    case name(String)
    /// `namespace.attribute`
    case attribute(String, String)
    case tuple([JinjaTarget])
}

/// A macro, or the body of a `call` block.
struct JinjaMacro: Sendable {
    let name: String
    let parameters: [(name: String, defaultValue: JinjaNode?)]
    let body: [JinjaStatement]
    /// Whether the body asks for `varargs` and `kwargs`: what else the macro was called with.
    var takesMore = false
    var takesMoreNamed = false
    /// Whether the body asks for `caller`, so that `call` blocks may call the macro.
    var takesCaller = false
}

/// A for loop: `{% for target in sequence if condition %}body{% else %}otherwise{% endfor %}`.
struct JinjaForLoop: Sendable {
    let target: JinjaTarget
    let sequence: JinjaNode
    let condition: JinjaNode?
    /// Whether the body may call `loop(...)` to run itself over other elements.
    let isRecursive: Bool
    let body: [JinjaStatement]
    let otherwise: [JinjaStatement]
}

/// A statement of a template and its line.
struct JinjaStatement: Sendable {
    indirect enum Kind: Sendable {
        case text(String)
        case output(JinjaNode)
        /// The branches of if and elif in order, then of else.
        case branches([(condition: JinjaNode, body: [JinjaStatement])], otherwise: [JinjaStatement])
        case loop(JinjaForLoop)
        case set(JinjaTarget, JinjaNode)
        /// `{% set name %}...{% endset %}`, with the filters of its tag.
        case setBlock(JinjaTarget, [JinjaStatement], filters: [(name: String, arguments: JinjaArguments)])
        case macro(JinjaMacro)
        case callBlock(JinjaNode, JinjaMacro)
        case filterBlock([(name: String, arguments: JinjaArguments)], [JinjaStatement])
        case scope([(JinjaTarget, JinjaNode)], [JinjaStatement])
        /// `{% generation %}`: its text is what the assistant says.
        case generation([JinjaStatement])
        case breakLoop
        case continueLoop
    }

    let kind: Kind
    let line: Int
}
