/** Opens the rollout engine that a configuration names. */
import path from 'node:path'
import { RapoError } from '../base/errors.js'
import type { Config } from '../config/config.js'
import { canaryToleranceOf } from '../config/rollouts.js'
import type { EncodedPrompt } from '../data/prompts.js'
import type { Policy } from '../model/policy.js'
import { localEngine, type RolloutEngine } from './engine.js'
import { serverEngine } from './servers/engine.js'
import { sglangServer } from './servers/sglang.js'
import { vllmServer } from './servers/vllm.js'
import { diskWeights, fixedWeights } from './servers/weights.js'

/** What the engine samples with, beside the configuration. */
export interface EngineParts {
  readonly policy: Policy
  /** Where the tokenizer is. */
  readonly modelDir: string
  /** Problems that will be sampled; the longest decides how much context the servers need. */
  readonly prompts: readonly EncodedPrompt[]
  /** Renders a text to token ids: what the servers' tokenizers are compared with. */
  readonly encode: (text: string) => readonly number[]
  readonly stopTokenIds: readonly number[]
  /** The weights of `modelDir` are the policy's and do not change: servers read them there. Default false. */
  readonly isFixed?: boolean
}

/** Prompts that the canary completes. */
const CANARY_PROMPTS = 4

export function openEngine(config: Config, parts: EngineParts): RolloutEngine {
  const { rollouts, sampling, run } = config
  const { policy, modelDir, prompts, encode, stopTokenIds } = parts
  if (rollouts.engine === 'local') return localEngine(policy)
  const connect = rollouts.engine === 'vllm' ? vllmServer : sglangServer
  const text = prompts[0]!.problem.prompt
  return serverEngine({
    servers: rollouts.urls.map(connect),
    policy,
    weights: parts.isFixed
      ? fixedWeights(modelDir)
      : diskWeights(policy, {
          syncDir: rollouts.syncDir || path.join(run.output, 'weights'),
          owner: run.output,
          modelDir,
        }),
    canary: {
      prompts: prompts.slice(0, CANARY_PROMPTS).map(({ promptIds }) => promptIds),
      temperature: sampling.temperature,
      maxNewTokens: sampling.maxNewTokens,
      stopTokenIds,
      tolerance: canaryToleranceOf(config),
    },
    text: { text, tokenIds: encode(text) },
    contextNeeded: Math.max(...prompts.map(({ promptIds }) => promptIds.length)) + sampling.maxNewTokens,
    timeoutSeconds: rollouts.timeoutSeconds,
    maxInFlight: rollouts.maxInFlight,
    sendSeeds: rollouts.sendSeeds,
    isOverlapped: rollouts.maxStaleness > 0 && !parts.isFixed,
  })
}

/**
 * Throws ERR_RAPO_CONFIG for sampling whose log-probs a server does not tell. vLLM renormalises them over the tokens that top-p,
 * top-k and min-p keep; the objective is defined with those before.
 */
export function checkTrainable({ rollouts, sampling }: Config): void {
  if (rollouts.engine !== 'vllm') return
  const off = { topP: 1, topK: 0, minP: 0 } as const
  for (const field of ['topP', 'topK', 'minP'] as const) {
    if (sampling[field] === off[field]) continue
    throw new RapoError(
      'ERR_RAPO_CONFIG',
      `sampling.${field} is ${sampling[field]}; it must be ${off[field]} to train with rollouts.engine vllm, whose log-probs would be those of the kept tokens alone`,
    )
  }
}
