/** Sums over the trained tokens, as the kernels return them; those of any split of a batch add up (addMetrics). */
export interface ObjectiveMetrics {
  tokens: number
  loss: number
  klSum: number
  entropySum: number
  ratioSum: number
  approxKlSum: number
  clippedLow: number
  clippedHigh: number
  klClamped: number
  /** Infinity and −Infinity when no token was trained. */
  ratioMin: number
  ratioMax: number
}
