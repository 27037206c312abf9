/**
 * The objective written down a second time, independently of the native code. Every operation passes through `round`. With the
 * identity this is the formula in double precision. With Math.fround it is the plain float32 formula; the distance between the
 * two is the float32 error that tolerances are made of.
 */
import type { Objective, ObjectiveMetrics, Penalty } from '../../lib/loss/objective.js'

export type Round = (x: number) => number
export const exact: Round = x => x
export const float32: Round = Math.fround
/** Half the distance from 1 to the next float32: the relative error of one rounding. */
export const u32 = 2 ** -24

export interface FormulaRow {
  logits: Float64Array
  refLogits: Float64Array
  tokenId: number
  weight: number
  advantage: number
  phi: number
  /** undefined means ratio 1 */
  oldLogprob?: number
  policyWeight: number
  /** For gspo only: mean of lp − o over the row's sequence. */
  sequenceLogRatio?: number
}

export interface FormulaResult {
  logprob: number
  refLogprob: number
  kl: number
  entropy: number
  ratio: number
  loss: number
  clipped: number
  /** ρ − 1 − log ρ of the token's own ratio, also under gspo. */
  approxKl: number
  /** Whether the penalty's d exceeded maxLogRatio. */
  klClamped: boolean
  grad: Float64Array
  /** How strongly D and its slope react to the log-probs, times the size of the log-probs. */
  klScale: number
  /** The sum of the absolute values of the terms of a gradient element; the largest over the elements. */
  gradScale: number
}

/** D and dD/dlp of the penalties that depend on the sampled token. d is clamped already. */
const sampled: Partial<
  Record<Penalty, (d: number, w: number, rho: number, r: Round) => { value: number; slope: number }>
> = {
  forward: (d, w, _, r) => ({ value: r(r(wd(w, d, r) - w) + 1), slope: -wd(w, d, r) }),
  'forward-score': (d, w, rho, r) => ({
    value: r(rho * r(r(wd(w, d, r) - w) + 1)),
    slope: r(rho * r(1 - w)),
  }),
  'reverse-score': (d, w, rho, r) => ({ value: r(rho * r(r(w - d) - 1)), slope: r(-rho * d) }),
  'reverse-k1': d => ({ value: -d, slope: 1 }),
  'reverse-k2': (d, _w, _rho, r) => ({ value: r(r(d * d) / 2), slope: -d }),
  'reverse-k3': (d, w, _, r) => ({ value: r(r(w - d) - 1), slope: r(1 - w) }),
}
const wd = (w: number, d: number, r: Round) => (w === 0 ? 0 : r(w * d))
const takesExp = new Set<Penalty>(['forward', 'forward-score', 'reverse-score', 'reverse-k3'])

export function formula(row: FormulaRow, objective: Objective, r: Round): FormulaResult {
  const { penalty, klCoef, entropyCoef, temperature, maxLogRatio } = objective
  const a = row.tokenId
  const V = row.logits.length
  const l = logSoftmax(row.logits, 1, temperature, r)
  const p = l.map(x => r(Math.exp(x)))
  const q = penalty === 'none' ? undefined : logSoftmax(row.refLogits, row.phi, temperature, r)
  const logprob = l[a]!
  const entropy = -sum(
    p.map((x, v) => times(x, l[v]!, r)),
    r,
  )

  const logRatio = Math.min(row.oldLogprob === undefined ? 0 : r(logprob - row.oldLogprob), maxLogRatio)
  const ratio = r(Math.exp(logRatio))
  const A = row.advantage
  const clippedRatio =
    row.sequenceLogRatio === undefined ? ratio : r(Math.exp(Math.min(row.sequenceLogRatio, maxLogRatio)))
  const term = policyTerm(objective, clippedRatio, A, logprob, r)
  const { clipped } = term
  const [surrogate, c] = [r(row.policyWeight * term.value), r(row.policyWeight * term.slope)]

  let kl = 0
  let s = 0
  let klClamped = false
  let full: (v: number) => number = () => 0
  let fullScale: (v: number) => number = () => 0
  if (q && penalty === 'forward-full') {
    const pi = q.map(x => r(Math.exp(x)))
    kl = sum(
      pi.map((x, v) => times(x, r(q[v]! - l[v]!), r)),
      r,
    )
    full = v => r(p[v]! - pi[v]!)
    fullScale = v => spread(p[v]!, l[v]!) + spread(pi[v]!, q[v]!)
  } else if (q && penalty === 'reverse-full') {
    kl = sum(
      p.map((x, v) => times(x, r(l[v]! - q[v]!), r)),
      r,
    )
    full = v => times(p[v]!, r(r(l[v]! - q[v]!) - kl), r)
    fullScale = v => spread(p[v]!, l[v]!) * (1 + Math.abs(l[v]! - q[v]!) + kl) || 0
  } else if (q) {
    const raw = r(q[a]! - logprob)
    const d = takesExp.has(penalty) ? Math.min(raw, maxLogRatio) : raw
    const term = sampled[penalty]!(d, r(Math.exp(d)), ratio, r)
    kl = term.value
    klClamped = d < raw
    s = klClamped ? 0 : term.slope
  }

  const slope = r(c - r(klCoef * s))
  const size = Math.max(1, -logprob, q && q[a]! > -Infinity ? -q[a]! : 0)
  const d = q ? Math.min(q[a]! - logprob, maxLogRatio) : 0
  const sensitivity =
    d > -Infinity ? (1 + Math.abs(d)) * Math.max(1, Math.exp(d)) * Math.max(1, ratio) : ratio
  const klScale = Math.abs(kl) + size * sensitivity
  const slopeScale = Math.abs(c) * size + (q && !penalty.endsWith('full') ? klCoef * klScale : 0)
  const n = r(row.weight / temperature)
  const grad = new Float64Array(V)
  let gradScale = 0
  for (let v = 0; v < V; ++v) {
    const terms = [
      r(slope * r((v === a ? 1 : 0) - p[v]!)),
      -r(klCoef * full(v)),
      -r(entropyCoef * times(p[v]!, r(l[v]! + entropy), r)),
    ]
    grad[v] = -r(n * terms.reduce((x, y) => r(x + y)))
    const inner = spread(p[v]!, l[v]!)
    const own = slopeScale * ((v === a ? 1 : 0) + inner) + entropyCoef * inner * (1 - l[v]! + entropy)
    gradScale = Math.max(gradScale, Math.abs(n) * ((own || 0) + klCoef * fullScale(v)))
  }
  const loss = -row.weight * (surrogate - klCoef * kl + entropyCoef * entropy)
  const refLogprob = q?.[a] ?? 0
  const approxKl = r(r(ratio - 1) - logRatio)
  const values = { logprob, refLogprob, kl, entropy, ratio: clippedRatio, loss, clipped, approxKl, klClamped }
  return { ...values, grad, gradScale, klScale }
}

/** The metrics of the unmasked rows, each by its definition in docs/metrics.md. */
export function formulaMetrics(rows: readonly FormulaResult[]): ObjectiveMetrics {
  const metrics: ObjectiveMetrics = {
    tokens: 0,
    loss: 0,
    klSum: 0,
    entropySum: 0,
    ratioSum: 0,
    approxKlSum: 0,
    clippedLow: 0,
    clippedHigh: 0,
    klClamped: 0,
    ratioMin: Infinity,
    ratioMax: -Infinity,
  }
  for (const row of rows) {
    metrics.tokens++
    metrics.loss += row.loss
    metrics.klSum += row.kl
    metrics.entropySum += row.entropy
    metrics.ratioSum += row.ratio
    metrics.approxKlSum += row.approxKl
    if (row.clipped === 1) metrics.clippedLow++
    if (row.clipped === 2) metrics.clippedHigh++
    if (row.klClamped) metrics.klClamped++
    if (row.ratio < metrics.ratioMin) metrics.ratioMin = row.ratio
    if (row.ratio > metrics.ratioMax) metrics.ratioMax = row.ratio
  }
  return metrics
}

function policyTerm(objective: Objective, ratio: number, A: number, logprob: number, r: Round) {
  const { surrogate = 'clip', clipLow, clipHigh, ratioCap = Infinity } = objective
  const clippedRatio = Math.max(1 - clipLow, Math.min(ratio, 1 + clipHigh))
  if (surrogate === 'cispo') {
    const weight = r(clippedRatio * A)
    return {
      value: r(weight * logprob),
      slope: weight,
      clipped: ratio > 1 + clipHigh ? 2 : ratio < 1 - clipLow ? 1 : 0,
    }
  }
  if (surrogate === 'sapo') {
    const { sapoTauPositive = 1, sapoTauNegative = 1.05 } = objective
    const tau = A > 0 ? sapoTauPositive : sapoTauNegative
    const sigma = r(1 / (1 + Math.exp(-tau * (ratio - 1))))
    return { value: (4 / tau) * sigma * A, slope: 4 * A * ratio * sigma * (1 - sigma), clipped: 0 }
  }
  const value = Math.min(r(Math.min(ratio, ratioCap) * A), r(clippedRatio * A))
  const low = A < 0 && ratio < 1 - clipLow
  const high = (A > 0 && ratio > 1 + clipHigh) || (A < 0 && ratio > ratioCap)
  return { value, slope: low || high ? 0 : r(ratio * A), clipped: low ? 1 : high ? 2 : 0 }
}

export function logSoftmax(
  logits: Float64Array,
  weight: number,
  temperature: number,
  r: Round,
): Float64Array {
  const z = logits.map(x => (weight === 0 ? 0 : r(weight * r(x / temperature))))
  const max = z.reduce((x, y) => Math.max(x, y), -Infinity)
  const shifted = z.map(x => r(x - max))
  const logSum = r(
    Math.log(
      sum(
        shifted.map(x => r(Math.exp(x))),
        r,
      ),
    ),
  )
  return shifted.map(x => r(x - logSum))
}

/** x · y with 0 · −∞ = 0. */
function times(x: number, y: number, r: Round): number {
  return x === 0 ? 0 : r(x * y)
}

/** Relative error of p = e^l in roundings: exp turns one rounding of l into |l| roundings of p. */
function spread(p: number, l: number): number {
  return p === 0 ? 0 : p * (1 + Math.abs(l))
}

/** Adds pairwise, as torch and numpy do: the error grows only with log V. */
function sum(values: Float64Array, r: Round): number {
  const partial = Float64Array.from(values)
  for (let n = partial.length; n > 1; ) {
    const half = n >> 1
    for (let i = 0; i < half; ++i) partial[i] = r(partial[2 * i]! + partial[2 * i + 1]!)
    if (n % 2) partial[half] = partial[n - 1]!
    n = half + (n % 2)
  }
  return partial[0] ?? 0
}
