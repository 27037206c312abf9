/** What an answer is read as. */
import type { Budget } from './budget.js'
import type { Rational } from './rational.js'

export type Connector = ',' | 'and' | 'or'
export type Relation = '=' | '<' | '>' | '<=' | '>=' | '!=' | 'in' | '~'

export type Node =
  | { readonly type: 'number'; readonly value: Rational; readonly digits: number }
  | { readonly type: 'constant'; readonly name: 'pi' | 'e' | 'i' | 'infinity' | 'reals' | 'empty' }
  | { readonly type: 'variable'; readonly name: string }
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
  /** Tuple, interval, set or vector, by its brackets. One item in round brackets is no node of its own. */
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
  /** 3:2, or a time; by what is written. */
  | {
      readonly type: 'ratio'
      readonly items: readonly Node[]
      readonly kind: 'ratio' | 'time' | 'time or ratio'
    }
  /** Digits in another base, `places` of them after the point. */
  | { readonly type: 'based'; readonly digits: string; readonly places: number; readonly base: number }
  | { readonly type: 'quantity'; readonly item: Node; readonly unit: string }
  | { readonly type: 'text'; readonly text: string }

export type NodeOf<T extends Node['type']> = Extract<Node, { readonly type: T }>

/** The parts of a node, in order. */
export function partsOf(node: Node): readonly Node[] {
  if ('items' in node) return node.items
  if ('left' in node) return [node.left, node.right]
  if ('item' in node) return [node.item]
  return node.type === 'matrix' ? node.rows.flat() : []
}

/** The node with its parts replaced; a part that `change` leaves alone stays the same object. */
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

/** All of a node but its parts. */
function labelOf(node: Node): string {
  const values = Object.values(node).map(value => {
    if (typeof value === 'string' || typeof value === 'number') return value
    return typeof value === 'object' && 'numerator' in value ? `${value.numerator}/${value.denominator}` : ''
  })
  return node.type === 'matrix' ? `matrix ${node.rows[0]!.length}` : String(values)
}
