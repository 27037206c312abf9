/** Exact rational numbers of bounded size. */
import { type Budget, Unreadable } from './budget.js'

/** A fraction in lowest terms with a positive denominator. */
export interface Rational {
  readonly numerator: bigint
  readonly denominator: bigint
}

/** Larger results are refused; numbers with more digits are compared modulo a prime (evaluate.ts). */
const MAX_BITS = 4096

export class TooLarge extends Unreadable {
  constructor() {
    super('too large')
  }
}

export function rational(numerator: bigint, denominator = 1n): Rational {
  if (denominator === 0n) throw new Unreadable('a division by 0')
  if (denominator < 0n) return rational(-numerator, -denominator)
  if (denominator === 1n) return { numerator, denominator }
  const divisor = gcd(numerator < 0n ? -numerator : numerator, denominator)
  return { numerator: numerator / divisor, denominator: denominator / divisor }
}

function gcd(a: bigint, b: bigint): bigint {
  while (b) [a, b] = [b, a % b]
  return a
}

/** The number of binary digits of |n|; 0 for 0. */
export function bitLength(n: bigint): number {
  const magnitude = n < 0n ? -n : n
  if (magnitude < 0x100000000n) return 32 - Math.clz32(Number(magnitude))
  const hex = magnitude.toString(16)
  return 4 * hex.length - Math.clz32(Number.parseInt(hex[0]!, 16)) + 28
}

function sizeOf({ numerator, denominator }: Rational): number {
  return bitLength(numerator) + bitLength(denominator)
}

export function addRational(a: Rational, b: Rational, budget: Budget): Rational {
  charge(sizeOf(a) + sizeOf(b), budget)
  return rational(a.numerator * b.denominator + b.numerator * a.denominator, a.denominator * b.denominator)
}

export function multiplyRational(a: Rational, b: Rational, budget: Budget): Rational {
  charge(sizeOf(a) + sizeOf(b), budget)
  return rational(a.numerator * b.numerator, a.denominator * b.denominator)
}

export function invertRational({ numerator, denominator }: Rational): Rational {
  return rational(denominator, numerator)
}

export function powerRational(base: Rational, exponent: bigint, budget: Budget): Rational {
  if (exponent < 0n) return powerRational(invertRational(base), -exponent, budget)
  if (exponent === 0n) {
    if (base.numerator === 0n) throw new Unreadable('0 to the power of 0')
    return rational(1n)
  }
  if (base.denominator === 1n && base.numerator >= -1n && base.numerator <= 1n) {
    return exponent % 2n === 0n ? multiplyRational(base, base, budget) : base
  }
  if (exponent > BigInt(MAX_BITS)) throw new TooLarge()
  charge((sizeOf(base) - 1) * Number(exponent), budget)
  // Powers of coprime numbers are coprime, so that the fraction needs no reduction.
  return { numerator: base.numerator ** exponent, denominator: base.denominator ** exponent }
}

/** Refuses results beyond MAX_BITS: the time for a greatest common divisor grows with the square of the size. */
function charge(bits: number, budget: Budget): void {
  if (bits > MAX_BITS) throw new TooLarge()
  budget.spend(1 + (bits * bits) / 2 ** 14)
}
