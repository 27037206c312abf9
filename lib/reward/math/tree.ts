/** The tree that an answer is read as. */
import type { Budget } from './budget.js'
import type { Rational } from './rational.js'

/** ∧ and ∨ are those of logic; "and" and "or" stand between answers. */
export type Connector = ',' | 'and' | 'or' | '∧' | '∨'
export type Relation = '=' | '<' | '>' | '<=' | '>=' | '!=' | 'in' | '~' | '→' | '↔'

export type Node =
  | { readonly type: 'number'; readonly value: Rational; readonly digits: number }
  | { readonly type: 'constant'; readonly name: 'pi' | 'e' | 'i' | 'infinity' | 'empty' | NumberSet }
  /** A run of capitals is one name: AB is a segment or a product of matrices, and BA is another name. */
  | { readonly type: 'variable'; readonly name: string; readonly isVector?: true }
  | { readonly type: 'sum' | 'product'; readonly items: readonly Node[] }
  | { readonly type: 'quotient'; readonly left: Node; readonly right: Node }
  | { readonly type: 'power'; readonly left: Node; readonly right: Node }
  /** A postfix or prefix operation. `plusMinus` and `minusPlus` stand for two values. */
  | {
      readonly type: 'minus' | 'plusMinus' | 'minusPlus' | 'degrees' | 'percent'
      readonly item: Node
    }
  /** sin, ln, sqrt (with the index as second argument), log (base second), abs, factorial, binomial … */
  | { readonly type: 'call'; readonly name: string; readonly items: readonly Node[] }
  /**
   * An expression without a value, which equals another one with equal parts in the same order: f(x), f ∘ g, a × b, d/dx of
   * something, A⁻¹B.
   */
  | { readonly type: 'apply'; readonly name: string; readonly items: readonly Node[] }
  /** A sum, product, integral or limit: its body, then its bounds if it has them. The variable is bound inside. */
  | {
      readonly type: 'bound'
      readonly kind: 'sum' | 'prod' | 'int' | 'lim'
      readonly variable: string
      readonly items: readonly Node[]
    }
  /** All values of the item as the parameter runs through the domain. */
  | {
      readonly type: 'family'
      readonly item: Node
      readonly parameter: string
      readonly domain: NumberSet
    }
  /** A residue, or an equation of residues, and its modulus. */
  | { readonly type: 'congruence'; readonly left: Node; readonly right: Node }
  /** Value, condition, value, condition … */
  | { readonly type: 'piecewise'; readonly items: readonly Node[] }
  /** Tuple, interval, set or vector, according to its brackets. One item in round brackets is not a node of its own. */
  | {
      readonly type: 'brackets'
      readonly open: string
      readonly close: string
      readonly items: readonly Node[]
    }
  | { readonly type: 'list'; readonly connector: Connector; readonly items: readonly Node[] }
  | { readonly type: 'matrix'; readonly rows: readonly (readonly Node[])[] }
  | { readonly type: 'relation'; readonly signs: readonly Relation[]; readonly items: readonly Node[] }
  | { readonly type: 'union' | 'intersection' | 'difference'; readonly left: Node; readonly right: Node }
  /** A ratio such as 3:2, or a time; the spelling decides. */
  | {
      readonly type: 'ratio'
      readonly items: readonly Node[]
      readonly kind: 'ratio' | 'time' | 'time or ratio'
    }
  /** Digits in another base, `places` of them after the point. */
  | {
      readonly type: 'based'
      readonly digits: string
      readonly places: number
      readonly base: number
      readonly isInWords?: true
    }
  | { readonly type: 'quantity'; readonly item: Node; readonly unit: string }
  | { readonly type: 'text'; readonly text: string }

export type NumberSet = 'reals' | 'integers' | 'naturals' | 'rationals' | 'complexes'
/** log without a base: its base is 10 or e, as the other side requires. */
export const LOG = 'log of unknown base'

export type NodeOf<T extends Node['type']> = Extract<Node, { readonly type: T }>

/** The parts of a node, in order. */
export function partsOf(node: Node): readonly Node[] {
  if ('items' in node) return node.items
  if ('left' in node) return [node.left, node.right]
  if ('item' in node) return [node.item]
  return node.type === 'matrix' ? node.rows.flat() : []
}

/** The node with its parts replaced. Parts that `change` returns unchanged stay the same objects. */
export function mapParts(node: Node, change: (part: Node) => Node): Node {
  if ('items' in node) return { ...node, items: node.items.map(change) }
  if ('left' in node) return { ...node, left: change(node.left), right: change(node.right) }
  if ('item' in node) return { ...node, item: change(node.item) }
  return node.type === 'matrix' ? { ...node, rows: node.rows.map(row => row.map(change)) } : node
}

export function some(node: Node, test: (node: Node) => boolean): boolean {
  return test(node) || partsOf(node).some(part => some(part, test))
}

/** The same expression, part by part. */
export function isSameTree(a: Node, b: Node, budget: Budget): boolean {
  budget.spend(1)
  const [left, right] = [partsOf(a), partsOf(b)]
  return (
    labelOf(a) === labelOf(b) &&
    left.length === right.length &&
    left.every((part, i) => isSameTree(part, right[i]!, budget))
  )
}

/** A node without its parts. */
function labelOf(node: Node): string {
  const values = Object.values(node).map(value => {
    if (typeof value === 'string' || typeof value === 'number') return value
    if (typeof value === 'boolean') return ''
    return typeof value === 'object' && 'numerator' in value ? `${value.numerator}/${value.denominator}` : ''
  })
  return node.type === 'matrix' ? `matrix ${node.rows[0]!.length}` : String(values)
}

/** The names in an expression that are not bound there. */
export function namesIn(node: Node): Set<string> {
  if (node.type === 'variable') return new Set([node.name])
  if (node.type === 'bound') {
    const [body, ...bounds] = node.items
    const names = namesIn(body!)
    for (const name of names)
      if (name === node.variable || name.endsWith(`_${node.variable}`)) names.delete(name)
    return new Set([...names, ...bounds.flatMap(bound => [...namesIn(bound)])])
  }
  if (node.type === 'family') {
    const names = namesIn(node.item)
    names.delete(node.parameter)
    return names
  }
  return new Set(partsOf(node).flatMap(part => [...namesIn(part)]))
}

/** Renames bound variables to names that depend only on the depth of the sums, integrals … around them. */
export function renamed(node: NodeOf<'bound'>): NodeOf<'bound'> {
  const [body, ...bounds] = node.items
  const variable = `bound ${boundDepth(node)}`
  return {
    ...node,
    variable,
    items: [substitute(body!, node.variable, { type: 'variable', name: variable }), ...bounds],
  }
}

function boundDepth(node: Node): number {
  return Math.max(0, ...partsOf(node).map(boundDepth)) + (node.type === 'bound' ? 1 : 0)
}

/** The expression with a value for a name. */
export function substitute(node: Node, name: string, value: Node): Node {
  if (node.type === 'variable') {
    if (node.name === name) return value
    // x_k
    const index =
      value.type === 'variable' ? value.name : value.type === 'number' ? value.value.numerator : undefined
    const isIndexed = index !== undefined && node.name.endsWith(`_${name}`)
    return isIndexed ? { ...node, name: `${node.name.slice(0, -name.length)}${index}` } : node
  }
  if (node.type === 'bound' && node.variable === name) {
    const [body, ...bounds] = node.items
    return { ...node, items: [body!, ...bounds.map(bound => substitute(bound, name, value))] }
  }
  return mapParts(node, part => substitute(part, name, value))
}

export function integer(value: number | bigint): NodeOf<'number'> {
  return { type: 'number', value: { numerator: BigInt(value), denominator: 1n }, digits: 1 }
}

export function negative(item: Node): Node {
  return { type: 'minus', item }
}

export function sumOf(...items: Node[]): Node {
  return items.length === 1 ? items[0]! : { type: 'sum', items }
}

export function productOf(...items: Node[]): Node {
  return items.length === 1 ? items[0]! : { type: 'product', items }
}

export function quotientOf(left: Node, right: Node): Node {
  return { type: 'quotient', left, right }
}

export function differenceOf(left: Node, right: Node): Node {
  return { type: 'sum', items: [left, negative(right)] }
}
