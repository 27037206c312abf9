/** Decides whether two expressions have the same value for all values of their variables. */
import type { Ball, Complex } from './ball.js'
import { BallField, containsZero, floorOfBall, logAbove } from './ball.js'
import { type Budget, Unreadable } from './budget.js'
import { ComplexField } from './complex.js'
import {
  ballField,
  evaluate,
  exactValue,
  type Modular,
  modularField,
  modulo,
  points,
  Unsupported,
} from './evaluate.js'
import { unlessUnreadable } from './judge.js'
import { TooLarge } from './rational.js'
import { isSameTree, LOG, mapParts, type Node, namesIn, partsOf, renamed, some } from './tree.js'

/** Precisions of balls in bits, tried in turn until one decides. */
const PRECISIONS = [320, 1280, 4096]
/**
 * Two values whose difference may be 0 are equal if the difference is known to be less than 2^−CLOSE of them and of every part
 * that was added up.
 */
const CLOSE = 100

/** Throws Unreadable if it cannot be decided. */
export function haveSameValue(a: Node, b: Node, budget: Budget): boolean {
  const [x, y] = withNames([a, b], budget) as [Node, Node]
  const isSame = compare(x, y, budget)
  if (isSame || ![x, y].some(node => some(node, isLog))) return isSame
  return compare(withBase10(x), withBase10(y), budget)
}

function isLog(node: Node): boolean {
  return node.type === 'call' && node.name === LOG
}

function withBase10(node: Node): Node {
  const changed = mapParts(node, withBase10)
  if (changed.type !== 'call' || changed.name !== LOG) return changed
  const ten: Node = { type: 'number', value: { numerator: 10n, denominator: 1n }, digits: 2 }
  return { type: 'call', name: 'log', items: [changed.items[0]!, ten] }
}

function compare(a: Node, b: Node, budget: Budget): boolean {
  if (isSameTree(a, b, budget)) return true
  return exactly(a, b, budget) ?? modularly(a, b, budget) ?? numerically(a, b, budget)
}

function exactly(a: Node, b: Node, budget: Budget): boolean | undefined {
  try {
    const [x, y] = [exactValue(a, budget), exactValue(b, budget)]
    if (!x || !y) return undefined
    return x.numerator === y.numerator && x.denominator === y.denominator
  } catch (error) {
    if (error instanceof TooLarge) return undefined
    throw error
  }
}

function modularly(a: Node, b: Node, budget: Budget): boolean | undefined {
  return unlessUnsupported(() => {
    const field = modularField(budget, 0)
    const [x, y] = [evaluate(a, field), evaluate(b, field)]
    return modulo(x.top * y.bottom) === modulo(y.top * x.bottom)
  })
}

function unlessUnsupported<T>(body: () => T): T | undefined {
  try {
    return body()
  } catch (error) {
    if (error instanceof Unsupported) return undefined
    throw error
  }
}

function numerically(a: Node, b: Node, budget: Budget): boolean {
  const hasVariables = [a, b].some(node => some(node, part => part.type === 'variable'))
  const isComplex = [a, b].some(node => some(node, part => part.type === 'constant' && part.name === 'i'))
  let decided = 0
  let fault: Unreadable | undefined
  for (const [index, { isPositive }] of points.entries()) {
    if (index > 0 && !hasVariables) break
    try {
      const isSame = compareAt(a, b, index, budget, isPositive || isComplex)
      if (isSame === false) return false
      if (isSame) decided++
    } catch (error) {
      // A function is not defined here, perhaps only at this point.
      if (!(error instanceof Unreadable) || !hasVariables) throw error
      budget.spend(0)
      fault = error
    }
  }
  if (decided < (hasVariables ? 2 : 1)) throw fault ?? new Unreadable('values that cannot be told apart')
  return true
}

/** undefined if both values are complex at a point at which only real values count. */
function compareAt(
  a: Node,
  b: Node,
  point: number,
  budget: Budget,
  isComplexFine: boolean,
): boolean | undefined {
  const close = CLOSE + 4 * Math.max(digitsOf(a), digitsOf(b))
  for (const bits of PRECISIONS) {
    if (bits < close + 64) continue
    const complex = new ComplexField(bits, budget)
    const field = ballField(complex, budget, point)
    const [x, y] = [evaluate(a, field), evaluate(b, field)]
    if (!isComplexFine && !(containsZero(x.im) && containsZero(y.im))) return undefined
    const verdict = compareBalls(x, y, complex.smallestAddend - close, complex.real)
    if (verdict !== undefined) return verdict
  }
  throw new Unreadable('values that cannot be told apart')
}

function compareBalls(x: Complex, y: Complex, limit: number, real: BallField): boolean | undefined {
  const differences = [real.subtract(x.re, y.re), real.subtract(x.im, y.im)]
  if (differences.some(difference => !containsZero(difference))) return false
  const sizes = [x.re, x.im, y.re, y.im].filter(part => !containsZero(part)).map(logAbove)
  const size = sizes.length > 0 ? Math.max(...sizes) : 0
  const error = Math.max(...differences.map(({ error }) => error))
  return error <= Math.min(0, size) + limit ? true : undefined
}

/** The largest number of digits with which a number in the expression is written. */
function digitsOf(node: Node): number {
  let digits = 0
  some(node, part => {
    if (part.type === 'number') digits = Math.max(digits, part.digits)
    return false
  })
  return Math.min(digits, 900)
}

/** −1, 0, 1: the order of two real numbers without variables. Throws Unreadable. */
export function order(a: Node, b: Node, budget: Budget): number {
  budget.spend(10)
  if (haveSameValue(a, b, budget)) return 0
  for (const bits of PRECISIONS) {
    const complex = new ComplexField(bits, budget)
    const field = ballField(complex, budget, 0)
    const [x, y] = [evaluate(a, field), evaluate(b, field)]
    if (!containsZero(x.im) || !containsZero(y.im)) throw new Unreadable('complex numbers have no order')
    const { real } = complex
    const difference: Ball = real.subtract(x.re, y.re)
    if (!containsZero(difference)) return real.sign(difference)
  }
  throw new Unreadable('values that cannot be told apart')
}

/** The largest integer ≤ a real number. Throws Unreadable. */
export function floorOf(node: Node, budget: Budget): bigint {
  const exact = exactValue(node, budget)
  if (exact) {
    const { numerator, denominator } = exact
    return numerator / denominator - (numerator < 0n && numerator % denominator !== 0n ? 1n : 0n)
  }
  const complex = new ComplexField(PRECISIONS[0]!, budget)
  const { re, im } = evaluate(node, ballField(complex, budget, 0))
  const floor = containsZero(im) ? floorOfBall(re) : undefined
  if (floor === undefined) throw new Unreadable('an integer part that is not known')
  return floor
}

/**
 * Whether two equations f = 0 and g = 0 are the same apart from a constant factor. Not if one of them holds, or fails, for all
 * values: every identity would equal every other.
 */
export function areProportional(first: Node, second: Node, budget: Budget): boolean {
  return ratioSign(first, second, budget) !== 0
}

/** The sign of the constant f / g; 0 if the ratio is not constant, or if one of them is 0 or has no variables. */
export function ratioSign(first: Node, second: Node, budget: Budget): number {
  const [f, g] = withNames([first, second], budget) as [Node, Node]
  const names = namesIn(f)
  if (names.size === 0 || String([...names].sort()) !== String([...namesIn(g)].sort())) return 0
  const modular = unlessUnsupported(() => {
    const values = [0, 1, 2].map(point => {
      const field = modularField(budget, point)
      return [evaluate(f, field), evaluate(g, field)] as [Modular, Modular]
    })
    const [x, y] = values[0]!
    if (x.top === 0n || y.top === 0n) return false
    if (values.every(([p]) => modulo(p.top * x.bottom) === modulo(x.top * p.bottom))) return false
    // Compares numerators, so that y = 1/x is xy = 1.
    return values.slice(1).every(([p, q]) => modulo(x.top * q.top) === modulo(y.top * p.top))
  })
  if (modular === false) return 0
  const real = new BallField(320, budget)
  const ratios = [0, 1, 2].map(point => {
    const field = ballField(new ComplexField(320, budget), budget, point)
    const [x, y] = [evaluate(f, field), evaluate(g, field)]
    if (![x, y].every(({ im }) => containsZero(im))) throw new Unreadable('complex equations')
    return [x.re, y.re] as const
  })
  const [x, y] = ratios[0]!
  if (containsZero(x) || containsZero(y)) throw new Unreadable('equations that cannot be compared')
  if (!modular && ratios.every(([p]) => containsZero(real.subtract(p, x)))) return 0
  const isConstant =
    modular ||
    ratios.every(([p, q]) => {
      const difference = real.subtract(real.multiply(x, q), real.multiply(y, p))
      return containsZero(difference) && difference.error < -CLOSE
    })
  return isConstant ? real.sign(x) * real.sign(y) : 0
}

/** Functions that have no value if a variable is among their arguments. */
const nameless = new Set(
  'gcd lcm max min mod floor ceil det determinant arg Re Im norm permutations'
    .split(' ')
    .concat('double factorial'),
)

function hasNoValue(node: Node): boolean {
  if (node.type === 'apply' || node.type === 'bound') return true
  if (node.type !== 'call') return false
  const hasNames = (part?: Node) => part !== undefined && some(part, ({ type }) => type === 'variable')
  if (node.name === 'factorial') return hasNames(node.items[0])
  if (node.name === 'binomial') return hasNames(node.items[1])
  return nameless.has(node.name) && node.items.some(hasNames)
}

/** Replaces an expression without a value (f(x), a sum to n) by a name that equal expressions share. */
function withNames(nodes: readonly Node[], budget: Budget): readonly Node[] {
  if (!nodes.some(node => some(node, hasNoValue))) return nodes
  const known: { readonly node: Node; readonly name: Node }[] = []
  const named = (node: Node): Node => {
    budget.spend(1)
    // Inner expressions first, so that f(g(1 + 1)) equals f(g(2)).
    const changed = mapParts(node.type === 'bound' ? renamed(node) : node, named)
    if (!hasNoValue(changed)) return changed
    const same = known.find(one => isSameUnvalued(one.node, changed, budget))
    if (same) return same.name
    const name: Node = { type: 'variable', name: `unvalued ${known.length}` }
    known.push({ node: changed, name })
    return name
  }
  return nodes.map(named)
}

function isSameUnvalued(a: Node, b: Node, budget: Budget): boolean {
  const [left, right] = [partsOf(a), partsOf(b)]
  const sign = (node: Node) =>
    `${node.type} ${'name' in node ? node.name : ''} ${node.type === 'bound' ? `${node.kind} ${node.variable}` : ''}`
  if (sign(a) !== sign(b) || left.length !== right.length) return false
  return left.every((part, i) => {
    if (isSameTree(part, right[i]!, budget)) return true
    return unlessUnreadable(() => compare(part, right[i]!, budget), budget) === true
  })
}
