/** Moments, and the estimate of pass@k. */
import { RapoError } from './errors.js'

/** Mean and standard deviation. The denominator is count − correction. */
export function moments(values: readonly number[], correction = 0): { mean: number; std: number } {
  const mean = values.reduce((sum, value) => sum + value, 0) / values.length
  const squares = values.reduce((sum, value) => sum + (value - mean) ** 2, 0)
  return { mean, std: Math.sqrt(squares / Math.max(1, values.length - correction)) }
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

/** 1, 2, 4, … up to `largest`, or else to n / 2: beyond that the estimate rests on too few distinct subsets. */
export function listKs(n: number, largest = 0): number[] {
  const ks: number[] = []
  for (let k = 1; k <= Math.min(n, largest || n / 2); k *= 2) ks.push(k)
  return ks
}
