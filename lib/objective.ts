/** The objective of rapo.md sections 3 and 4 as a plain object; docs/objective.md has every formula. */
export const penalties = ['none', 'forward', 'reverse-k3'] as const
export type Penalty = (typeof penalties)[number]

export interface Objective {
  readonly penalty: Penalty
  /** α ≥ 0, the penalty's weight. */
  readonly klCoef: number
  /** β ≥ 0, the weight of the policy's exact entropy. */
  readonly entropyCoef: number
  /** The ratio is clipped to [1 − clipLow, 1 + clipHigh]. */
  readonly clipLow: number
  readonly clipHigh: number
  /** τ > 0: the logits of both models are divided by it. */
  readonly temperature: number
  /** Upper clamp of the log-ratios inside exp, in (0, 20]. */
  readonly maxLogRatio: number
}
