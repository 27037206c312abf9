/** Sets of real numbers (intervals, unions, inequalities) as sorted lists of intervals. */
import { type Budget, Unreadable } from './budget.js'
import { absoluteOf, solve, unknownOf } from './inequalities.js'
import { isSameTree, mapParts, type Node, type NodeOf, type Relation, some } from './tree.js'
import { order } from './value.js'

interface End {
  /** 'infinity' stands for −∞ at the low end and ∞ at the high end. */
  readonly value: Node | 'infinity'
  readonly isClosed: boolean
}

interface Interval {
  readonly low: End
  readonly high: End
}

/** Sorted, disjoint, not touching. */
export type RealSet = readonly Interval[]

const everything: RealSet = [
  { low: { value: 'infinity', isClosed: false }, high: { value: 'infinity', isClosed: false } },
]

/** Largest number of intervals in a set. */
const MAX_INTERVALS = 50

export function isSetLike(node: Node): boolean {
  switch (node.type) {
    case 'union':
    case 'intersection':
    case 'difference':
      return true
    case 'constant':
      return node.name === 'reals' || node.name === 'empty'
    case 'relation':
      return (
        node.signs.some(sign => sign !== '=' && sign !== '~') ||
        (node.signs.length === 1 && isSetLike(node.items[1]!))
      )
    case 'brackets':
      return isInterval(node) && (node.open !== '(' || node.close !== ')' || node.items.some(isInfinite))
    case 'list':
      return node.items.every(item => (item.type === 'relation' || item.type === 'list') && isSetLike(item))
    case 'sum':
      return isWithout(node)
    default:
      return false
  }
}

/** ℝ − {0} */
function isWithout({ items }: { readonly items: readonly Node[] }): boolean {
  const [first, second] = items
  const isSet = (node?: Node) =>
    (node?.type === 'constant' && node.name === 'reals') || (node?.type === 'brackets' && node.open === '\\{')
  return (
    items.length === 2 &&
    isSet(first) &&
    second!.type === 'minus' &&
    isSet((second as { readonly item: Node }).item)
  )
}

function isInterval({ open, close, items }: NodeOf<'brackets'>): boolean {
  return items.length === 2 && open !== '\\{' && close !== '\\}'
}

function isInfinite(node: Node): boolean {
  if (node.type === 'minus') return isInfinite(node.item)
  return node.type === 'constant' && node.name === 'infinity'
}

/** Throws Unreadable if the expression is not a set of real numbers. */
export function toSet(node: Node, budget: Budget): RealSet {
  switch (node.type) {
    case 'brackets':
      if (node.open === '\\{') return unite(node.items.map(point), budget)
      if (isInterval(node)) return fromInterval(node, budget)
      break
    case 'constant':
      if (node.name === 'reals') return everything
      if (node.name === 'empty') return []
      break
    case 'union':
      return unite([...toSet(node.left, budget), ...toSet(node.right, budget)], budget)
    case 'intersection':
      return intersect(toSet(node.left, budget), toSet(node.right, budget), budget)
    case 'difference':
      return intersect(toSet(node.left, budget), complement(toSet(node.right, budget)), budget)
    case 'relation':
      return fromRelation(node, budget)
    case 'sum':
      if (isWithout(node)) {
        const [all, rest] = node.items as [Node, { readonly item: Node }]
        return intersect(toSet(all, budget), complement(toSet(rest.item, budget)), budget)
      }
      break
    case 'list': {
      const sets = node.items.map(item => toSet(item, budget))
      if (node.connector === 'and' || node.connector === '∧')
        return sets.reduce((a, b) => intersect(a, b, budget), everything)
      if (node.connector === ',' && node.items.every(({ type }) => type === 'relation')) {
        // x ≥ −1, x ≠ 0 can hold together; x < −3, x > 3 cannot.
        const both = sets.reduce((a, b) => intersect(a, b, budget), everything)
        if (both.length > 0) return both
      }
      return unite(sets.flat(), budget)
    }
  }
  throw new Unreadable('not a set of real numbers')
}

function point(value: Node): Interval {
  return { low: { value, isClosed: true }, high: { value, isClosed: true } }
}

function fromInterval({ open, close, items }: NodeOf<'brackets'>, budget: Budget): RealSet {
  const end = (node: Node, isClosed: boolean, isLow: boolean): End => {
    if (!isInfinite(node)) return { value: node, isClosed }
    if ((node.type === 'minus') !== isLow) throw new Unreadable('an interval from ∞ or to −∞')
    return { value: 'infinity', isClosed: false }
  }
  const interval = { low: end(items[0]!, open === '[', true), high: end(items[1]!, close === ']', false) }
  return isEmpty(interval, budget) ? [] : [interval]
}

/** x < 2, 2 ≤ x < 3, x ≠ 3, x ∈ [2, 3], and inequalities that are to be solved for their one unknown. */
function fromRelation(relation: NodeOf<'relation'>, budget: Budget): RealSet {
  const { signs, items } = relation
  if (signs.length === 1 && (signs[0] === 'in' || (signs[0] === '=' && isSetLike(items[1]!)))) {
    return toSet(items[1]!, budget)
  }
  const unknown = unknownOf(relation)
  if (!unknown) throw new Unreadable('an inequality that is not solved')
  const named: Node = { type: 'variable', name: 'unknown' }
  const sides = items.map(item => replaced(item, unknown, named, budget))
  return signs
    .map((sign, i) => fromInequality(sides[i]!, sign, sides[i + 1]!, budget))
    .reduce((a, b) => intersect(a, b, budget), everything)
}

function replaced(node: Node, part: Node, by: Node, budget: Budget): Node {
  return isSameTree(node, part, budget) ? by : mapParts(node, inner => replaced(inner, part, by, budget))
}

const turned: Partial<Record<Relation, Relation>> = { '<': '>', '>': '<', '<=': '>=', '>=': '<=' }

function fromInequality(left: Node, sign: Relation, right: Node, budget: Budget): RealSet {
  const isConstant = (node: Node) => !some(node, part => part.type === 'variable')
  if (isConstant(left)) {
    if (isConstant(right)) throw new Unreadable('an inequality without an unknown')
    if (left.type === 'constant' || right.type === 'variable' || right.type === 'call')
      return fromInequality(right, turned[sign] ?? sign, left, budget)
  }
  const absolute = absoluteOf(left, sign, right, budget)
  if (absolute) {
    const { inner, limit, isInside } = absolute
    const above = fromInequality(inner, sign, limit, budget)
    const below = fromInequality(inner, turned[sign] ?? sign, { type: 'minus', item: limit }, budget)
    return isInside || sign === '!=' ? intersect(above, below, budget) : unite([...above, ...below], budget)
  }
  const infinite: End = { value: 'infinity', isClosed: false }
  if (left.type === 'variable' && isConstant(right)) {
    const end: End = { value: right, isClosed: sign.endsWith('=') && sign !== '!=' }
    if (isInfinite(right)) return everything
    switch (sign) {
      case '<':
      case '<=':
        return [{ low: infinite, high: end }]
      case '>':
      case '>=':
        return [{ low: end, high: infinite }]
      case '!=':
        return complement([point(right)])
      case '=':
        return [point(right)]
      default:
        throw new Unreadable('a relation that is no inequality')
    }
  }
  if (!/^(?:[<>]=?|!=)$/.test(sign)) throw new Unreadable('a relation that is no inequality')
  const { roots, areas } = solve(left, sign, right, 'unknown', budget)
  const ends = roots.map(({ value }): End => ({ value, isClosed: false }))
  const intervals = areas.flatMap((isIn, i) =>
    isIn ? [{ low: ends[i - 1] ?? infinite, high: ends[i] ?? infinite }] : [],
  )
  return unite([...intervals, ...roots.flatMap(({ value, isIn }) => (isIn ? [point(value)] : []))], budget)
}

/** Ordered by value. At the same value a closed low end comes before an open one, and an open high end before a closed one. */
function compareEnds(a: End, b: End, aIsLow: boolean, bIsLow: boolean, budget: Budget): number {
  if (a.value === 'infinity') return b.value === 'infinity' && aIsLow === bIsLow ? 0 : aIsLow ? -1 : 1
  if (b.value === 'infinity') return bIsLow ? 1 : -1
  const byValue = order(a.value, b.value, budget)
  if (byValue !== 0) return byValue
  // Just below, at, just above the value.
  const place = (end: End, isLow: boolean) => (end.isClosed ? 0 : isLow ? 1 : -1)
  return place(a, aIsLow) - place(b, bIsLow)
}

function isEmpty({ low, high }: Interval, budget: Budget): boolean {
  return compareEnds(low, high, true, false, budget) > 0
}

function unite(intervals: readonly Interval[], budget: Budget): RealSet {
  if (intervals.length > MAX_INTERVALS) throw new Unreadable('too many intervals')
  const sorted = intervals.toSorted((a, b) => compareEnds(a.low, b.low, true, true, budget))
  const result: Interval[] = []
  for (const interval of sorted) {
    const last = result.at(-1)
    if (!last || hasGap(last.high, interval.low, budget)) result.push(interval)
    else if (compareEnds(last.high, interval.high, false, false, budget) < 0) {
      result[result.length - 1] = { low: last.low, high: interval.high }
    }
  }
  return result
}

/** Whether anything lies between the end of an interval and the start of the next. */
function hasGap(high: End, low: End, budget: Budget): boolean {
  if (high.value === 'infinity' || low.value === 'infinity') return false
  const byValue = order(high.value, low.value, budget)
  return byValue < 0 || (byValue === 0 && !high.isClosed && !low.isClosed)
}

function intersect(a: RealSet, b: RealSet, budget: Budget): RealSet {
  if (a.length * b.length > MAX_INTERVALS) throw new Unreadable('too many intervals')
  const parts = a.flatMap(x =>
    b.map(y => ({
      low: compareEnds(x.low, y.low, true, true, budget) < 0 ? y.low : x.low,
      high: compareEnds(x.high, y.high, false, false, budget) < 0 ? x.high : y.high,
    })),
  )
  return unite(
    parts.filter(part => !isEmpty(part, budget)),
    budget,
  )
}

function complement(set: RealSet): RealSet {
  const turn = (end: End): End => ({ value: end.value, isClosed: !end.isClosed })
  const infinite: End = { value: 'infinity', isClosed: false }
  const lows = [infinite, ...set.map(({ high }) => turn(high))]
  const highs = [...set.map(({ low }) => turn(low)), infinite]
  return lows
    .map((low, i) => ({ low, high: highs[i]! }))
    .filter(
      ({ low, high }, i) =>
        !(i === 0 && set.length > 0 && high.value === 'infinity') &&
        !(i === set.length && set.length > 0 && low.value === 'infinity'),
    )
}

export function areSameSets(a: RealSet, b: RealSet, budget: Budget): boolean {
  return (
    a.length === b.length &&
    a.every(
      (interval, i) =>
        compareEnds(interval.low, b[i]!.low, true, true, budget) === 0 &&
        compareEnds(interval.high, b[i]!.high, false, false, budget) === 0,
    )
  )
}
