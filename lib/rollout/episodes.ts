/** Groups of episodes for each problem: the model and an environment take turns. */
import { RapoError } from '../base/errors.js'
import { deriveSeed } from '../base/random.js'
import { anySignal } from '../base/wait.js'
import type { EncodedPrompt } from '../data/prompts.js'
import { type Completion, packTokens, unpackCompletions } from '../model/batch.js'
import type { CallOptions, FinishReason, SamplingParams } from '../model/policy.js'
import type { PromptTemplate } from '../model/template.js'
import type { Tokenizer } from '../model/tokenizer.js'
import { type NamedEnvironment, resetEpisode, stepEpisode } from '../reward/environment.js'
import type { Patience, Turn, Verdict } from '../reward/verifier.js'
import type { Sampler } from './engine.js'
import { Episode } from './episode.js'
import { type Rollout, rolloutGroups } from './rollout.js'

/** What rollouts are sampled with, the same for a whole run. */
export interface RolloutContext {
  readonly tokenizer: Pick<Tokenizer, 'encode' | 'decode'>
  readonly template: PromptTemplate
  /** Absent: a rollout is one completion. */
  readonly environment?: NamedEnvironment | undefined
}

/** Limits of an episode beside sampling.maxNewTokens, which holds for all its tokens behind the prompt. */
export interface EpisodeOptions extends Omit<Patience, 'who'>, CallOptions {
  readonly maxTurns: number
  /** Default: sampling.maxNewTokens. */
  readonly maxTurnTokens?: number | undefined
}

/** sampling.n rollouts of each prompt, group after group: episodes where there is an environment, otherwise completions. */
export function sampleRollouts(
  sampler: Sampler,
  context: RolloutContext,
  prompts: readonly EncodedPrompt[],
  sampling: SamplingParams,
  options: EpisodeOptions,
): Promise<Rollout[]> {
  const { environment } = context
  if (environment) return rolloutEpisodes(sampler, { ...context, environment }, prompts, sampling, options)
  const { signal, onProgress } = options
  return rolloutGroups(sampler, context.tokenizer, prompts, sampling, { signal, onProgress })
}

/**
 * sampling.n episodes of each prompt, in the order of rolloutGroups. All episodes sample their next completion in one call,
 * then the environment is asked for all of them at once. An episode ends where the environment says so; with reward 0 where
 * it has had maxTurns turns, or where sampling.maxNewTokens leaves no token for a completion behind the observation. The
 * random numbers of an episode depend on the seed, its place and the number of the turn.
 */
export async function rolloutEpisodes(
  sampler: Sampler,
  context: RolloutContext & { readonly environment: NamedEnvironment },
  prompts: readonly EncodedPrompt[],
  sampling: SamplingParams,
  options: EpisodeOptions,
): Promise<Rollout[]> {
  const { n, seed, maxNewTokens, firstCompletion = 0 } = sampling
  const { onProgress, maxTurnTokens = maxNewTokens } = options
  const failed = new AbortController()
  const patience = { ...options, signal: anySignal(options.signal, failed.signal) }
  try {
    const all = await Promise.all(
      prompts.flatMap(prompt =>
        Array.from({ length: n }, async () => {
          const state = await resetEpisode(context.environment, prompt.problem, patience)
          return new Running(prompt, state, maxNewTokens)
        }),
      ),
    )
    const places = new Map(all.map((episode, i) => [episode, i]))
    const seedOf = (i: number, turn: number) =>
      typeof seed === 'number'
        ? deriveSeed(seed, 'turn', turn, firstCompletion + i)
        : deriveSeed(seed[Math.floor(i / n)]!, 'turn', turn, i % n)
    for (let turn = 1, live = all; live.length > 0; turn++) {
      // The first turn is one call of n completions a prompt, with the seed itself, as rolloutGroups makes it.
      const asked =
        turn === 1 ? prompts.map(({ promptIds }) => promptIds) : live.map(({ episode }) => episode.tokenIds)
      const most = live.map(({ tokensLeft }) => Math.min(maxTurnTokens, tokensLeft))
      const before = all.reduce((sum, { tokens, isOver }) => sum + (isOver ? maxNewTokens : tokens), 0)
      const params = {
        ...sampling,
        ...{ turn, maxNewTokens: most.reduce((a, b) => Math.max(a, b)) },
        ...(turn > 1 && {
          n: 1,
          firstCompletion: 0,
          seed: live.map(episode => seedOf(places.get(episode)!, turn)),
          maxNewTokensPerPrompt: most,
        }),
      }
      const sampled = await sampler.generate(packTokens(asked), params, {
        signal: options.signal,
        ...(onProgress && { onProgress: done => onProgress(before + done, all.length * maxNewTokens) }),
      })
      for (const [i, completion] of unpackCompletions(sampled).entries()) {
        live[i]!.add(cut(completion, most[i]!), context.tokenizer, sampled.versions?.[i])
      }
      await Promise.all(live.map(episode => answer(episode, turn, context, options, patience)))
      live = live.filter(({ isOver }) => !isOver)
    }
    return all.map(episode => episode.toRollout())
  } catch (error) {
    failed.abort(error)
    throw error
  }
}

/** An episode in progress. */
class Running {
  readonly episode: Episode
  readonly turns: Turn[] = []
  tokensLeft: number
  isOver = false
  #finishReason: FinishReason = 'stop'
  #verdict: Verdict | undefined
  #version: number | undefined

  constructor(
    readonly prompt: EncodedPrompt,
    readonly state: unknown,
    readonly maxNewTokens: number,
  ) {
    this.episode = new Episode(prompt.promptIds)
    this.tokensLeft = maxNewTokens
  }

  /** Those behind the prompt. */
  get tokens(): number {
    return this.maxNewTokens - this.tokensLeft
  }

  get finishReason(): FinishReason {
    return this.#finishReason
  }

  /** The model's turn. */
  add(completion: Completion, { decode }: Pick<Tokenizer, 'decode'>, version: number | undefined): void {
    const { tokenIds, finishReason } = completion
    this.episode.addCompletion(completion)
    this.tokensLeft -= tokenIds.length
    this.#finishReason = finishReason
    this.turns.push({ completion: decode(finishReason === 'stop' ? tokenIds.subarray(0, -1) : tokenIds) })
    if (version !== undefined) this.#version = Math.min(version, this.#version ?? version)
  }

  /** The environment's turn, of which the model reads the tokens next; absent where there is no next turn. */
  observe(observation: string, tokenIds?: readonly number[]): void {
    this.turns.push({ ...this.turns.pop()!, observation })
    if (!tokenIds) return
    this.episode.addContext(tokenIds)
    this.tokensLeft -= tokenIds.length
  }

  /** No verdict: the verifier is to judge. */
  end(verdict?: Verdict): void {
    this.isOver = true
    this.#verdict = verdict
  }

  /** The end of an episode that is not done. */
  stop(reason: string): void {
    this.#finishReason = 'length'
    this.end({ reward: 0, reason })
  }

  toRollout(): Rollout {
    const { problem, promptIds } = this.prompt
    const { tokenIds, completionMask, oldLogprobs } = this.episode.toSequence({ advantage: 0 })
    const behind = (list: ArrayLike<number>) => Array.from(list).slice(promptIds.length)
    return {
      ...{ problem, promptIds },
      completionIds: Int32Array.from(behind(tokenIds)),
      logprobs: Float32Array.from(behind(oldLogprobs!)),
      finishReason: this.#finishReason,
      completion: this.turns.at(-1)!.completion,
      completionMask: behind(completionMask),
      turns: this.turns,
      ...(this.#verdict && { verdict: this.#verdict }),
      ...(this.#version !== undefined && { version: this.#version }),
    }
  }
}

/** The environment's turn in an episode. */
async function answer(
  running: Running,
  turn: number,
  { tokenizer, template, environment }: RolloutContext & { readonly environment: NamedEnvironment },
  { maxTurns }: EpisodeOptions,
  patience: Patience,
): Promise<void> {
  const { prompt, state, tokensLeft, finishReason } = running
  const { completion } = running.turns.at(-1)!
  const isLast = turn === maxTurns || tokensLeft === 0
  const context = { turn, maxTurns, isLast, tokensLeft, finishReason }
  const result = await stepEpisode(environment, prompt.problem, state, completion, context, patience)
  if (result.done) {
    const { reward, reason = '' } = result
    running.end(reward === undefined ? undefined : { reward, reason })
    return
  }
  const { observation, role } = result
  if (isLast) {
    running.observe(observation)
    running.stop(turn === maxTurns ? `not done after ${maxTurns} turns` : 'not done when no token was left')
    return
  }
  const isEnded = finishReason === 'stop'
  const text = template.renderNext?.({ role, content: observation }, isEnded) ?? observation
  const tokenIds = encoded(tokenizer, text, `problem "${prompt.problem.id}", observation of turn ${turn}`)
  if (tokenIds.length < tokensLeft) {
    running.observe(observation, tokenIds)
  } else {
    running.observe(observation)
    running.stop(
      `not done: the observation's ${tokenIds.length} tokens leave none of ${tokensLeft} for a turn`,
    )
  }
}

function encoded(tokenizer: Pick<Tokenizer, 'encode'>, text: string, what: string): number[] {
  try {
    return tokenizer.encode(text)
  } catch (error) {
    if (!(error instanceof RapoError)) throw error
    throw new RapoError(error.code, `${what}: ${error.message}`, { cause: error })
  }
}

/** The first tokens of a completion that was sampled with a higher limit than its own. */
function cut({ tokenIds, logprobs, finishReason }: Completion, most: number): Completion {
  if (tokenIds.length <= most) return { tokenIds, logprobs, finishReason }
  return {
    tokenIds: tokenIds.slice(0, most),
    logprobs: logprobs.slice(0, most),
    finishReason: 'length',
  }
}
