/**
 * The objective as a plain object; docs/objective.md has every formula.
 * A preset takes the fields to change: `rapo({ klCoef: 0.05 })`. What it returns is complete, checked and frozen, and
 * prints as the table of its choices.
 */
import { inspect } from 'node:util'
import { RapoError } from '../base/errors.js'

/** The KL penalties: what each estimates and what is differentiated, see docs/objective.md. */
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
/** A KL penalty D by its name in docs/objective.md; none goes with klCoef 0. */
export type Penalty = (typeof penalties)[number]

/** The policy terms, see docs/objective.md. */
export const surrogates = ['clip', 'cispo', 'sapo', 'gspo'] as const
/** A policy term g by its name in docs/objective.md. */
export type Surrogate = (typeof surrogates)[number]

/** What is optimised: loss = −Σ n (g − klCoef · D + entropyCoef · H) over tokens. docs/objective.md has the formulas. */
export interface Objective {
  /** Default clip. */
  readonly surrogate?: Surrogate
  readonly penalty: Penalty
  /** α ≥ 0, the penalty's weight; 0 without a penalty. */
  readonly klCoef: number
  /** β ≥ 0, the weight of the policy's exact entropy. */
  readonly entropyCoef: number
  /** The ratio is clipped to [1 − clipLow, 1 + clipHigh]; clipLow in [0, 1], clipHigh ≥ 0 (Infinity: no upper bound). */
  readonly clipLow: number
  readonly clipHigh: number
  /** `clip` and `gspo`: bounds the ratio where A < 0 too (two-sided clipping); ≥ 1 + clipHigh. Default Infinity. */
  readonly ratioCap?: number
  /** `sapo` alone: sharpness of the gate where A > 0, and where not; in (0, 1e6]. Default 1 and 1.05. */
  readonly sapoTauPositive?: number
  readonly sapoTauNegative?: number
  /** τ in [1e-6, 1e6]: the logits of both models are divided by it. */
  readonly temperature: number
  /** Upper clamp of the log-ratios inside exp, in (0, 20]. */
  readonly maxLogRatio: number
}

const plain: Objective = {
  penalty: 'none',
  klCoef: 0,
  entropyCoef: 0,
  clipLow: 0.2,
  clipHigh: 0.2,
  temperature: 1,
  maxLogRatio: 20,
}

/** RAPO (arXiv 2510.03865): forward KL against the reward-reweighted reference, and the policy's entropy. */
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

/** GSPO (arXiv 2507.18071): the clip at work on the sequence's ratio, whose bounds are much narrower; no penalty. */
export function gspo(changes: Partial<Objective> = {}): Objective {
  const choices = { surrogate: 'gspo', clipLow: 3e-4, clipHigh: 4e-4 } as const
  return preset('GSPO, arXiv 2507.18071', choices, changes)
}

/** CISPO (MiniMax-M1, arXiv 2506.13585): the ratio, cut at 1 + clipHigh, weighs the log-prob's gradient. */
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

const meaning: Record<keyof Objective, string> = {
  surrogate: 'the policy term g',
  penalty: 'the KL penalty D',
  klCoef: 'α, the weight of D',
  entropyCoef: 'β, the weight of the entropy H',
  clipLow: 'the ratio is clipped to [1 − clipLow, 1 + clipHigh]',
  clipHigh: '',
  ratioCap: 'bound of the ratio where A < 0',
  sapoTauPositive: 'sharpness of the gate where A > 0',
  sapoTauNegative: 'and where not',
  temperature: 'τ, divides the logits of both models',
  maxLogRatio: 'upper clamp of log-ratios',
}

/** The objective's choices as a table, as console.log prints an objective made by a preset or defineObjective. */
export function describeObjective(objective: Objective): string {
  const source = sources.get(objective) ?? 'objective'
  const rows = Object.entries({ surrogate: 'clip', ...objective }).map(([field, value]) =>
    `  ${field.padEnd(15)} ${String(value).padEnd(14)} ${meaning[field as keyof Objective]}`.trimEnd(),
  )
  return [`${source}: loss = −Σ n (g − αD + βH)`, ...rows].join('\n')
}

const optional = ['surrogate', 'ratioCap', 'sapoTauPositive', 'sapoTauNegative']
const checked = new WeakSet<Objective>()
/** Preset and paper of those that have one. */
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

/** Throws ERR_RAPO_INVALID_ARGUMENT naming field, value and range, or why a combination makes no sense. */
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
  const range = (
    field: Exclude<keyof Objective, 'penalty' | 'surrogate'>,
    what: string,
    fits: (x: number) => boolean,
  ) => {
    const value = objective[field]
    if (typeof value !== 'number' || !fits(value)) invalid(`${field} is ${value}, expected a number ${what}`)
  }
  const coefficient = (x: number) => x >= 0 && x < Infinity
  range('klCoef', '≥ 0 and finite', coefficient)
  range('entropyCoef', '≥ 0 and finite', coefficient)
  range('clipLow', 'in [0, 1]', x => x >= 0 && x <= 1)
  range('clipHigh', '≥ 0', x => x >= 0)
  range('temperature', 'in [1e-6, 1e6]', x => x >= 1e-6 && x <= 1e6)
  range('maxLogRatio', 'in (0, 20]', x => x > 0 && x <= 20)
  const only = (field: 'ratioCap' | 'sapoTauPositive' | 'sapoTauNegative', ...owners: Surrogate[]) => {
    if (objective[field] === undefined) return false
    if (!owners.includes(surrogate))
      invalid(
        `${field} is given, but the surrogate ${surrogate} does not read it: ${owners.join(' and ')} do`,
      )
    return true
  }
  if (only('ratioCap', 'clip', 'gspo'))
    range('ratioCap', `≥ 1 + clipHigh = ${1 + clipHigh}`, x => x >= 1 + clipHigh)
  for (const field of ['sapoTauPositive', 'sapoTauNegative'] as const) {
    if (only(field, 'sapo')) range(field, 'in (0, 1e6]', x => x > 0 && x <= 1e6)
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

function invalid(message: string): never {
  throw new RapoError('ERR_RAPO_INVALID_ARGUMENT', message)
}

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
