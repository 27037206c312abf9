/** Completions of a step that people look at: lines of samples.jsonl, and the pairs that run.showSamples shows. */
import type { Tokenizer } from '../model/tokenizer.js'
import type { ScoredRollout } from '../rollout/rollout.js'

/** A line of samples.jsonl (docs/files.md). */
export interface SampleLine {
  readonly step: number
  readonly problemId: string
  readonly prompt: string
  /** The prompt as the model got it: in its template, with special tokens as their text. */
  readonly renderedPrompt: string
  readonly completion: string
  readonly reward: number
  readonly reason: string
  readonly finishReason: string
  /** With several rewards: whether the verifier's is ≥ 1. */
  readonly correct?: boolean
  /** With several rewards: each of them, not weighted. */
  readonly rewards?: readonly { readonly name: string; readonly weight: number; readonly reward: number }[]
}

/** `count` rollouts spread over the batch. */
export function chooseSamples(scored: readonly ScoredRollout[], count: number): ScoredRollout[] {
  const chosen = Math.min(count, scored.length)
  return Array.from({ length: chosen }, (_, i) => scored[Math.floor((i * scored.length) / chosen)]!)
}

/** The first rollout with the highest reward, and the first one with the lowest where that is another. */
export function bestAndWorst(scored: readonly ScoredRollout[]): ScoredRollout[] {
  const best = scored.reduce((a, b) => (b.reward > a.reward ? b : a))
  const worst = scored.reduce((a, b) => (b.reward < a.reward ? b : a))
  return best === worst ? [best] : [best, worst]
}

export function toSampleLine(
  rollout: ScoredRollout,
  step: number,
  tokenizer: Pick<Tokenizer, 'decode'>,
): SampleLine {
  const { problem, promptIds, completion, reward, reason, finishReason, parts } = rollout
  return {
    ...{ step, problemId: problem.id, prompt: problem.prompt, renderedPrompt: tokenizer.decode(promptIds) },
    ...{ completion, reward, reason, finishReason },
    ...(parts && { correct: parts[0]!.reward >= 1, rewards: rewardsOf(parts) }),
  }
}

const rewardsOf = (parts: NonNullable<ScoredRollout['parts']>) =>
  parts.map(({ name, weight, reward, reason }) => ({ name, weight, reward, ...(reason && { reason }) }))
