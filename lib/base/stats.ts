/** Moments, and the estimate of pass@k. */
import { RapoError } from './errors.js'

/** Mean and standard deviation. The denominator is count − correction. */
export function moments(values: readonly number[], correction = 0): { mean: number; std: number } {
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length
  const squares = values.reduce((sum, value) => sum + (value - mean) ** 2, 0)
  return { mean, std: Math.sqrt(squares / Math.max(1, values.length - correction)) }
}

/**
 * The mean of independent values, such as one result a seed, with its standard error and its 95 % interval by Student's t.
 * Fewer than two values have neither: NaN.
 */
export function meanInterval(values: readonly number[]): {
  mean: number
  standardError: number
  low: number
  high: number
} {
  const { mean, std } = moments(values, 1)
  if (values.length < 2) return { mean, standardError: Number.NaN, low: Number.NaN, high: Number.NaN }
  const standardError = std / Math.sqrt(values.length)
  const reach = studentQuantile(0.975, values.length - 1) * standardError
  return { mean, standardError, low: mean - reach, high: mean + reach }
}

/** The value that Student's t with so many degrees of freedom stays below with the given probability, in [0.5, 1). */
export function studentQuantile(probability: number, degrees: number): number {
  let [low, high] = [0, 1]
  while (studentCdf(high, degrees) < probability) high *= 2
  for (let i = 0; i < 60; i++) {
    const middle = (low + high) / 2
    if (studentCdf(middle, degrees) < probability) low = middle
    else high = middle
  }
  return high
}

/** Abramowitz and Stegun 26.7.3 and 26.7.4: exact finite sums, for whole degrees of freedom ≥ 1 and t ≥ 0. */
function studentCdf(t: number, degrees: number): number {
  const angle = Math.atan(t / Math.sqrt(degrees))
  const square = Math.cos(angle) ** 2
  const isOdd = degrees % 2 === 1
  let term = isOdd ? Math.cos(angle) : 1
  let sum = degrees > 1 ? term : 0
  for (let i = isOdd ? 3 : 2; i <= degrees - 2; i += 2) {
    term *= (square * (i - 1)) / i
    sum += term
  }
  const inside = isOdd ? (2 / Math.PI) * (angle + Math.sin(angle) * sum) : Math.sin(angle) * sum
  return 0.5 + inside / 2
}

/**
 * The unbiased estimate of the probability that at least one of k samples is correct, from c correct ones of n
 * (Chen et al. 2021): 1 − C(n−c, k) / C(n, k) = 1 − Π_{i=n−c+1..n} (1 − k/i). Exact to rounding for any n, k ≤ n.
 */
export function passAtK(n: number, c: number, k: number): number {
  if (!([n, c, k].every(Number.isSafeInteger) && k >= 1 && k <= n && c >= 0 && c <= n)) {
    throw new RapoError(
      'ERR_RAPO_INVALID_ARGUMENT',
      `passAtK(n=${n}, c=${c}, k=${k}) needs 1 ≤ k ≤ n, 0 ≤ c ≤ n, all of them whole numbers`,
    )
  }
  if (n - c < k) return 1
  let logProduct = 0
  for (let i = n - c + 1; i <= n; i++) logProduct += Math.log1p(-k / i)
  return -Math.expm1(logProduct)
}

/** 1, 2, 4, … up to `largest`, or else to n / 2 or 1: beyond that the estimate rests on too few distinct subsets. */
export function listKs(n: number, largest = 0): number[] {
  const ks: number[] = []
  for (let k = 1; k <= Math.min(n, largest || Math.max(1, n / 2)); k *= 2) ks.push(k)
  return ks
}
