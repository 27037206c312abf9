/** Turns the measurements of a step into one line of metrics.jsonl (docs/files.md, docs/metrics.md). */
import { RapoError } from '../base/errors.js'
import { moments } from '../base/stats.js'
import { zeroAdvantageFraction } from '../loss/advantage.js'
import { meanMetrics, type ObjectiveMetrics } from '../loss/objective.js'
import type { StepResult } from '../model/policy.js'
import { type ScoredRollout, sampledTokens } from '../rollout/rollout.js'

/** Seconds of wall-clock time per phase. */
export interface PhaseSeconds {
  rollout: number
  score: number
  train: number
  save: number
  /** Bringing the weights to servers; absent where no servers sample. */
  sync?: number
}

export type Phase = Exclude<keyof PhaseSeconds, 'sync'>

export const emptySeconds = (): PhaseSeconds => ({ rollout: 0, score: 0, train: 0, save: 0 })

/** Where servers sample. */
export interface RolloutMetrics {
  /** Updates of the policy between the oldest weights that sampled a rollout of the step, and the step. */
  staleness?: number
  /** The same on average over the tokens: from the weights that sampled each. */
  stalenessMean?: number
  /** Share of the rollouts that were sampled by the weights of several updates. */
  mixedFraction?: number
  /** Share of the time since the step before in which the trainer waited for rollouts. */
  trainerIdleFraction?: number
  /** Share of that time in which no server had a request of the run. */
  serversIdleFraction?: number
}

/** The metrics of remeasure. Each is present only with the option that it belongs to. */
export interface Remeasured {
  /** Where servers sample: of |log-prob of the sampler − log-prob of the trainer|, in nats. */
  mismatchMean?: number
  mismatchP99?: number
  /** Share of the tokens whose ratio trainer / sampler is outside [0.9, 1.1]. */
  mismatchOutsideFraction?: number
  /** With objective.entropyTarget: β of this step. */
  entropyCoef?: number
  /** With correction.level: statistics of the ratios trainer / sampler before bounding. */
  importanceMean?: number
  importanceMin?: number
  importanceMax?: number
  /** Share of the ratios that a bound changed. */
  importanceTruncatedFraction?: number
  /** With correction.maxDivergence: share of the completions left out of the policy term. */
  maskedFraction?: number
}

/** Metrics of sampling.filterGroups. */
export interface Filtered {
  /** Number of groups sampled for the step. */
  generatedGroups?: number
  /** Share of these groups that was left out. */
  filteredFraction?: number
}

/** A line of metrics.jsonl. */
export interface StepMetrics extends Remeasured, Filtered, RolloutMetrics {
  step: number
  rewardMean: number
  rewardStd: number
  zeroAdvantageFraction: number
  loss: number
  kl: number
  entropy: number
  clipFractionLow: number
  clipFractionHigh: number
  ratioMean: number
  approxKl: number
  gradNorm: number
  learningRate: number
  completionLengthMean: number
  completionLengthMin: number
  completionLengthMax: number
  truncatedFraction: number
  /** With an environment: completions of an episode. */
  turnsMean?: number
  tokens: number
  skippedSteps: number
  /** With several rewards: the statistics of each, by its name, not weighted. */
  rewards?: Readonly<Record<string, { readonly mean: number; readonly std: number }>>
  seconds: PhaseSeconds
}

/**
 * A step's line of metrics.jsonl, without the fields that only the caller knows.
 * Throws ERR_RAPO_INVALID_ARGUMENT if there are no rollouts or no optimizer steps.
 * @param sums over all micro-batches of the step
 * @param optimizerSteps one result per optimizer step; loss and gradNorm are means over them
 */
export function summarizeStep(
  rollouts: readonly ScoredRollout[],
  groupSize: number,
  sums: ObjectiveMetrics,
  optimizerSteps: readonly StepResult[],
): Omit<StepMetrics, 'step' | 'learningRate' | 'seconds'> {
  for (const [name, list] of Object.entries({ rollouts, optimizerSteps })) {
    if (list.length === 0) throw new RapoError('ERR_RAPO_INVALID_ARGUMENT', `${name} is empty`)
  }
  const rewards = rollouts.map(rollout => rollout.reward)
  const lengths = rollouts.map(sampledTokens)
  const { mean: rewardMean, std: rewardStd } = moments(rewards)
  const truncated = rollouts.filter(rollout => rollout.finishReason === 'length').length
  return {
    rewardMean,
    rewardStd,
    zeroAdvantageFraction: zeroAdvantageFraction(rewards, groupSize),
    loss: sums.loss / optimizerSteps.length,
    ...meanMetrics(sums),
    gradNorm: moments(optimizerSteps.map(result => result.gradNorm)).mean,
    completionLengthMean: moments(lengths).mean,
    completionLengthMin: lengths.reduce((a, b) => Math.min(a, b)),
    completionLengthMax: lengths.reduce((a, b) => Math.max(a, b)),
    truncatedFraction: truncated / rollouts.length,
    ...turnsOf(rollouts),
    tokens: sums.tokens,
    skippedSteps: optimizerSteps.filter(result => result.skipped).length,
    ...rewardParts(rollouts),
  }
}

function turnsOf(rollouts: readonly ScoredRollout[]): Pick<StepMetrics, 'turnsMean'> {
  if (!rollouts[0]?.turns) return {}
  return { turnsMean: moments(rollouts.map(({ turns }) => turns!.length)).mean }
}

function rewardParts(rollouts: readonly ScoredRollout[]): Pick<StepMetrics, 'rewards'> {
  const parts = rollouts[0]?.parts
  if (!parts) return {}
  const rewards = parts.map(
    ({ name }, k) => [name, moments(rollouts.map(({ parts }) => parts![k]!.reward))] as const,
  )
  return { rewards: Object.fromEntries(rewards) }
}

/** Measures a step. */
export interface Clock {
  readonly seconds: PhaseSeconds
  /** Called when a phase begins. */
  readonly onPhase?: ((phase: Phase) => void) | undefined
}

/** Adds the seconds that the work takes to the seconds of its phase. */
export async function timed<T>(
  { seconds, onPhase }: Clock,
  phase: Phase,
  work: () => Promise<T>,
): Promise<T> {
  onPhase?.(phase)
  const start = performance.now()
  const result = await work()
  seconds[phase] += (performance.now() - start) / 1000
  return result
}
