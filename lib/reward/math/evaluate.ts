/** The value of an expression in a field: exact rationals, fractions modulo a prime, or complex balls. */
import { createHash } from 'node:crypto'
import type { Complex } from './ball.js'
import { type Budget, Unreadable } from './budget.js'
import type { ComplexField } from './complex.js'
import { unlessUnreadable } from './judge.js'
import {
  addRational,
  invertRational,
  multiplyRational,
  powerRational,
  type Rational,
  rational,
} from './rational.js'
import { LOG, type Node, type NodeOf } from './tree.js'

/** The operations that evaluate() needs. A field without roots or functions leaves them out. */
interface Field<T> {
  readonly budget: Budget
  number(value: Rational): T
  constant(name: NodeOf<'constant'>['name']): T
  variable(name: string): T
  add(a: T, b: T): T
  multiply(a: T, b: T): T
  negate(a: T): T
  invert(a: T): T
  powerInteger(base: T, exponent: bigint): T
  root?(a: T, index: bigint): T
  power?(base: T, exponent: T): T
  call?(name: string, items: readonly T[]): T
}

/** The field lacks an operation of the expression; another field may have it. */
export class Unsupported extends Unreadable {
  constructor(what: string) {
    super(`${what} has no value that can be compared`)
  }
}

const HUNDREDTH = rational(1n, 100n)
/** Largest argument of a factorial or binomial coefficient. */
const MAX_FACTORS = 2000n

export function evaluate<T>(node: Node, field: Field<T>): T {
  field.budget.spend(1)
  const value = (part: Node) => evaluate(part, field)
  switch (node.type) {
    case 'number':
      return field.number(node.value)
    case 'constant':
      return field.constant(node.name)
    case 'variable':
      return field.variable(node.name)
    case 'sum':
      return node.items.map(value).reduce((a, b) => field.add(a, b))
    case 'product':
      return node.items.map(value).reduce((a, b) => field.multiply(a, b))
    case 'quotient':
      return field.multiply(value(node.left), field.invert(value(node.right)))
    case 'minus':
      return field.negate(value(node.item))
    case 'percent':
      return field.multiply(value(node.item), field.number(HUNDREDTH))
    case 'degrees':
      return field.multiply(
        field.multiply(value(node.item), field.constant('pi')),
        field.number(rational(1n, 180n)),
      )
    case 'based':
      return field.number(valueOfDigits(node))
    case 'ratio':
      if (node.kind === 'time') throw new Unreadable('a time is no ratio')
      if (node.items.length !== 2) throw new Unreadable('a ratio of more than two')
      return field.multiply(value(node.items[0]!), field.invert(value(node.items[1]!)))
    case 'power':
      return evaluatePower(node, field)
    case 'call':
      return evaluateCall(node, field)
    default:
      throw new Unreadable(`${node.type === 'brackets' ? 'a tuple or set' : `a ${node.type}`} is no number`)
  }
}

function evaluatePower<T>({ left, right }: NodeOf<'power'>, field: Field<T>): T {
  const exponent = exactValue(right, field.budget)
  if (exponent?.denominator === 1n) return field.powerInteger(evaluate(left, field), exponent.numerator)
  if (exponent && field.root) {
    const root = field.root(evaluate(left, field), exponent.denominator)
    return field.powerInteger(root, exponent.numerator)
  }
  if (field.call && left.type === 'constant' && left.name === 'e') {
    return field.call('exp', [evaluate(right, field)])
  }
  if (!field.power) throw new Unsupported('a power')
  return field.power(evaluate(left, field), evaluate(right, field))
}

function evaluateCall<T>({ name, items }: NodeOf<'call'>, field: Field<T>): T {
  const factor = (n: bigint) => field.number(rational(n))
  if (name === 'factorial') {
    const n = wholeNumber(items[0]!, field.budget)
    let product = factor(1n)
    for (let k = 2n; k <= n; k++) product = field.multiply(product, factor(k))
    return product
  }
  if (name === 'binomial') {
    const [top, below] = [evaluate(items[0]!, field), wholeNumber(items[1]!, field.budget)]
    let product = factor(1n)
    for (let k = 0n; k < below; k++) {
      product = field.multiply(product, field.add(top, factor(-k)))
      product = field.multiply(product, field.invert(factor(k + 1n)))
    }
    return product
  }
  const index = name === 'sqrt' && items[1] ? exactValue(items[1], field.budget) : undefined
  if (name === 'sqrt' && field.root && (!items[1] || index?.denominator === 1n)) {
    return field.root(evaluate(items[0]!, field), index ? index.numerator : 2n)
  }
  if (!field.call) throw new Unsupported(name)
  return field.call(
    name,
    items.map(item => evaluate(item, field)),
  )
}

function wholeNumber(node: Node, budget: Budget): bigint {
  const value = exactValue(node, budget)
  if (value?.denominator !== 1n || value.numerator < 0n || value.numerator > MAX_FACTORS) {
    throw new Unsupported('a factorial')
  }
  return value.numerator
}

function valueOfDigits({ digits, places, base }: NodeOf<'based'>): Rational {
  let value = 0n
  for (const digit of digits) value = value * BigInt(base) + BigInt(Number.parseInt(digit, 36))
  return rational(value, BigInt(base) ** BigInt(places))
}

/** The exact value of a number without roots and functions; undefined for anything else. Throws TooLarge, Unreadable. */
export function exactValue(node: Node, budget: Budget): Rational | undefined {
  try {
    return evaluate(node, exactField(budget))
  } catch (error) {
    if (error instanceof Unsupported) return undefined
    throw error
  }
}

/** Replaces an expression by its rational value, if it has one. Otherwise expressions made of it would grow and grow. */
export function folded(node: Node, budget: Budget): Node {
  const value = unlessUnreadable(() => exactValue(node, budget), budget)
  return value ? { type: 'number', value, digits: 1 } : node
}

function exactField(budget: Budget): Field<Rational> {
  const none = (name: string): never => {
    throw new Unsupported(name)
  }
  return {
    budget,
    number: value => value,
    constant: none,
    variable: none,
    add: (a, b) => addRational(a, b, budget),
    multiply: (a, b) => multiplyRational(a, b, budget),
    negate: ({ numerator, denominator }) => ({ numerator: -numerator, denominator }),
    invert: invertRational,
    powerInteger: (base, exponent) => powerRational(base, exponent, budget),
    call(name, items) {
      const { numerator, denominator } = items[0]!
      if (name === 'abs') return { numerator: numerator < 0n ? -numerator : numerator, denominator }
      if (name === 'floor' || name === 'ceil') {
        const down = numerator / denominator - (numerator < 0n && numerator % denominator !== 0n ? 1n : 0n)
        return rational(name === 'floor' || denominator === 1n ? down : down + 1n)
      }
      return none(name)
    },
  }
}

/** A fraction modulo PRIME, not reduced: its numerator is 0 exactly if the numerator of the expression is 0. */
export interface Modular {
  readonly top: bigint
  readonly bottom: bigint
}

/** A prime of the form 4k + 1, modulo which −1 has a square root. */
const PRIME = 2n ** 255n - 19n
const ROOT_OF_MINUS_ONE = powerModulo(2n, (PRIME - 1n) / 4n)

export function modulo(n: bigint): bigint {
  const rest = n % PRIME
  return rest < 0n ? rest + PRIME : rest
}

function powerModulo(base: bigint, exponent: bigint): bigint {
  let [result, square] = [1n, base]
  for (let n = exponent; n > 0n; n >>= 1n, square = modulo(square * square)) {
    if (n & 1n) result = modulo(result * square)
  }
  return result
}

/**
 * The point at which rational functions are compared. Two of them that agree at a random point modulo a large prime are equal
 * (Schwartz, Zippel), however large their numbers are. π and e are transcendental, so that they may be unknowns like the
 * variables.
 */
export function modularField(budget: Budget, point: number): Field<Modular> {
  const at = (name: string): Modular => {
    budget.spend(4)
    return { top: modulo(BigInt(`0x${hash(name, point)}`)), bottom: 1n }
  }
  return {
    budget,
    number: ({ numerator, denominator }) => ({ top: modulo(numerator), bottom: modulo(denominator) }),
    constant(name) {
      if (name === 'i') return { top: ROOT_OF_MINUS_ONE, bottom: 1n }
      if (name === 'pi' || name === 'e') return at(`\\${name}`)
      throw new Unreadable(`${name} is no number`)
    },
    variable: at,
    add: (a, b) =>
      a.bottom === b.bottom
        ? { top: modulo(a.top + b.top), bottom: a.bottom }
        : { top: modulo(a.top * b.bottom + b.top * a.bottom), bottom: modulo(a.bottom * b.bottom) },
    multiply: (a, b) => ({ top: modulo(a.top * b.top), bottom: modulo(a.bottom * b.bottom) }),
    negate: a => ({ ...a, top: modulo(-a.top) }),
    invert({ top, bottom }) {
      if (top === 0n) throw new Unreadable('a division by 0')
      return { top: bottom, bottom: top }
    },
    powerInteger(base, exponent) {
      if (base.top === 0n && exponent <= 0n) throw new Unreadable('0 to a power that is not above 0')
      budget.spend(200)
      const size = exponent < 0n ? -exponent : exponent
      // By Fermat's little theorem exponents can be reduced modulo PRIME − 1.
      const reduced = size > PRIME ? size % (PRIME - 1n) : size
      const top = base.top === 0n ? 0n : powerModulo(base.top, reduced)
      const bottom = powerModulo(base.bottom, reduced)
      return exponent < 0n ? { top: bottom, bottom: top } : { top, bottom }
    },
  }
}

function hash(name: string, point: number): string {
  return createHash('sha256').update(`${point} ${name}`).digest('hex')
}

/**
 * Values of the variables: of either sign, in (1, 3) and in (0, 1). Roots and logarithms are compared at positive values first.
 */
export const points = [
  { from: 1, width: 2, isPositive: true },
  { from: 1, width: 2, isPositive: true },
  { from: 0, width: 1, isPositive: true },
  { from: 1, width: 2, isPositive: false },
  { from: 0, width: 1, isPositive: false },
] as const

/** Complex balls, variables at one of the points. */
export function ballField(field: ComplexField, budget: Budget, point: number): Field<Complex> {
  const { from, width, isPositive } = points[point]!
  return {
    budget,
    number: value => field.fromRational(value),
    constant(name) {
      if (name === 'pi') return field.fromReal(field.real.pi)
      if (name === 'e') return field.fromReal(field.real.exp(field.real.integer(1)))
      if (name === 'i') return field.i
      throw new Unreadable(`${name} is no number`)
    },
    variable(name) {
      const fraction = BigInt(`0x${hash(name, point).slice(0, 12)}`)
      const mantissa = (BigInt(from) << 48n) + BigInt(width) * fraction
      return field.fromReal({ mantissa: isPositive ? mantissa : -mantissa, exponent: -48, error: -Infinity })
    },
    add: (a, b) => field.add(a, b),
    multiply: (a, b) => field.multiply(a, b),
    negate: a => field.negate(a),
    invert: a => field.invert(a),
    powerInteger: (base, exponent) => field.powerInteger(base, exponent),
    root: (a, index) => field.root(a, index),
    power: (base, exponent) => field.power(base, exponent),
    call: (name, items) => callFunction(field, name, items),
  }
}

function callFunction(field: ComplexField, name: string, items: readonly Complex[]): Complex {
  const [x, y] = items as [Complex, Complex?]
  const quotient = (a: Complex, b: Complex) => field.multiply(a, field.invert(b))
  const one = field.fromReal(field.real.integer(1))
  const half = (a: Complex) => quotient(a, field.fromReal(field.real.integer(2)))
  switch (name) {
    case 'sin':
    case 'cos':
      return field.sinCos(x)[name]
    case 'tan':
    case 'cot': {
      const { sin, cos } = field.sinCos(x)
      return name === 'tan' ? quotient(sin, cos) : quotient(cos, sin)
    }
    case 'sec':
      return field.invert(field.sinCos(x).cos)
    case 'csc':
      return field.invert(field.sinCos(x).sin)
    case 'arctan':
      return field.arctan(x)
    case 'arcsin':
      return field.arcsin(x)
    case 'arccos':
      return field.arccos(x)
    case 'arccot':
      return field.arctan(field.invert(x))
    case 'sinh':
      return half(field.add(field.exp(x), field.negate(field.exp(field.negate(x)))))
    case 'cosh':
      return half(field.add(field.exp(x), field.exp(field.negate(x))))
    case 'tanh': {
      const square = field.exp(field.add(x, x))
      return quotient(field.add(square, field.negate(one)), field.add(square, one))
    }
    case 'exp':
      return field.exp(x)
    case 'cis':
      return field.exp(field.multiply(field.i, x))
    case 'log':
      return y ? quotient(field.log(x), field.log(y)) : field.log(x)
    case LOG:
      return field.log(x)
    case 'abs':
      return field.abs(x)
    case 'sqrt':
      return field.power(x, field.invert(y ?? field.add(one, one)))
    case 'conjugate':
      return { re: x.re, im: field.real.negate(x.im) }
    default:
      throw new Unsupported(name)
  }
}
