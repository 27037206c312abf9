/**
 * Real and complex numbers with an error bound: mantissa · 2^exponent ± 2^error. Every operation computes the bound of its
 * result, so that two numbers whose difference excludes 0 are proved to differ.
 */

import { type Budget, Unreadable } from './budget.js'
import { bitLength, type Rational } from './rational.js'

export interface Ball {
  readonly mantissa: bigint
  readonly exponent: number
  /** log₂ of the error bound; −Infinity if the number is exact. */
  readonly error: number
}

export interface Complex {
  readonly re: Ball
  readonly im: Ball
}

const ZERO: Ball = { mantissa: 0n, exponent: 0, error: -Infinity }
/** If log₂ of a number exceeds this, a double does not hold it exactly enough. */
const MAX_LOG = 2 ** 40
/** Integer parts of larger numbers are not needed. */
const MAX_SHIFT = 20_000

/** log₂(2^a + 2^b + …). */
function sumErrors(...errors: number[]): number {
  const largest = Math.max(...errors)
  if (largest === -Infinity) return largest
  return largest + Math.log2(errors.reduce((sum, error) => sum + 2 ** (error - largest), 0))
}

/** log₂ of |mantissa · 2^exponent|, rounded up; −Infinity for 0. */
function logOf({ mantissa, exponent }: Ball): number {
  return mantissa === 0n ? -Infinity : bitLength(mantissa) + exponent
}

/** log₂ of the largest value in the ball, rounded up. */
export function logAbove(ball: Ball): number {
  return Math.max(logOf(ball), ball.error) + 1
}

export function containsZero(ball: Ball): boolean {
  return ball.mantissa === 0n || ball.error >= logOf(ball) - 1
}

/** log₂ of the smallest value in a ball that excludes 0, rounded down. */
function logBelow(ball: Ball): number {
  const log = logOf(ball) - 1
  return ball.error > log - 1
    ? log + Math.log2(1 - 2 ** Math.min(ball.error - log, -0.001))
    : log - (ball.error === -Infinity ? 0 : 1)
}

/** The largest integer ≤ the number; undefined if the bound leaves several. */
export function floorOfBall({ mantissa, exponent, error }: Ball): bigint | undefined {
  if (Math.abs(exponent) > MAX_SHIFT || error - exponent > MAX_SHIFT) return undefined
  const down = (n: bigint) => (exponent >= 0 ? n << BigInt(exponent) : n >> BigInt(-exponent))
  if (error === -Infinity) return down(mantissa)
  const spread = 1n << BigInt(Math.max(0, Math.ceil(error - exponent)))
  const [low, high] = [down(mantissa - spread), down(mantissa + spread)]
  return low === high ? low : undefined
}

/** Functions of balls, computed to `bits` binary digits. */
export class BallField {
  readonly bits: number
  /** Digits of fixed-point numbers inside functions. */
  readonly #working: number
  readonly #budget: Budget
  #pi: bigint | undefined
  #ln2: bigint | undefined

  constructor(bits: number, budget: Budget) {
    this.bits = bits
    this.#working = bits + 64
    this.#budget = budget
  }

  #round(mantissa: bigint, exponent: number, error: number): Ball {
    if (mantissa === 0n) return { mantissa, exponent: 0, error }
    const excess = bitLength(mantissa) - this.bits
    if (!(Math.abs(exponent) < MAX_LOG)) throw new Unreadable('too large')
    if (excess <= 0) return { mantissa, exponent, error }
    const shifted = exponent + excess
    return { mantissa: mantissa >> BigInt(excess), exponent: shifted, error: sumErrors(error, shifted) }
  }

  #spend(steps: number): void {
    this.#budget.spend(steps * (this.bits / 256))
  }

  fromRational({ numerator, denominator }: Rational): Ball {
    const top = this.#round(numerator, 0, -Infinity)
    return denominator === 1n ? top : this.divide(top, this.#round(denominator, 0, -Infinity))
  }

  integer(n: number): Ball {
    return { mantissa: BigInt(n), exponent: 0, error: -Infinity }
  }

  negate(a: Ball): Ball {
    return { ...a, mantissa: -a.mantissa }
  }

  add(a: Ball, b: Ball): Ball {
    this.#spend(1)
    if (a.mantissa === 0n) return { ...b, error: sumErrors(a.error, b.error) }
    if (b.mantissa === 0n) return { ...a, error: sumErrors(a.error, b.error) }
    const [high, low] = a.exponent >= b.exponent ? [a, b] : [b, a]
    const shift = high.exponent - low.exponent
    const error = sumErrors(a.error, b.error)
    if (shift > 2 * this.bits && logOf(low) < logOf(high) - 2 * this.bits) {
      return { ...high, error: sumErrors(error, logOf(low)) }
    }
    if (shift > 8 * this.bits) throw new Unreadable('too large')
    return this.#round((high.mantissa << BigInt(shift)) + low.mantissa, low.exponent, error)
  }

  subtract(a: Ball, b: Ball): Ball {
    return this.add(a, this.negate(b))
  }

  multiply(a: Ball, b: Ball): Ball {
    this.#spend(1)
    const error = sumErrors(logOf(a) + b.error, logOf(b) + a.error, a.error + b.error)
    return this.#round(a.mantissa * b.mantissa, a.exponent + b.exponent, error)
  }

  divide(a: Ball, b: Ball): Ball {
    this.#spend(2)
    if (b.mantissa === 0n && b.error === -Infinity) throw new Unreadable('a division by 0')
    if (containsZero(b)) throw new Unreadable('a division by what may be 0')
    const shift = this.bits + bitLength(b.mantissa)
    const exponent = a.exponent - shift - b.exponent
    const quotient: Ball = { mantissa: (a.mantissa << BigInt(shift)) / b.mantissa, exponent, error: exponent }
    const spread = b.error === -Infinity ? -Infinity : logAbove(quotient) + b.error
    const error = sumErrors(exponent, sumErrors(a.error, spread) - logBelow(b))
    return this.#round(quotient.mantissa, exponent, error)
  }

  /** The sign: −1, 0 or 1. 0 if the ball contains 0. */
  sign(a: Ball): number {
    if (containsZero(a)) return 0
    return a.mantissa < 0n ? -1 : 1
  }

  /** Square root of a number ≥ 0. A ball around 0 counts as such a number. */
  squareRoot(a: Ball): Ball {
    this.#spend(8)
    if (a.mantissa === 0n && a.error === -Infinity) return ZERO
    if (containsZero(a)) return { mantissa: 0n, exponent: 0, error: logAbove(a) / 2 + 1 }
    const wanted = 2 * this.bits - bitLength(a.mantissa)
    const shift = Math.max(0, wanted) + (Math.abs(a.exponent - Math.max(0, wanted)) % 2)
    const exponent = (a.exponent - shift) / 2
    const error = sumErrors(exponent, a.error - 1 - logBelow(a) / 2)
    return this.#round(integerSquareRoot(a.mantissa << BigInt(shift)), exponent, error)
  }

  /** The number in fixed point with #working digits after the point. */
  #fixed({ mantissa, exponent }: Ball): bigint {
    const shift = exponent + this.#working
    return shift >= 0 ? mantissa << BigInt(shift) : mantissa >> BigInt(-shift)
  }

  #fromFixed(value: bigint, error: number): Ball {
    return this.#round(value, -this.#working, error)
  }

  get pi(): Ball {
    return this.#fromFixed(this.#fixedPi(), -this.bits - 32)
  }

  /** Machin: π = 16 arctan 1/5 − 4 arctan 1/239. */
  #fixedPi(): bigint {
    if (this.#pi !== undefined) return this.#pi
    this.#spend(40)
    this.#pi = 16n * arctanOfInverse(5n, this.#working) - 4n * arctanOfInverse(239n, this.#working)
    return this.#pi
  }

  /** ln 2 = Σ 1 / (n 2^n), as 2 artanh 1/3. */
  #fixedLn2(): bigint {
    if (this.#ln2 !== undefined) return this.#ln2
    this.#spend(20)
    let [power, sum] = [(1n << BigInt(this.#working)) / 3n, 0n]
    for (let n = 1n; power > 0n; n += 2n, power /= 9n) sum += power / n
    this.#ln2 = 2n * sum
    return this.#ln2
  }

  exp(a: Ball): Ball {
    this.#spend(64)
    // The result is so small that it is 0 within the bound.
    if (logAbove(a) > 40) throw new Unreadable('too large')
    if (a.error > -2) throw new Unreadable('not known well enough')
    const extra = BigInt(Math.max(0, Math.ceil(logAbove(a))))
    // ln 2 is needed with as many more digits as the number has before the point.
    const one = BigInt(this.#working)
    const fine =
      extra === 0n ? this.#fixedLn2() : new BallField(this.bits + Number(extra), this.#budget).#fixedLn2()
    const x = this.#fixed(a)
    const k = (x << extra) / fine
    const remainder = x - ((k * fine) >> extra)
    const value = this.#expFixed(remainder, one)
    const exponent = Number(k) - this.#working
    const size = bitLength(value) + exponent
    return this.#round(value, exponent, sumErrors(size + a.error + 1, size - this.bits - 16))
  }

  /** e^x for |x| < 1: Taylor's series of x / 2^16, squared 16 times. */
  #expFixed(x: bigint, digits: bigint): bigint {
    const guard = 32n
    const places = digits + guard
    const small = (x << guard) >> 16n
    let term = 1n << places
    let sum = term
    for (let n = 1n; term !== 0n && term !== -1n; n++) {
      term = ((term * small) >> places) / n
      sum += term
    }
    for (let i = 0; i < 16; i++) sum = (sum * sum) >> places
    return sum >> guard
  }

  /** Natural logarithm of a number > 0. */
  log(a: Ball): Ball {
    this.#spend(160)
    if (containsZero(a)) throw new Unreadable('a logarithm of what may be 0')
    const one = 1n << BigInt(this.#working)
    const shift = logOf(a) - 1
    // y in [1, 2)
    const y = this.#fixed({ ...a, exponent: a.exponent - shift })
    let guess =
      BigInt(Math.round(Math.log(Number(y >> BigInt(this.#working - 52)) / 2 ** 52) * 2 ** 52)) <<
      BigInt(this.#working - 52)
    // Each round triples the number of right digits.
    for (let digits = 48; digits < this.#working; digits *= 3) {
      const power = this.#expFixed(guess, BigInt(this.#working))
      guess += 2n * (((y - power) * one) / (y + power))
    }
    const value = guess + BigInt(shift) * this.#fixedLn2()
    const rounding = Math.log2(Math.abs(shift) + 1) - this.bits - 40
    return this.#fromFixed(value, sumErrors(rounding, a.error - logBelow(a) + 1))
  }

  sinCos(a: Ball): { sin: Ball; cos: Ball } {
    this.#spend(128)
    if (a.mantissa === 0n && a.error === -Infinity) return { sin: ZERO, cos: this.integer(1) }
    const size = Math.max(0, Math.ceil(logAbove(a)))
    if (size > 256) throw new Unreadable('too large')
    // π is needed with as many more digits as the angle has before the point.
    const half =
      size <= 2 ? this.#fixedPi() / 2n : new BallField(this.bits + size, this.#budget).#fixedPi() / 2n
    const extra = BigInt(size <= 2 ? 0 : size)
    const x = this.#fixed(a) << extra
    const quarter = (2n * x + half) / (2n * half) - (2n * x + half < 0n ? 1n : 0n)
    const { sin, cos } = sinCosFixed((x - quarter * half) >> extra, this.#working)
    const turned = [
      [sin, cos],
      [cos, -sin],
      [-sin, -cos],
      [-cos, sin],
    ][Number(((quarter % 4n) + 4n) % 4n)] as [bigint, bigint]
    const error = sumErrors(a.error, -this.bits - 16)
    return { sin: this.#fromFixed(turned[0], error), cos: this.#fromFixed(turned[1], error) }
  }

  /** The angle of (x, y), in (−π, π]. */
  atan2(y: Ball, x: Ball): Ball {
    const [signX, signY] = [this.sign(x), this.sign(y)]
    if (signX === 0 && signY === 0) throw new Unreadable('the angle of what may be 0')
    // Uses the nearer axis, so that the quotient is at most about 1.
    if (logOf(y) <= logOf(x)) {
      const angle = this.#arctan(this.divide(y, x))
      // A point below the negative real axis by no more than the error counts as on the axis.
      if (signX > 0) return angle
      return signY < 0 ? this.subtract(angle, this.pi) : this.add(angle, this.pi)
    }
    const angle = this.#arctan(this.divide(x, y))
    const quarter = this.#halve(this.pi)
    return this.subtract(signY < 0 ? this.negate(quarter) : quarter, angle)
  }

  #halve(a: Ball): Ball {
    return { mantissa: a.mantissa, exponent: a.exponent - 1, error: a.error - 1 }
  }

  /** Newton's method on sin z − x cos z, which doubles the number of right digits. */
  #arctan(a: Ball): Ball {
    if (a.mantissa === 0n) return a
    this.#spend(600)
    // Tiny: the fixed point has no digits left for it, and arctan x = x to within x³.
    const log = logOf(a)
    if (log < -this.bits / 2) return { ...a, error: sumErrors(a.error, 3 * log) }
    const places = BigInt(this.#working)
    const x = this.#fixed(a)
    let z = BigInt(Math.round(Math.atan(Number(x >> (places - 52n)) / 2 ** 52) * 2 ** 52)) << (places - 52n)
    for (let digits = 48; digits < this.#working; digits *= 2) {
      const { sin, cos } = sinCosFixed(z, this.#working)
      z -= ((sin - ((x * cos) >> places)) << places) / (cos + ((x * sin) >> places))
    }
    return this.#fromFixed(z, sumErrors(a.error, -this.bits - 16))
  }
}

function arctanOfInverse(n: bigint, digits: number): bigint {
  let power = (1n << BigInt(digits + 16)) / n
  let sum = 0n
  for (let k = 1n, sign = 1n; power > 0n; k += 2n, sign = -sign, power /= n * n) sum += (sign * power) / k
  return sum >> 16n
}

/** Taylor's series for |x| < 2. */
function sinCosFixed(x: bigint, digits: number): { sin: bigint; cos: bigint } {
  const places = BigInt(digits)
  let term = 1n << places
  let [sin, cos] = [0n, 0n]
  for (let n = 0n; term !== 0n && term !== -1n; ) {
    if (n % 4n === 0n) cos += term
    else if (n % 4n === 1n) sin += term
    else if (n % 4n === 2n) cos -= term
    else sin -= term
    n++
    term = ((term * x) >> places) / n
  }
  return { sin, cos }
}

export function integerSquareRoot(n: bigint): bigint {
  if (n < 2n) return n
  let root = 1n << BigInt((bitLength(n) + 1) >> 1)
  for (;;) {
    const next = (root + n / root) >> 1n
    if (next >= root) return root
    root = next
  }
}
