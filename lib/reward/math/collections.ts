/** Tuples, vectors, matrices, lists and finite sets. */
import { attempt, haveEqualItems, haveSameItems, type Judge } from './judge.js'
import { isSetLike } from './sets.js'
import type { Node, NodeOf } from './tree.js'

export function isCollection(node: Node): boolean {
  return ['brackets', 'matrix', 'piecewise'].includes(node.type) || isSetLike(node)
}

export function compareCollections(a: Node, b: Node, judge: Judge): boolean {
  if ((isSetLike(a) || isSetLike(b)) && (a.type !== 'brackets' || b.type !== 'brackets')) return false
  if (a.type === 'piecewise' && b.type === 'piecewise')
    return haveSameItems(pairsOf(a.items), pairsOf(b.items), judge)
  if (a.type === 'matrix' && b.type === 'matrix') {
    return a.rows.length === b.rows.length && a.rows.every((row, i) => haveEqualItems(row, b.rows[i]!, judge))
  }
  // A vector as a tuple.
  const [vectorA, vectorB] = [vectorOf(a), vectorOf(b)]
  if (vectorA) return isTuple(b) && haveEqualItems(vectorA, b.items, judge)
  if (vectorB) return isTuple(a) && haveEqualItems(a.items, vectorB, judge)
  // A(1, 2) for (1, 2)
  if (isPoint(a) && isTuple(b)) return haveEqualItems(a.items, b.items, judge)
  if (isPoint(b) && isTuple(a)) return haveEqualItems(a.items, b.items, judge)
  if (a.type === 'brackets' && b.type === 'brackets') {
    if (a.open !== b.open || a.close !== b.close) return false
    return a.open === '\\{' ? areSameFiniteSets(a, b, judge) : haveEqualItems(a.items, b.items, judge)
  }
  // {x} is x.
  const [one, other] = [onlyElement(a), onlyElement(b)]
  if (one) return judge.isEqual(one, b)
  return other !== undefined && judge.isEqual(a, other)
}

function onlyElement(node: Node): Node | undefined {
  return node.type === 'brackets' && node.open === '\\{' && node.items.length === 1
    ? node.items[0]
    : undefined
}

/** Value and condition as one item each. */
function pairsOf(items: readonly Node[]): readonly Node[] {
  return items.flatMap((item, i): Node[] =>
    i % 2 === 0 ? [{ type: 'brackets', open: 'case', close: 'case', items: [item, items[i + 1]!] }] : [],
  )
}

function areSameFiniteSets(a: NodeOf<'brackets'>, b: NodeOf<'brackets'>, judge: Judge): boolean {
  const areSame = (x: Node, y: Node) => attempt(() => judge.isEqual(x, y), judge.budget)
  return (
    a.items.every(x => b.items.some(y => areSame(x, y))) &&
    b.items.every(y => a.items.some(x => areSame(x, y)))
  )
}

export function isTuple(node: Node): node is NodeOf<'brackets'> {
  return node.type === 'brackets' && node.open === '(' && node.close === ')'
}

function isPoint(node: Node): node is NodeOf<'apply'> {
  return node.type === 'apply' && /^[A-Z]$/.test(node.name) && node.items.length > 1
}

function vectorOf(node: Node): readonly Node[] | undefined {
  if (node.type !== 'matrix' || (node.rows.length > 1 && node.rows[0]!.length > 1)) return undefined
  return node.rows.flat()
}

/** In any order; a list in braces may repeat its elements. */
export function compareLists(a: Node, b: Node, judge: Judge): boolean {
  const [own, wanted] = [a, b].map(node => (node.type === 'list' ? node.connector : undefined))
  if (!areSameConnectors(own, wanted)) return false
  // (1, 2) without its brackets, in the same order.
  for (const [list, tuple] of [
    [a, b],
    [b, a],
  ] as const) {
    if (list.type === 'list' && isTuple(tuple) && tuple.items.length > 1) {
      const isPlain = list.connector === ',' && !list.items.some(item => item.type === 'brackets')
      const [x, y] = list === a ? [list, tuple] : [tuple, list]
      return isPlain && haveEqualItems(x.items, y.items, judge)
    }
  }
  return haveSameItems(itemsOf(a), itemsOf(b), judge)
}

/** ∧ and ∨ differ; the words that people write between answers need not agree. */
function areSameConnectors(a: string | undefined, b: string | undefined): boolean {
  const [logicA, logicB] = [logicOf(a), logicOf(b)]
  return (a !== '∧' && a !== '∨' && b !== '∧' && b !== '∨') || (logicA !== undefined && logicA === logicB)
}

function logicOf(connector: string | undefined): string | undefined {
  if (connector === '∧' || connector === 'and') return 'and'
  return connector === '∨' || connector === 'or' ? 'or' : undefined
}

function itemsOf(node: Node): readonly Node[] {
  if (node.type === 'list') {
    // x = 1, -2
    const [first, ...rest] = node.items
    const isNamedOnce =
      first?.type === 'relation' &&
      String(first.signs) === '=' &&
      first.items[0]!.type === 'variable' &&
      rest.every(item => item.type !== 'relation')
    return isNamedOnce ? [first.items[1]!, ...rest] : node.items
  }
  if (node.type === 'brackets' && node.open === '\\{') return node.items
  // x = 1 ± √2, expanded
  return [node]
}
