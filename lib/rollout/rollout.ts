/** A group of completions for each problem, and their rewards. */
import type { Problem } from '../data/problems.js'
import type { EncodedPrompt } from '../data/prompts.js'
import { packTokens, type TrainSequence, toSequence, unpackCompletions } from '../model/batch.js'
import type { CallOptions, FinishReason, SamplingParams } from '../model/policy.js'
import type { Tokenizer } from '../model/tokenizer.js'
import type { RewardPart } from '../reward/rewards.js'
import {
  judge,
  type Patience,
  type Turn,
  type Verdict,
  type Verifier,
  type VerifyContext,
} from '../reward/verifier.js'
import type { Sampler } from './engine.js'

/** A prompt and one completion of it, or one episode of an environment. */
export interface Rollout {
  readonly problem: Problem
  readonly promptIds: readonly number[]
  /** The completion's token ids, the stop token included. Of an episode: all tokens after the prompt, observations too. */
  readonly completionIds: Int32Array
  /** log π of each completion token when it was sampled; 0 for the tokens of observations. */
  readonly logprobs: Float32Array
  /** Of an episode: `length` also where it reached task.maxTurns, or has no tokens left. */
  readonly finishReason: FinishReason
  /** The completion as text, without the stop token. Of an episode: that of the last turn. */
  readonly completion: string
  /** Of an episode, one a token of completionIds: 1 where the model sampled the token, 0 where it was observed. */
  readonly completionMask?: readonly number[]
  /** Of an episode. */
  readonly turns?: readonly Turn[]
  /** Of an episode to which the environment gave a reward. */
  readonly verdict?: Verdict
  /** Version of the weights that sampled it (SampledCompletions.versions); absent if a policy was sampled directly. */
  readonly version?: number
  /** Where an update came while it was sampled: the version that sampled each token, as far as the server told. */
  readonly versions?: readonly number[]
}

/** Options of score: how long it waits, and what it passes to verifiers. */
export interface ScoreOptions extends Patience {
  /** VerifyContext.maxNewTokens. */
  readonly maxNewTokens?: number
}

export interface ScoredRollout extends Rollout {
  /** With several rewards: their weighted sum. */
  readonly reward: number
  /** The verifier's reason. */
  readonly reason: string
  /** The verifier's answer, if it gave one: Verdict.answer. */
  readonly answer?: string
  /** With several rewards, or a weight: each reward with its name, not weighted; the verifier's comes first. */
  readonly parts?: readonly (Verdict & Pick<RewardPart, 'name' | 'weight'>)[]
}

/** The engine's sampling parameters from the configuration's section `sampling`. */
export function samplingParams(
  {
    temperature,
    topP,
    topK,
    minP,
    maxNewTokens,
  }: Omit<
    Required<SamplingParams>,
    'n' | 'seed' | 'stopTokenIds' | 'maxBatch' | 'firstCompletion' | 'maxNewTokensPerPrompt' | 'turn'
  >,
  rest: Pick<SamplingParams, 'n' | 'seed' | 'stopTokenIds' | 'firstCompletion'>,
): SamplingParams {
  return { temperature, topP, topK, minP, maxNewTokens, ...rest }
}

/** Samples sampling.n completions of each prompt. Returns group after group, in the order of the prompts. */
export async function rolloutGroups(
  sampler: Sampler,
  tokenizer: Pick<Tokenizer, 'decode'>,
  prompts: readonly EncodedPrompt[],
  sampling: SamplingParams,
  options?: CallOptions,
): Promise<Rollout[]> {
  const packed = packTokens(prompts.map(prompt => prompt.promptIds))
  const sampled = await sampler.generate(packed, sampling, options)
  const { versions, tokenVersions } = sampled
  return unpackCompletions(sampled).map(({ tokenIds, logprobs, finishReason }, i) => ({
    ...prompts[Math.floor(i / sampling.n)]!,
    completionIds: tokenIds,
    logprobs,
    finishReason,
    completion: tokenizer.decode(finishReason === 'stop' ? tokenIds.subarray(0, -1) : tokenIds),
    ...(versions && { version: versions[i]! }),
    ...(tokenVersions?.[i] && { versions: tokenVersions[i] }),
  }))
}

/**
 * Rewards every rollout that has no verdict of an environment. The calls of an asynchronous verifier run at the same time.
 * Throws an error that names the problem if the verifier throws, if a verdict does not come in time, or if a result is not a
 * verdict.
 */
export async function score(
  rollouts: readonly Rollout[],
  verifier: Verifier,
  { maxNewTokens, ...patience }: ScoreOptions = {},
): Promise<ScoredRollout[]> {
  const verdicts = await Promise.all(
    rollouts.map(rollout => {
      const { problem, completion, verdict } = rollout
      if (verdict) return verdict
      return judge(
        () => verifier.verify(completion, problem.answer, contextOf(rollout, maxNewTokens)),
        `problem "${problem.id}", completion ${JSON.stringify(completion)}`,
        patience,
      )
    }),
  )
  return rollouts.map((rollout, i) => ({ ...rollout, ...verdicts[i]! }))
}

/** Tokens of a rollout that the model sampled. */
export function sampledTokens({ completionIds, completionMask }: Rollout): number {
  return completionMask?.reduce((sum, mask) => sum + mask, 0) ?? completionIds.length
}

/** A rollout as a sequence to train on, with the sampler's log-probs. Tokens of observations are not trained on. */
export function rolloutSequence(
  { promptIds, completionIds, completionMask, logprobs }: Rollout,
  rest: Pick<TrainSequence, 'advantage' | 'refWeight'>,
): TrainSequence {
  const sequence = toSequence(promptIds, completionIds, { ...rest, oldLogprobs: logprobs })
  if (!completionMask) return sequence
  return { ...sequence, completionMask: [...promptIds.map(() => 0), ...completionMask] }
}

/** Like score, but with several rewards, whose weighted sum is the reward. All are started before the first is awaited. */
export async function scoreParts(
  rollouts: readonly Rollout[],
  parts: readonly RewardPart[],
  options: ScoreOptions = {},
): Promise<ScoredRollout[]> {
  const [first, ...others] = parts
  if (first && others.length === 0 && first.weight === 1) return score(rollouts, first.verifier, options)
  // An environment's reward is the first part; the others judge its episodes, too.
  const unjudged = rollouts.map(({ verdict: _, ...rollout }) => rollout)
  const scored = await Promise.all(
    parts.map(({ name, verifier }, k) =>
      k === 0
        ? score(rollouts, verifier, options)
        : score(unjudged, verifier, { ...options, who: `the reward ${name}` }),
    ),
  )
  return rollouts.map((_, i) => {
    const verdicts = parts.map(({ name, weight }, k) => {
      const { reward, reason } = scored[k]![i]!
      return { name, weight, reward, reason }
    })
    const reward = verdicts.reduce((sum, { weight, reward }) => sum + weight * reward, 0)
    return { ...scored[0]![i]!, reward, parts: verdicts }
  })
}

function contextOf(
  { problem, completionIds, finishReason, turns }: Rollout,
  maxNewTokens: number | undefined,
): VerifyContext {
  const { id, prompt, messages, columns = {} } = problem
  const sampled = {
    tokens: completionIds.length,
    finishReason,
    ...(maxNewTokens !== undefined && { maxNewTokens }),
    ...(turns && { turns }),
  }
  return { id, prompt, ...(messages && { messages }), columns, ...sampled }
}
