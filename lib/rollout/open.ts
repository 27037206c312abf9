/** Opens the rollout engine that a configuration names. */
import path from 'node:path'
import { RapoError } from '../base/errors.js'
import type { Config } from '../config/config.js'
import { canaryToleranceOf } from '../config/rollouts.js'
import type { Policy } from '../model/policy.js'
import { localEngine, type RolloutEngine } from './engine.js'
import type { Canary } from './servers/canary.js'
import type { KnownText } from './servers/checks.js'
import { serverEngine } from './servers/engine.js'
import type { InferenceServer } from './servers/server.js'
import { sglangServer } from './servers/sglang.js'
import { vllmServer } from './servers/vllm.js'
import { diskWeights, fixedWeights } from './servers/weights.js'

/** The part of the configuration that an engine depends on. */
export interface EngineConfig {
  readonly model: Pick<Config['model'], 'dtype'>
  readonly rollouts: Config['rollouts']
  readonly sampling: Pick<Config['sampling'], 'temperature' | 'maxNewTokens'>
  readonly run: Pick<Config['run'], 'output'>
}

/** What the engine samples with, beside the configuration. */
export interface EngineParts extends CanaryParts {
  readonly policy: Policy
  /** Where the tokenizer is. */
  readonly modelDir: string
  /** A directory with the policy's weights, which do not change: servers read them there. Absent: they are written for the servers. */
  readonly fixedDir?: string | undefined
  /** Told, in a text for people, what becomes of the servers. */
  readonly onNotice?: ((text: string) => void) | undefined
}

/** What servers are compared with. */
export interface CanaryParts {
  /** Token ids of what will be sampled; the longest decides how much context the servers need. */
  readonly prompts: readonly (readonly number[])[]
  /** What the servers' tokenizers must give too. */
  readonly text?: KnownText | undefined
  readonly stopTokenIds: readonly number[]
}

/** Prompts that the canary completes. */
const CANARY_PROMPTS = 4

export function openEngine(config: EngineConfig, parts: EngineParts): RolloutEngine {
  const { rollouts, run } = config
  const { policy, modelDir, fixedDir, text, onNotice } = parts
  if (rollouts.engine === 'local') return localEngine(policy)
  return serverEngine({
    servers: connectServers(rollouts),
    policy,
    weights:
      fixedDir === undefined
        ? diskWeights(policy, {
            syncDir: rollouts.syncDir || path.join(run.output, 'weights'),
            owner: run.output,
            modelDir,
          })
        : fixedWeights(fixedDir),
    canary: canaryOf(config, parts),
    ...{ text, onNotice, contextNeeded: contextNeeded(config, parts) },
    timeoutSeconds: rollouts.timeoutSeconds,
    maxInFlight: rollouts.maxInFlight,
    sendSeeds: rollouts.sendSeeds,
    isOverlapped: rollouts.maxStaleness > 0 && fixedDir === undefined,
    isInFlight: rollouts.maxStaleness > 1 && fixedDir === undefined,
    isFixed: fixedDir !== undefined,
  })
}

export function connectServers({ engine, urls }: Config['rollouts']): InferenceServer[] {
  return urls.map(engine === 'vllm' ? vllmServer : sglangServer)
}

export function canaryOf(config: EngineConfig, { prompts, stopTokenIds }: CanaryParts): Canary {
  const { temperature, maxNewTokens } = config.sampling
  return {
    prompts: prompts.slice(0, CANARY_PROMPTS),
    // Greedy completions have the log-probs of temperature 1.
    temperature: temperature || 1,
    ...{ maxNewTokens, stopTokenIds, tolerance: canaryToleranceOf(config) },
  }
}

/** Tokens of the longest prompt and its completion together. */
export function contextNeeded({ sampling }: EngineConfig, { prompts }: CanaryParts): number {
  return prompts.reduce((longest, { length }) => Math.max(longest, length), 0) + sampling.maxNewTokens
}

/**
 * Throws ERR_RAPO_CONFIG for sampling whose log-probs a server does not tell. vLLM renormalises them over the tokens that top-p,
 * top-k and min-p keep; the objective is defined with those before.
 */
export function checkFilters({
  rollouts,
  sampling,
}: {
  readonly rollouts: Pick<Config['rollouts'], 'engine'>
  readonly sampling: Pick<Config['sampling'], 'topP' | 'topK' | 'minP'>
}): void {
  if (rollouts.engine !== 'vllm') return
  const off = { topP: 1, topK: 0, minP: 0 } as const
  for (const field of ['topP', 'topK', 'minP'] as const) {
    if (sampling[field] === off[field]) continue
    throw new RapoError(
      'ERR_RAPO_CONFIG',
      `sampling.${field} is ${sampling[field]}; it must be ${off[field]} with rollouts.engine vllm, whose log-probs would be those of the kept tokens alone`,
    )
  }
}
