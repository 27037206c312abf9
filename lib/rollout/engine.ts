/** Rollout engines sample completions. Training and evaluation work with any of them. */
import { RapoError } from '../base/errors.js'
import { anySignal } from '../base/wait.js'
import type { CallOptions, Completions, PackedTokens, Policy, SamplingParams } from '../model/policy.js'

/** Completions, and the weights that sampled them. */
export interface SampledCompletions extends Completions {
  /**
   * (B) one per completion: the version of the weights, as given to syncWeights. If an update came while the completion was
   * sampled, the oldest version.
   */
  readonly versions: Int32Array
  /** (B) of the completions during which an update came, where the server told: the version that sampled each token. */
  readonly tokenVersions?: readonly (readonly number[] | undefined)[]
}

/** Samples completions from the weights that the last syncWeights gave it. */
export interface RolloutEngine {
  /**
   * Samples sampling.n completions of each prompt, in the order prompt 0 sample 0, prompt 0 sample 1, …, with the log-probs
   * that Completions describes. Calls may overlap. Throws ERR_RAPO_INVALID_ARGUMENT before the first syncWeights.
   */
  generate(
    prompts: PackedTokens,
    sampling: SamplingParams,
    options?: CallOptions,
  ): Promise<SampledCompletions>
  /**
   * Gives the engine the policy's current weights under the number `version`, a whole number ≥ 0 such as the number of
   * training steps done. Calls of generate after the promise settles sample from these weights. Call it before the first
   * generate and after every change of the policy's weights. A version that the engine holds already is not sent again.
   */
  syncWeights(version: number, options?: CallOptions): Promise<void>
  /** A description of the engine in one line. */
  describe(): string
  /** Closes the engine, not the policy. Calls in progress are aborted; later calls throw. */
  close(): Promise<void>
}

/** The sampler of rolloutGroups: a rollout engine, or a policy, whose completions have no version. */
export interface Sampler {
  /** See RolloutEngine.generate. */
  generate(
    prompts: PackedTokens,
    sampling: SamplingParams,
    options?: CallOptions,
  ): Promise<Completions & Partial<Pick<SampledCompletions, 'versions' | 'tokenVersions'>>>
}

/** The errors that every rollout engine has. */
export const noWeights = () =>
  new RapoError('ERR_RAPO_INVALID_ARGUMENT', 'generate needs weights: call syncWeights first')
export const wasClosed = () => new RapoError('ERR_RAPO_INVALID_ARGUMENT', 'the rollout engine was closed')

/** Throws ERR_RAPO_INVALID_ARGUMENT for what syncWeights does not take. */
export function checkVersion(version: number): void {
  if (!(Number.isSafeInteger(version) && version >= 0)) {
    throw new RapoError('ERR_RAPO_INVALID_ARGUMENT', `version is ${version}, expected a whole number ≥ 0`)
  }
}

/** Samples from the policy itself, in this process. No weights are copied, and the same seed gives the same bits. */
export function localEngine(policy: Pick<Policy, 'generate' | 'info'>): RolloutEngine {
  let version: number | undefined
  const closing = new AbortController()
  return {
    async generate(prompts, sampling, options) {
      closing.signal.throwIfAborted()
      if (version === undefined) throw noWeights()
      const sampled = version
      const signal = anySignal(closing.signal, options?.signal)
      const completions = await policy.generate(prompts, sampling, { ...options, signal })
      return { ...completions, versions: new Int32Array(completions.finishReasons.length).fill(sampled) }
    },
    async syncWeights(next) {
      closing.signal.throwIfAborted()
      checkVersion(next)
      version = next
    },
    describe: () => `the policy itself, ${policy.info.dtype}`,
    async close() {
      closing.abort(wasClosed())
    },
  }
}
