/**
 * The objective as a plain object; docs/objective.md has every formula.
 * A preset takes the fields to change, as in `rapo({ klCoef: 0.05 })`. The result is complete, checked and frozen, and prints as
 * the table of its choices.
 */
import { inspect } from 'node:util'
import { invalid } from '../base/errors.js'
import { describeRange, isInRange, numberEntries, objectiveNumbers } from './fields.js'

/** The KL penalties. docs/objective.md says what each estimates and what is differentiated. */
export const penalties = [
  'none',
  'forward',
  'forward-full',
  'forward-score',
  'reverse-score',
  'reverse-k1',
  'reverse-k2',
  'reverse-k3',
  'reverse-full',
] as const
/** The name of a KL penalty D in docs/objective.md. With none, klCoef must be 0. */
export type Penalty = (typeof penalties)[number]

/** The policy terms; see docs/objective.md. */
export const surrogates = ['clip', 'cispo', 'sapo', 'gspo'] as const
/** The name of a policy term g in docs/objective.md. */
export type Surrogate = (typeof surrogates)[number]

/** The objective. The loss is −Σ n (g − klCoef · D + entropyCoef · H) over tokens; docs/objective.md has the formulas. */
export interface Objective {
  /** Default clip. */
  readonly surrogate?: Surrogate
  readonly penalty: Penalty
  /** α ≥ 0, the weight of the penalty; 0 without a penalty. */
  readonly klCoef: number
  /** β ≥ 0, the weight of the policy's exact entropy. */
  readonly entropyCoef: number
  /** The ratio is clipped to [1 − clipLow, 1 + clipHigh]; clipLow in [0, 1], clipHigh ≥ 0 (Infinity: no upper bound). */
  readonly clipLow: number
  readonly clipHigh: number
  /** `clip` and `gspo` only: upper bound of the ratio if A < 0, too (two-sided clipping); ≥ 1 + clipHigh. Default Infinity. */
  readonly ratioCap?: number
  /** `sapo` only: sharpness of the gate if A > 0, and otherwise; in (0, 1e6]. Defaults 1 and 1.05. */
  readonly sapoTauPositive?: number
  readonly sapoTauNegative?: number
  /** τ in [1e-6, 1e6]: the logits of both models are divided by it. */
  readonly temperature: number
  /** Upper clamp of the log-ratios inside exp, in (0, 20]. */
  readonly maxLogRatio: number
}

/** A field that only some surrogates read may be left out. */
const optional = ['surrogate', ...numberEntries.flatMap(([name, { only }]) => (only ? [name] : []))]

const plain = {
  penalty: 'none',
  ...Object.fromEntries(
    numberEntries.flatMap(([name, field]) => (field.only ? [] : [[name, field.default]])),
  ),
} as unknown as Objective

/**
 * The reference weights of RAPO, for referenceWeights: φ rises from 0.7 for a reward of 0 to 1 for a reward of 1, so that wrong
 * answers are held less to the reference.
 */
export const rapoPhi = Object.freeze({ phiMin: 0.7, phiMax: 1, rMin: 0, rMax: 1 })

/**
 * RAPO (arXiv 2510.03865): a forward KL to the reward-reweighted reference, and the policy's entropy. The reference weights
 * are those of referenceWeights(rewards), with rapoPhi.
 */
export function rapo(changes: Partial<Objective> = {}): Objective {
  return preset('RAPO, arXiv 2510.03865', { penalty: 'forward', klCoef: 0.02, entropyCoef: 0.003 }, changes)
}

/** GRPO (arXiv 2402.03300) with its reverse-KL penalty, the paper's baseline GRPO-RKL. */
export function grpo(changes: Partial<Objective> = {}): Objective {
  return preset('GRPO, arXiv 2402.03300', { penalty: 'reverse-k3', klCoef: 0.02 }, changes)
}

/** DAPO (arXiv 2503.14476): no penalty, the upper clip bound raised; average with `token-mean`. */
export function dapo(changes: Partial<Objective> = {}): Objective {
  return preset('DAPO, arXiv 2503.14476', { clipHigh: 0.28 }, changes)
}

/** Dr. GRPO (arXiv 2503.20783): no penalty; average with `constant`, advantages not divided by their deviation. */
export function drGrpo(changes: Partial<Objective> = {}): Objective {
  return preset('Dr. GRPO, arXiv 2503.20783', {}, changes)
}

/** GSPO (arXiv 2507.18071): the clip acts on the ratio of the sequence, with much narrower bounds; no penalty. */
export function gspo(changes: Partial<Objective> = {}): Objective {
  const choices = { surrogate: 'gspo', clipLow: 3e-4, clipHigh: 4e-4 } as const
  return preset('GSPO, arXiv 2507.18071', choices, changes)
}

/** CISPO (MiniMax-M1, arXiv 2506.13585): the ratio, cut at 1 + clipHigh, weights the gradient of the log-prob. */
export function cispo(changes: Partial<Objective> = {}): Objective {
  return preset('CISPO, arXiv 2506.13585', { surrogate: 'cispo', clipLow: 1, clipHigh: 4 }, changes)
}

/** SAPO (arXiv 2511.20347): a smooth gate in place of the clip. */
export function sapo(changes: Partial<Objective> = {}): Objective {
  return preset('SAPO, arXiv 2511.20347', { surrogate: 'sapo', clipLow: 1, clipHigh: Infinity }, changes)
}

function preset(source: string, choices: Partial<Objective>, changes: Partial<Objective>): Objective {
  return freeze({ ...plain, ...choices, ...changes }, source)
}

/** The objective's choices as a table, as console.log prints an objective made by a preset or defineObjective. */
export function describeObjective(objective: Objective): string {
  const source = sources.get(objective) ?? 'objective'
  const rows = Object.entries({ surrogate: 'clip', ...objective }).map(([field, value]) =>
    `  ${field.padEnd(15)} ${String(value).padEnd(14)} ${helpOf(field as keyof Objective)}`.trimEnd(),
  )
  return [`${source}: loss = −Σ n (g − αD + βH)`, ...rows].join('\n')
}

function helpOf(field: keyof Objective): string {
  if (field === 'surrogate') return 'the policy term g'
  return field === 'penalty' ? 'the KL penalty D' : objectiveNumbers[field].help
}

const checked = new WeakSet<Objective>()
/** The preset and paper of an objective, if it was made by a preset. */
const sources = new WeakMap<Objective, string>()

/** A checked, frozen copy. Throws ERR_RAPO_INVALID_ARGUMENT as validateObjective does. */
export function defineObjective(objective: Objective): Objective {
  return freeze(objective)
}

function freeze(objective: Objective, source?: string): Objective {
  validateObjective(objective)
  const copy = { ...objective }
  Object.defineProperty(copy, inspect.custom, { value: () => describeObjective(copy) })
  const frozen = Object.freeze(copy)
  checked.add(frozen)
  if (source) sources.set(frozen, source)
  return frozen
}

/** Throws ERR_RAPO_INVALID_ARGUMENT, which names field, value and range, or says why a combination makes no sense. */
export function validateObjective(objective: Objective): void {
  if (checked.has(objective)) return
  if (typeof objective !== 'object' || objective === null)
    invalid(`objective is ${objective}, expected an object`)
  for (const field of Object.keys(objective)) {
    if (!(field in plain || optional.includes(field))) {
      invalid(
        `objective has no field ${field}; its fields are ${[...Object.keys(plain), ...optional].join(', ')}`,
      )
    }
  }
  const { penalty, klCoef, clipLow, clipHigh, surrogate = 'clip' } = objective
  if (!penalties.includes(penalty)) invalid(`penalty is ${penalty}, expected one of ${penalties.join(', ')}`)
  if (!surrogates.includes(surrogate)) {
    invalid(`surrogate is ${surrogate}, expected one of ${surrogates.join(', ')}`)
  }
  for (const [name, field] of numberEntries) {
    const value = objective[name]
    if (field.only) {
      if (value === undefined) continue
      if (!field.only.includes(surrogate)) {
        const owners = field.only.join(' and ')
        invalid(`${name} is given, but the surrogate ${surrogate} does not read it: ${owners} do`)
      }
    }
    if (!isInRange(field, value)) invalid(`${name} is ${value}, expected a number ${describeRange(field)}`)
  }
  const { ratioCap } = objective
  if (ratioCap !== undefined && ratioCap < 1 + clipHigh) {
    invalid(`ratioCap is ${ratioCap}, expected a number ≥ 1 + clipHigh = ${1 + clipHigh}`)
  }
  if (surrogate === 'sapo' && (clipLow !== 1 || clipHigh !== Infinity)) {
    invalid(
      `clipLow is ${clipLow} and clipHigh ${clipHigh}, but sapo does not clip: make them 1 and Infinity`,
    )
  }
  if (penalty === 'none' && klCoef !== 0) {
    invalid(
      `klCoef is ${klCoef}, but there is no penalty for it to weigh: choose a penalty, or make klCoef 0`,
    )
  }
}

/** Sums over the trained tokens, as the kernels return them. The sums of the parts of a batch add up (addMetrics). */
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

/** The metrics of an empty batch: the start of a sum with addMetrics. */
export const emptyMetrics: Readonly<ObjectiveMetrics> = {
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

/** The metrics of two parts of a batch together. */
export function addMetrics(a: ObjectiveMetrics, b: ObjectiveMetrics): ObjectiveMetrics {
  return {
    tokens: a.tokens + b.tokens,
    loss: a.loss + b.loss,
    klSum: a.klSum + b.klSum,
    entropySum: a.entropySum + b.entropySum,
    ratioSum: a.ratioSum + b.ratioSum,
    approxKlSum: a.approxKlSum + b.approxKlSum,
    clippedLow: a.clippedLow + b.clippedLow,
    clippedHigh: a.clippedHigh + b.clippedHigh,
    klClamped: a.klClamped + b.klClamped,
    ratioMin: Math.min(a.ratioMin, b.ratioMin),
    ratioMax: Math.max(a.ratioMax, b.ratioMax),
  }
}

/** Means over the trained tokens, as a line of metrics.jsonl has them; 0 when no token was trained. */
export interface MeanMetrics {
  readonly kl: number
  readonly entropy: number
  readonly clipFractionLow: number
  readonly clipFractionHigh: number
  readonly ratioMean: number
  readonly approxKl: number
}

/** The means of the metrics of a call or of a whole batch (addMetrics). */
export function meanMetrics(sums: ObjectiveMetrics): MeanMetrics {
  const perToken = (sum: number) => sum / Math.max(1, sums.tokens)
  return {
    kl: perToken(sums.klSum),
    entropy: perToken(sums.entropySum),
    clipFractionLow: perToken(sums.clippedLow),
    clipFractionHigh: perToken(sums.clippedHigh),
    ratioMean: perToken(sums.ratioSum),
    approxKl: perToken(sums.approxKlSum),
  }
}
