/** Compares two values, exactly or within a tolerance. */
import { attempt, type Judge } from './judge.js'
import { type Rational, rational } from './rational.js'
import {
  differenceOf,
  integer,
  type Node,
  type NodeOf,
  namesIn,
  negative,
  productOf,
  quotientOf,
  some,
} from './tree.js'
import { haveSameValue, order } from './value.js'

/** Least number of digits that a decimal must show. */
const MIN_DIGITS = 3

/** Throws Unreadable if it cannot be decided. */
export function isSameValue(a: Node, b: Node, judge: Judge): boolean {
  const { budget, tolerance } = judge
  if (haveSameValue(a, b, budget)) return true
  if (tolerance === undefined) return false
  // Whole numbers and fractions are exact; only decimals are rounded.
  if (![a, b].some(node => some(node, isDecimal)) || namesIn(a).size + namesIn(b).size > 0) return false
  if (tolerance === 'digits') return isRoundedTo(a, b, judge) || isRoundedTo(b, a, judge)
  const size = absolute(b)
  const share: Node = { type: 'number', value: shareOf(tolerance), digits: 1 }
  return attempt(() => isWithin(a, b, productOf(share, size), judge), budget)
}

function absolute(node: Node): Node {
  return { type: 'call', name: 'abs', items: [node] }
}

function isDecimal(node: Node): boolean {
  return node.type === 'number' && node.value.denominator !== 1n
}

function shareOf(tolerance: number) {
  const [digits = '0', exponent = '0'] = tolerance.toExponential(17).split('e')
  const mantissa = BigInt(digits.replace('.', ''))
  const scale = Number(exponent) - 17
  return scale < 0 ? rational(mantissa, 10n ** BigInt(-scale)) : rational(mantissa * 10n ** BigInt(scale))
}

/** |x − y| ≤ limit, of real numbers. */
function isWithin(x: Node, y: Node, limit: Node, { budget }: Judge): boolean {
  const difference = differenceOf(x, y)
  return order(difference, limit, budget) <= 0 && order(negative(limit), difference, budget) <= 0
}

/** Whether a decimal is another value, rounded or cut off to the digits that the decimal shows. */
function isRoundedTo(rounded: Node, value: Node, judge: Judge): boolean {
  if (!lastDigit(rounded) || !some(rounded, node => significantDigits(node) >= MIN_DIGITS)) return false
  return attempt(() => {
    const half = quotientOf(lastDigit(rounded)!, integer(2))
    const isCut = order(absolute(rounded), absolute(value), judge.budget) < 0
    return isNear(rounded, value, judge) && (isCut || isWithin(rounded, value, half, judge))
  }, judge.budget)
}

/** Of a decimal; 0 of anything else. */
function significantDigits(node: Node): number {
  const step = node.type === 'number' && isDecimal(node) ? stepOf(node) : undefined
  if (node.type !== 'number' || !step) return 0
  return String((node.value.numerator * step.denominator) / node.value.denominator).replace('-', '').length
}

/** Whether the number behind ≈ is near the value before it: by less than 1 in the last digit that it shows. */
export function isNear(rounded: Node, exact: Node, judge: Judge): boolean {
  const step = lastDigit(rounded)
  if (!step) return false
  const difference = differenceOf(rounded, exact)
  return order(difference, step, judge.budget) < 0 && order(negative(step), difference, judge.budget) < 0
}

/** The value of 1 in the last place of a decimal, also with a sign, a mark or factors behind it: 3.14 × 10^20, 2.1π. */
function lastDigit(node: Node): Node | undefined {
  if (node.type === 'number') {
    const value = stepOf(node)
    return value && { ...node, value }
  }
  if (node.type === 'minus') return lastDigit(node.item)
  if (node.type === 'percent' || node.type === 'degrees') {
    const item = lastDigit(node.item)
    return item && { type: node.type, item }
  }
  if (node.type !== 'product') return undefined
  const [first, ...rest] = node.items
  const step = lastDigit(first!)
  return step && productOf(step, ...rest)
}

/** undefined for 0.333…, which has no last place. */
function stepOf({ value, digits }: NodeOf<'number'>): Rational | undefined {
  let one = 1n
  while (one % value.denominator !== 0n) {
    one *= 10n
    if (one > 10n ** BigInt(digits)) return undefined
  }
  return rational(1n, one)
}
