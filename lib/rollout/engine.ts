/** Rollout engines: what completions are sampled by. Training and evaluation do not know which engine it is. */
import { RapoError } from '../base/errors.js'
import { anySignal } from '../base/wait.js'
import type { CallOptions, Completions, PackedTokens, Policy, SamplingParams } from '../model/policy.js'

/** Completions, and the weights that sampled them. */
export interface SampledCompletions extends Completions {
  /**
   * (B) the version of the weights, one a completion, as syncWeights was told. Where an update came while the completion
   * was sampled: the oldest version.
   */
  readonly versions: Int32Array
}

/** Samples completions from the weights that it was last given. */
export interface RolloutEngine {
  /**
   * sampling.n completions of each prompt, in the order prompt 0 sample 0, prompt 0 sample 1, …; with the log-probs that
   * Completions describes. Calls may overlap. Throws ERR_RAPO_INVALID_ARGUMENT before the first syncWeights.
   */
  generate(
    prompts: PackedTokens,
    sampling: SamplingParams,
    options?: CallOptions,
  ): Promise<SampledCompletions>
  /**
   * The policy's weights of now become `version`, a whole number ≥ 0 such as the number of training steps done. What
   * generate samples after the promise settles is sampled from them. To be called before the first generate, and after
   * every change of the policy's weights; a version that the engine holds already is not sent again.
   */
  syncWeights(version: number, options?: CallOptions): Promise<void>
  /** What samples, in a line for people. */
  describe(): string
  /** Ends the engine, not the policy: calls in progress are aborted, later calls throw. */
  close(): Promise<void>
}

/** What rolloutGroups samples with: a rollout engine, or a policy, whose completions have no version. */
export interface Sampler {
  /** As RolloutEngine.generate. */
  generate(
    prompts: PackedTokens,
    sampling: SamplingParams,
    options?: CallOptions,
  ): Promise<Completions & Partial<Pick<SampledCompletions, 'versions'>>>
}

/** Samples from the policy itself, in this process: its weights need no copy, and the same seed gives the same bits. */
export function localEngine(policy: Pick<Policy, 'generate' | 'info'>): RolloutEngine {
  let version: number | undefined
  const closing = new AbortController()
  return {
    async generate(prompts, sampling, options) {
      closing.signal.throwIfAborted()
      if (version === undefined) {
        throw new RapoError('ERR_RAPO_INVALID_ARGUMENT', 'generate needs weights: call syncWeights first')
      }
      const sampled = version
      const signal = anySignal(closing.signal, options?.signal)
      const completions = await policy.generate(prompts, sampling, { ...options, signal })
      return { ...completions, versions: new Int32Array(completions.finishReasons.length).fill(sampled) }
    },
    async syncWeights(next) {
      closing.signal.throwIfAborted()
      if (!(Number.isSafeInteger(next) && next >= 0)) {
        throw new RapoError('ERR_RAPO_INVALID_ARGUMENT', `version is ${next}, expected a whole number ≥ 0`)
      }
      version = next
    },
    describe: () => `the policy itself, ${policy.info.dtype}`,
    async close() {
      closing.abort(new RapoError('ERR_RAPO_INVALID_ARGUMENT', 'the rollout engine was closed'))
    },
  }
}
