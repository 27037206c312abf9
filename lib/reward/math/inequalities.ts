/** Solves inequalities in one unknown: a x² + b x + c, quotients and products of linear and quadratic factors, |…|. */

import { integerSquareRoot } from './ball.js'
import { type Budget, Unreadable } from './budget.js'
import { folded } from './evaluate.js'
import { unlessUnreadable } from './judge.js'
import {
  differenceOf,
  integer,
  isSameTree,
  type Node,
  type NodeOf,
  namesIn,
  negative,
  partsOf,
  productOf,
  quotientOf,
  type Relation,
  some,
  substitute,
  sumOf,
} from './tree.js'
import { haveSameValue, order, ratioSign } from './value.js'

/** The roots of a factor, in order, and its sign at +∞. */
interface Factor {
  readonly roots: readonly Node[]
  readonly sign: number
  /** Whether the factor is in the denominator: where it is 0 there is no value. */
  readonly isBelow: boolean
}

const MAX_ROOTS = 12

/** The subject of an inequality: a single name, also f(x) and |AB|, or the one name in it. */
export function unknownOf(node: NodeOf<'relation'>): Node | undefined {
  // 2 ≤ |z| ≤ 5 is about |z|.
  const middle = node.items.length === 3 ? node.items[1]! : undefined
  const inner = middle?.type === 'call' && middle.name === 'abs' ? middle.items[0]! : undefined
  if (inner?.type === 'variable' && /^(?:[zw]|[A-Z]{2})$/.test(inner.name)) return middle
  const names = [...new Set(node.items.flatMap(item => [...namesIn(item)]))]
  const called = calledNames(node)
  if (called.length === 1 && names.length <= 1) return called[0]
  return names.length === 1 && called.length === 0 ? { type: 'variable', name: names[0]! } : undefined
}

function calledNames(node: Node): Node[] {
  const found: Node[] = []
  some(node, part => {
    if (
      part.type === 'apply' &&
      !found.some(one => JSON.stringify(one, digits) === JSON.stringify(part, digits))
    )
      found.push(part)
    return false
  })
  return found
}

function digits(_: string, value: unknown) {
  return typeof value === 'bigint' ? String(value) : value
}

/** The set where left − right has a given sign: intervals between roots, as ends of sets.ts. Throws Unreadable. */
export function solve(
  left: Node,
  sign: Relation,
  right: Node,
  unknown: string,
  budget: Budget,
): { readonly roots: readonly { value: Node; isIn: boolean }[]; readonly areas: readonly boolean[] } {
  const factors = factorsOf(left, right, unknown, budget)
  const roots: { value: Node; isBelow: boolean }[] = []
  for (const { roots: own, isBelow } of factors) {
    for (const value of own) {
      const known = roots.find(root => order(root.value, value, budget) === 0)
      if (known) known.isBelow ||= isBelow
      else roots.push({ value, isBelow })
    }
  }
  if (roots.length > MAX_ROOTS) throw new Unreadable('an inequality with too many roots')
  roots.sort((x, y) => order(x.value, y.value, budget))
  const wants = (value: number) =>
    sign === '!=' ? value !== 0 : value === 0 ? sign.endsWith('=') : sign.startsWith('>') === value > 0
  // Goes from the right end to the left end. Each root changes the signs of the factors that have it.
  const areas: boolean[] = []
  for (let i = 0; i <= roots.length; i++) {
    const value = factors.reduce((product, factor) => {
      const behind = factor.roots.filter(
        root => i < roots.length && order(root, roots[i]!.value, budget) >= 0,
      ).length
      return product * factor.sign * (behind % 2 === 0 ? 1 : -1)
    }, 1)
    areas.push(wants(value))
  }
  return {
    roots: roots.map(({ value, isBelow }) => ({ value, isIn: !isBelow && wants(0) })),
    areas,
  }
}

/** left − right as factors of numerator and denominator. A product or quotient compared with 0 keeps its own factors. */
function factorsOf(left: Node, right: Node, unknown: string, budget: Budget): Factor[] {
  const isZero = (node: Node) => node.type === 'number' && node.value.numerator === 0n
  if (isZero(right)) return splitFactors(left, unknown, false, budget)
  if (isZero(left)) return splitFactors(negative(right), unknown, false, budget)
  const fractions = [left, right].map(node => overLine(node))
  if (fractions.every(({ below }) => !below))
    return [factorOf(differenceOf(left, right), unknown, false, budget)]
  const [a, b] = fractions as [Fraction, Fraction]
  const one = integer(1)
  const [belowA, belowB] = [a.below ?? one, b.below ?? one]
  const above = differenceOf(productOf(a.above, belowB), productOf(b.above, belowA))
  return [
    ...splitFactors(above, unknown, false, budget),
    ...splitFactors(belowA, unknown, true, budget),
    ...splitFactors(belowB, unknown, true, budget),
  ]
}

interface Fraction {
  readonly above: Node
  readonly below: Node | undefined
}

function overLine(node: Node): Fraction {
  if (node.type === 'quotient') return { above: node.left, below: node.right }
  if (node.type === 'minus') {
    const { above, below } = overLine(node.item)
    return { above: negative(above), below }
  }
  return { above: node, below: undefined }
}

function splitFactors(node: Node, unknown: string, isBelow: boolean, budget: Budget): Factor[] {
  budget.spend(5)
  const split = (part: Node, below = isBelow) => splitFactors(part, unknown, below, budget)
  switch (node.type) {
    case 'minus':
      return [{ roots: [], sign: -1, isBelow }, ...split(node.item)]
    case 'product':
      return node.items.flatMap(item => split(item))
    case 'quotient':
      return [...split(node.left), ...split(node.right, true)]
    case 'power': {
      const { right } = node
      if (right.type !== 'number' || right.value.denominator !== 1n || right.value.numerator > 9n) break
      const factor = split(node.left)
      return Array.from({ length: Number(right.value.numerator) }, () => factor).flat()
    }
  }
  return [factorOf(node, unknown, isBelow, budget)]
}

/** A polynomial of degree 2 at most, by its values at 0, 1 and −1. */
function factorOf(node: Node, unknown: string, isBelow: boolean, budget: Budget): Factor {
  const signOf = (value: Node) => order(value, integer(0), budget)
  const at = (value: Node) => folded(substitute(node, unknown, value), budget)
  const x: Node = { type: 'variable', name: unknown }
  const c = at(integer(0))
  const [up, down] = [at(integer(1)), at(integer(-1))]
  const half = (value: Node) => quotientOf(value, integer(2))
  const a = folded(differenceOf(half(sumOf(up, down)), c), budget)
  const b = folded(half(differenceOf(up, down)), budget)
  const square: Node = { type: 'power', left: x, right: integer(2) }
  if (!haveSameValue(node, sumOf(productOf(a, square), productOf(b, x), c), budget))
    throw new Unreadable('an inequality that is not solved')
  const [signA, signB] = [signOf(a), signOf(b)]
  if (signA === 0) {
    if (signB === 0) {
      if (signOf(c) === 0) throw new Unreadable('an inequality of 0')
      return { roots: [], sign: signOf(c), isBelow }
    }
    return { roots: [folded(negative(quotientOf(c, b)), budget)], sign: signB, isBelow }
  }
  const discriminant = folded(differenceOf(productOf(b, b), productOf(integer(4), a, c)), budget)
  const kind = signOf(discriminant)
  if (kind < 0) return { roots: [], sign: signA, isBelow }
  const root = rootOf(discriminant)
  const end = (side: Node) => folded(quotientOf(sumOf(negative(b), side), productOf(integer(2), a)), budget)
  const roots = [end(root), end(negative(root))]
  return { roots: kind === 0 ? [roots[0]!, roots[0]!] : roots, sign: signA, isBelow }
}

/** If the expression is a square, the base. */
function rootOf(node: Node): Node {
  if (node.type === 'number') {
    const { numerator, denominator } = node.value
    const [top, bottom] = [integerSquareRoot(numerator), integerSquareRoot(denominator)]
    if (top * top === numerator && bottom * bottom === denominator)
      return quotientOf(integer(top), integer(bottom))
  }
  return { type: 'call', name: 'sqrt', items: [node] }
}

/** |f| < c as −c < f < c; |f| > c as f < −c or f > c. */
export function absoluteOf(left: Node, sign: Relation, right: Node, budget: Budget) {
  if (left.type !== 'call' || left.name !== 'abs' || namesIn(right).size > 0) return undefined
  const isPositive = unlessUnreadable(() => order(right, integer(0), budget) > 0, budget)
  return isPositive ? { inner: left.items[0]!, limit: right, isInside: sign.startsWith('<') } : undefined
}

/** Whether two inequalities are the same side by side, or differ by a positive factor. */
export function haveSameSides(a: NodeOf<'relation'>, b: NodeOf<'relation'>, budget: Budget): boolean {
  const [x, y] = [upward(a), upward(b)]
  if (String(x.signs) !== String(y.signs) || x.items.length !== y.items.length) return false
  const isSame = (left: Node, right: Node) =>
    isSameTree(left, right, budget) ||
    unlessUnreadable(() => haveSameValue(left, right, budget), budget) === true
  if (x.items.every((item, i) => isSame(item, y.items[i]!))) return true
  if (x.items.length !== 2 || ![...x.items, ...y.items].every(isPolynomial)) return false
  const [f, g] = [x, y].map(({ items }) => differenceOf(items[0]!, items[1]!)) as [Node, Node]
  return unlessUnreadable(() => ratioSign(f, g, budget) > 0, budget) === true
}

/** Whether no name stands in a denominator or in a function, so that a ratio at some points holds everywhere. */
function isPolynomial(node: Node): boolean {
  if (node.type === 'quotient') return isPolynomial(node.left) && namesIn(node.right).size === 0
  if (node.type === 'power') return isPolynomial(node.left) && node.right.type === 'number'
  if (node.type === 'call') return namesIn(node).size === 0
  return partsOf(node).every(isPolynomial)
}

/** a > b as b < a. */
function upward({ signs, items }: NodeOf<'relation'>): Pick<NodeOf<'relation'>, 'signs' | 'items'> {
  if (!signs.every(sign => sign.startsWith('>'))) return { signs, items }
  return { signs: signs.map(sign => (sign === '>' ? '<' : '<=')).reverse(), items: items.toReversed() }
}
