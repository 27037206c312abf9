/** Elementary functions of complex balls. They take principal values, except that real roots of negative numbers are real. */
import { type Ball, BallField, type Complex, containsZero, logAbove } from './ball.js'
import { type Budget, Unreadable } from './budget.js'
import type { Rational } from './rational.js'

const ZERO: Ball = { mantissa: 0n, exponent: 0, error: -Infinity }

export class ComplexField {
  readonly real: BallField
  /**
   * log₂ of the smallest term that was added to anything. Values must be known to a smaller error than that to be
   * distinguished.
   */
  smallestAddend = 0

  constructor(bits: number, budget: Budget) {
    this.real = new BallField(bits, budget)
  }

  fromReal(re: Ball): Complex {
    return { re, im: ZERO }
  }

  fromRational(value: Rational): Complex {
    return this.fromReal(this.real.fromRational(value))
  }

  get i(): Complex {
    return { re: ZERO, im: this.real.integer(1) }
  }

  negate({ re, im }: Complex): Complex {
    return { re: this.real.negate(re), im: this.real.negate(im) }
  }

  add(a: Complex, b: Complex): Complex {
    for (const part of [a.re, a.im, b.re, b.im]) {
      if (!containsZero(part)) this.smallestAddend = Math.min(this.smallestAddend, logAbove(part))
    }
    return { re: this.real.add(a.re, b.re), im: isReal(a) && isReal(b) ? ZERO : this.real.add(a.im, b.im) }
  }

  multiply(a: Complex, b: Complex): Complex {
    const { real } = this
    if (isReal(a) && isReal(b)) return this.fromReal(real.multiply(a.re, b.re))
    return {
      re: real.subtract(real.multiply(a.re, b.re), real.multiply(a.im, b.im)),
      im: real.add(real.multiply(a.re, b.im), real.multiply(a.im, b.re)),
    }
  }

  invert(a: Complex): Complex {
    const { real } = this
    if (isReal(a)) return this.fromReal(real.divide(real.integer(1), a.re))
    const norm = this.#normSquared(a)
    return { re: real.divide(a.re, norm), im: real.negate(real.divide(a.im, norm)) }
  }

  #normSquared({ re, im }: Complex): Ball {
    return this.real.add(this.real.multiply(re, re), this.real.multiply(im, im))
  }

  abs(a: Complex): Complex {
    const { real } = this
    if (isReal(a)) return real.sign(a.re) < 0 ? this.negate(a) : a
    return this.fromReal(real.squareRoot(this.#normSquared(a)))
  }

  powerInteger(base: Complex, exponent: bigint): Complex {
    if (exponent < 0n) return this.invert(this.powerInteger(base, -exponent))
    let [result, square] = [this.fromReal(this.real.integer(1)), base]
    for (let n = exponent; n > 0n; n >>= 1n) {
      if (n & 1n) result = this.multiply(result, square)
      if (n > 1n) square = this.multiply(square, square)
    }
    return result
  }

  power(base: Complex, exponent: Complex): Complex {
    if (isReal(base) && base.re.mantissa === 0n && base.re.error === -Infinity) {
      if (this.real.sign(exponent.re) > 0) return base
      throw new Unreadable('0 to a power that is not above 0')
    }
    return this.exp(this.multiply(exponent, this.log(base)))
  }

  squareRoot(a: Complex): Complex {
    const { real } = this
    if (isNearlyReal(a)) {
      if (real.sign(a.re) >= 0) return this.fromReal(real.squareRoot(a.re))
      return { re: ZERO, im: real.squareRoot(real.negate(a.re)) }
    }
    const half = this.fromRational({ numerator: 1n, denominator: 2n })
    return this.power(a, half)
  }

  /** The n-th root. Of a negative number it is the real root if n is odd. */
  root(a: Complex, n: bigint): Complex {
    if (n === 2n) return this.squareRoot(a)
    if (n < 1n) throw new Unreadable('a root whose index is not above 0')
    if (isNearlyReal(a) && this.real.sign(a.re) < 0 && n % 2n === 1n) {
      return this.negate(this.root(this.negate(a), n))
    }
    if (isNearlyReal(a) && containsZero(a.re)) {
      if (a.re.mantissa === 0n && a.re.error === -Infinity) return a
      return this.fromReal({ mantissa: 0n, exponent: 0, error: logAbove(a.re) / Number(n) + 1 })
    }
    return this.power(a, this.fromRational({ numerator: 1n, denominator: n }))
  }

  exp({ re, im }: Complex): Complex {
    const { real } = this
    const size = real.exp(re)
    if (im.mantissa === 0n && im.error === -Infinity) return this.fromReal(size)
    const { sin, cos } = real.sinCos(im)
    return { re: real.multiply(size, cos), im: real.multiply(size, sin) }
  }

  log(a: Complex): Complex {
    const { real } = this
    if (isNearlyReal(a) && !containsZero(a.re)) {
      if (real.sign(a.re) > 0) return this.fromReal(real.log(a.re))
      return { re: real.log(real.negate(a.re)), im: real.pi }
    }
    const half: Ball = { mantissa: 1n, exponent: -1, error: -Infinity }
    return { re: real.multiply(half, real.log(this.#normSquared(a))), im: real.atan2(a.im, a.re) }
  }

  sinCos(a: Complex): { sin: Complex; cos: Complex } {
    const { real } = this
    if (isReal(a)) {
      const { sin, cos } = real.sinCos(a.re)
      return { sin: this.fromReal(sin), cos: this.fromReal(cos) }
    }
    const up = this.exp(this.multiply(this.i, a))
    const down = this.invert(up)
    const half = this.fromRational({ numerator: 1n, denominator: 2n })
    const turned = this.multiply(half, this.multiply(this.negate(this.i), this.add(up, this.negate(down))))
    return { sin: turned, cos: this.multiply(half, this.add(up, down)) }
  }

  arctan(a: Complex): Complex {
    if (!isNearlyReal(a)) throw new Unreadable('the arc tangent of a complex number')
    return this.fromReal(this.real.atan2(a.re, this.real.integer(1)))
  }

  arcsin(a: Complex): Complex {
    if (!isNearlyReal(a)) throw new Unreadable('the arc sine of a complex number')
    return this.fromReal(this.real.atan2(a.re, this.#cathetus(a.re)))
  }

  arccos(a: Complex): Complex {
    if (!isNearlyReal(a)) throw new Unreadable('the arc cosine of a complex number')
    return this.fromReal(this.real.atan2(this.#cathetus(a.re), a.re))
  }

  /** √(1 − x²). */
  #cathetus(x: Ball): Ball {
    const { real } = this
    const square = real.subtract(real.integer(1), real.multiply(x, x))
    if (real.sign(square) < 0) throw new Unreadable('an arc of what is not in [−1, 1]')
    return real.squareRoot(square)
  }
}

function isReal({ im }: Complex): boolean {
  return im.mantissa === 0n && im.error === -Infinity
}

/** Whether a number is real within a small error. Such a number counts as real on a branch cut. */
function isNearlyReal({ im }: Complex): boolean {
  return containsZero(im) && im.error < -40
}
