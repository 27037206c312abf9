/** Opens the rollout engine that a configuration names. */
import path from 'node:path'
import { RapoError } from '../base/errors.js'
import type { Config } from '../config/config.js'
import { canaryToleranceOf, type Sync } from '../config/rollouts.js'
import { checkNccl } from '../model/broadcast.js'
import type { Policy } from '../model/policy.js'
import { localEngine, type RolloutEngine } from './engine.js'
import { broadcastWeights } from './servers/broadcast.js'
import type { Canary } from './servers/canary.js'
import type { KnownText } from './servers/checks.js'
import { serverEngine } from './servers/engine.js'
import type { InferenceServer } from './servers/server.js'
import { sglangServer } from './servers/sglang.js'
import type { WeightSync } from './servers/sync.js'
import { vllmServer } from './servers/vllm.js'
import { adapterWeights, diskWeights, fixedWeights } from './servers/weights.js'

/** The part of the configuration that an engine depends on. */
export interface EngineConfig {
  readonly model: Pick<Config['model'], 'dtype' | 'device'>
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
  const { rollouts } = config
  const { policy, fixedDir, text, onNotice } = parts
  if (rollouts.engine === 'local') return localEngine(policy)
  const sync = fixedDir === undefined ? rollouts.sync : 'disk'
  return serverEngine({
    servers: connectServers({ ...rollouts, sync }),
    policy,
    weights: fixedDir === undefined ? syncOf(config, parts) : fixedWeights(fixedDir),
    canary: canaryOf(config, parts),
    ...{ text, onNotice, fixedDir, contextNeeded: contextNeeded(config, parts) },
    timeoutSeconds: rollouts.timeoutSeconds,
    maxInFlight: rollouts.maxInFlight,
    sendSeeds: rollouts.sendSeeds,
    isOverlapped: rollouts.maxStaleness > 0 && fixedDir === undefined,
    isInFlight: rollouts.maxStaleness > 1 && fixedDir === undefined,
  })
}

/** How the policy's weights reach the servers. */
function syncOf(config: EngineConfig, { policy, modelDir }: EngineParts): WeightSync {
  const { rollouts, run } = config
  const { sync } = rollouts
  if (sync === 'nccl' || sync === 'gloo') {
    checkSync(config, policy)
    return broadcastWeights(policy, { backend: sync, library: ncclLibrary() })
  }
  const syncDir = rollouts.syncDir || path.join(run.output, 'weights')
  const place = { syncDir, owner: run.output, modelDir }
  return sync === 'adapter' ? adapterWeights(policy, place) : diskWeights(policy, place)
}

/** The file of NCCL, where another one than the libnccl.so.2 that libtorch has loaded is wanted. Tests name their own. */
const ncclLibrary = (): string | undefined => process.env.RAPO_NCCL_LIBRARY || undefined

/**
 * Throws ERR_RAPO_CONFIG where the policy's weights cannot reach servers as rollouts.sync says, and ERR_RAPO_DEVICE where NCCL
 * cannot be loaded.
 * @param policy absent: the engine's own, before it is loaded
 */
export function checkSync(
  { model, rollouts: { sync, engine } }: Pick<EngineConfig, 'model' | 'rollouts'>,
  policy?: Pick<Policy, 'openGroup'>,
): void {
  if (engine === 'local' || (sync !== 'nccl' && sync !== 'gloo')) return
  const refuse = (why: string) => {
    throw new RapoError('ERR_RAPO_CONFIG', `rollouts.sync is ${sync}; ${why}`)
  }
  if (policy && !policy.openGroup) refuse('it must be disk for a policy without openGroup')
  if (sync !== 'nccl' || policy) return
  const library = ncclLibrary()
  if (model.device === 'cpu' && library === undefined)
    refuse('it needs model.device cuda, since NCCL sends from the memory of a GPU: use disk')
  checkNccl(library)
}

export function connectServers({
  engine,
  urls,
  sync,
}: Pick<Config['rollouts'], 'engine' | 'urls'> & { readonly sync: Sync }): InferenceServer[] {
  return urls.map(url => (engine === 'vllm' ? vllmServer(url, sync) : sglangServer(url, sync)))
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
