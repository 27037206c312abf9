/** Values with a unit, a degree or percent sign, a base; ratios and times. */
import type { Budget } from './budget.js'
import { exactValue } from './evaluate.js'
import { attempt, haveEqualItems, type Judge } from './judge.js'
import { isSameValue } from './tolerance.js'
import { mapParts, type Node, type NodeOf, partsOf, productOf } from './tree.js'
import { haveSameDimensions, isKnown, readUnit, type Unit } from './units.js'

/** Values, each with a unit, a degree or percent sign, a base, or none. */
export function compareQuantities(a: Node, b: Node, judge: Judge): boolean {
  if (a.type === 'quantity' || b.type === 'quantity') return compareUnits(a, b, judge)
  if (a.type === 'ratio' && b.type === 'ratio') return compareRatios(a, b, judge)
  for (const mark of ['degrees', 'percent'] as const) {
    const [hasA, hasB] = [isMarked(a, mark), isMarked(b, mark)]
    // 60 equals 60°, and 50 equals 50 %. But the answer 0.5 % is not the reference 0.5.
    const mayDiffer = hasB || mark === 'degrees' || !isBelowOne(b, judge.budget)
    if (
      hasA !== hasB &&
      mayDiffer &&
      attempt(() => isSameValue(unmarked(a, mark), unmarked(b, mark), judge), judge.budget)
    )
      return true
  }
  if (isMarked(a, 'based') !== isMarked(b, 'based')) return isSameButForBase(a, b)
  return isSameValue(a, b, judge)
}

/**
 * The base may be left out, like a unit: 12 for 12_8, and 12_8 for 12 if the problem names the base. The same number in base
 * ten is not accepted: "Convert 1230_4 to base 10" could then be answered with 1230_4 itself.
 */
function isSameButForBase(a: Node, b: Node): boolean {
  if (a.type === 'minus' && b.type === 'minus') return isSameButForBase(a.item, b.item)
  const [based, other] = a.type === 'based' ? [a, b] : [b, a]
  return (
    based.type === 'based' &&
    !based.isInWords &&
    other.type === 'number' &&
    other.value.denominator === 1n &&
    based.places === 0 &&
    String(other.value.numerator) === based.digits
  )
}

function isBelowOne(node: Node, budget: Budget): boolean {
  return attempt(() => {
    const value = exactValue(node, budget)
    return value !== undefined && value.numerator < value.denominator && value.numerator > -value.denominator
  }, budget)
}

/** Outside of functions, since angles in functions count as they are. */
function isMarked(node: Node, mark: 'degrees' | 'percent' | 'based'): boolean {
  return node.type === mark || (node.type !== 'call' && partsOf(node).some(part => isMarked(part, mark)))
}

export function unmarked(node: Node, mark: 'degrees' | 'percent'): Node {
  if (node.type === mark) return unmarked(node.item, mark)
  return node.type === 'call' ? node : mapParts(node, part => unmarked(part, mark))
}

function compareRatios(a: NodeOf<'ratio'>, b: NodeOf<'ratio'>, judge: Judge): boolean {
  if (a.items.length !== b.items.length) return false
  const areTimes =
    a.kind === 'time' || b.kind === 'time' || (a.kind === 'time or ratio' && b.kind === 'time or ratio')
  if (areTimes) return haveEqualItems(a.items, b.items, judge)
  return a.items.every((item, i) =>
    isSameValue(productOf(item, b.items[0]!), productOf(b.items[i]!, a.items[0]!), judge),
  )
}

/** A unit may be left out. Two units must agree or measure the same thing. */
function compareUnits(a: Node, b: Node, judge: Judge): boolean {
  const { budget } = judge
  const wanted = b.type === 'quantity' ? readUnit(b.unit, budget) : undefined
  const given = a.type === 'quantity' ? readUnit(a.unit, budget, wanted?.words ?? []) : undefined
  const [left, right] = [a, b].map(node => (node.type === 'quantity' ? node.item : node)) as [Node, Node]
  const isClock = [given, wanted].some(unit => unit && ('am' in unit.dimensions || 'pm' in unit.dimensions))
  const [x, y] = isClock ? [hoursOf(left), hoursOf(right)] : [left, right]
  if (given && wanted) {
    if (isKnown(given) !== isKnown(wanted)) return false
    if (isKnown(given)) {
      if (!haveSameDimensions(given, wanted)) return false
      const times = (item: Node, { factor }: Unit): Node =>
        productOf(item, { type: 'number', value: factor, digits: 1 })
      return judge.isEqual(times(x, given), times(y, wanted))
    }
    const [some, all] = [given.words, wanted.words].toSorted((p, q) => p.length - q.length)
    return some!.every(word => all!.includes(word)) && judge.isEqual(x, y)
  }
  const [bare, unit] = given ? [y, given] : [x, wanted!]
  if (bare.type === 'percent' || bare.type === 'based') return false
  if (isMarked(bare, 'degrees')) {
    // 20° equals 20 °C; π/4 radians are 45°, but 40 radians are not 40°.
    const isTemperature = 'celsius' in unit.dimensions || 'fahrenheit' in unit.dimensions
    if (isTemperature)
      return given ? judge.isEqual(x, unmarked(y, 'degrees')) : judge.isEqual(unmarked(x, 'degrees'), y)
    return String(Object.keys(unit.dimensions)) === 'radian' && isSameValue(x, y, judge)
  }
  if (judge.isEqual(x, y)) return true
  // "17 m" without \text reads as 17 · m.
  const split = splitUnit(bare)
  if (!split || !isKnown(unit)) return false
  const quantity: Node = { type: 'quantity', item: split.item, unit: split.unit }
  return given ? compareUnits(a, quantity, judge) : compareUnits(quantity, b, judge)
}

/** 9:30 as hours. */
function hoursOf(node: Node): Node {
  if (node.type !== 'ratio') return node
  const items = node.items.map((item, i): Node => {
    const right: Node = { type: 'number', value: { numerator: 60n ** BigInt(i), denominator: 1n }, digits: 4 }
    return { type: 'quotient', left: item, right }
  })
  return { type: 'sum', items }
}

/** 17 · m, where the letters are a unit's. */
function splitUnit(node: Node): { item: Node; unit: string } | undefined {
  if (node.type !== 'product') return undefined
  const at = node.items.findIndex((item, i) => i > 0 && unitLetters(item) !== undefined)
  if (at < 0) return undefined
  const unit = node.items.slice(at).map(unitLetters)
  if (unit.includes(undefined)) return undefined
  const items = node.items.slice(0, at)
  return { item: items.length === 1 ? items[0]! : { type: 'product', items }, unit: unit.join('') }
}

function unitLetters(node: Node): string | undefined {
  if (node.type === 'variable') return node.name
  if (node.type !== 'power' || node.left.type !== 'variable' || node.right.type !== 'number') return undefined
  return `${node.left.name}^${node.right.value.numerator}`
}
