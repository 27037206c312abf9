/**
 * The numbers of an objective: default, range and meaning of each. Checks, the configuration's schema and its help follow
 * from this table. RAPO_OBJECTIVE_NUMBERS in native/kernels/objective.h has the same defaults and ranges.
 */

export interface NumberField {
  readonly default: number
  readonly low: number
  /** Whether `low` itself is excluded from the range. */
  readonly open?: boolean
  /** Infinity: the range includes Infinity. Number.MAX_VALUE: the range includes every finite number. */
  readonly high: number
  /** The surrogates that read the field, unless all do. For others the field may be left out. */
  readonly only?: readonly string[]
  readonly help: string
}

export const objectiveNumbers = {
  klCoef: { default: 0, low: 0, high: Number.MAX_VALUE, help: 'α, the weight of the penalty D' },
  entropyCoef: { default: 0, low: 0, high: Number.MAX_VALUE, help: 'β, the weight of the entropy H' },
  clipLow: { default: 0.2, low: 0, high: 1, help: 'the ratio is clipped to [1 − clipLow, 1 + clipHigh]' },
  clipHigh: { default: 0.2, low: 0, high: Infinity, help: 'see clipLow' },
  ratioCap: {
    default: Infinity,
    low: 1,
    high: Infinity,
    only: ['clip', 'gspo'],
    help: 'bounds the ratio where the advantage is negative, too; clip and gspo only (default: no bound)',
  },
  sapoTauPositive: {
    default: 1,
    low: 0,
    open: true,
    high: 1e6,
    only: ['sapo'],
    help: 'sharpness of the gate where the advantage is positive; sapo only (default 1)',
  },
  sapoTauNegative: {
    default: 1.05,
    low: 0,
    open: true,
    high: 1e6,
    only: ['sapo'],
    help: 'sharpness of the gate where the advantage is not positive; sapo only (default 1.05)',
  },
  temperature: { default: 1, low: 1e-6, high: 1e6, help: 'τ, divides the logits of both models' },
  maxLogRatio: { default: 20, low: 0, open: true, high: 20, help: 'upper clamp of log-ratios before exp' },
} as const satisfies Record<string, NumberField>

export type ObjectiveNumber = keyof typeof objectiveNumbers

/** In the order of the table. */
export const numberEntries = Object.entries(objectiveNumbers) as [ObjectiveNumber, NumberField][]

export function isInRange({ low, open, high }: NumberField, x: unknown): boolean {
  return typeof x === 'number' && (open ? x > low : x >= low) && x <= high
}

/** The range in words: "in [0, 1]", "≥ 0 and finite". */
export function describeRange({ low, open, high }: NumberField): string {
  if (high === Infinity) return `≥ ${low}`
  if (high === Number.MAX_VALUE) return `≥ ${low} and finite`
  const [from, to] = [low, high].map(x =>
    x > 0 && (x >= 1e6 || x <= 1e-6) ? x.toExponential().replace('+', '') : x,
  )
  return `in ${open ? '(' : '['}${from}, ${to}]`
}
