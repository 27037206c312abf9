/** What each server of a configuration is, and what it lacks. Nothing on the servers is changed. */
import path from 'node:path'
import { reasonOf } from '../../base/errors.js'
import type { Config } from '../../config/config.js'
import { loraOptions } from '../../config/lora.js'
import type { Sync } from '../../config/rollouts.js'
import { shapeOf } from '../../model/adapter.js'
import type { Policy } from '../../model/policy.js'
import { type CanaryParts, canaryOf, connectServers, contextNeeded, type EngineConfig } from '../open.js'
import { checkCanary } from './canary.js'
import { checkContext, checkTakesWeights, checkTokenizer } from './checks.js'
import type { ServerFacts } from './server.js'
import { versionIn } from './sync.js'

export interface ServerReport extends Partial<ServerFacts> {
  readonly url: string
  /** How a run would give it weights. */
  readonly sync: Sync
  /** What the server calls its weights, where it tells. */
  readonly weights?: string
  /** Of the log-probs from those of model.dir, in nats; absent where they were not compared. */
  readonly difference?: { readonly mean: number; readonly max: number }
  /** Why it cannot be used, or not without being started differently. */
  readonly problems: readonly string[]
  /** How to start such a server for this configuration. */
  readonly start: string
}

/** Whether a run gave it the weights, which are then not those of model.dir. */
const isRunName = (weights: string | undefined) => weights !== undefined && versionIn(weights) !== undefined

/** Seconds for an answer, unless the configuration allows less. */
const PATIENCE = 60

/**
 * Asks every server of the configuration, and compares its log-probs with the policy's, unless it holds the weights of a run.
 * @param policy of model.dir; undefined where there is none to compare with
 */
export async function surveyServers(
  config: EngineConfig & { readonly model: Pick<Config['model'], 'dir'>; readonly lora: Config['lora'] },
  { policy, ...parts }: CanaryParts & { readonly policy: Pick<Policy, 'logprobs'> | undefined },
): Promise<ServerReport[]> {
  const needed = contextNeeded(config, parts)
  const call = { timeoutSeconds: Math.min(PATIENCE, config.rollouts.timeoutSeconds) }
  const servers = connectServers(config.rollouts)
  const survey = async (server: (typeof servers)[number]): Promise<ServerReport> => {
    const problems: string[] = []
    const attempt = async <T>(work: () => T | Promise<T>): Promise<T | undefined> => {
      try {
        return await work()
      } catch (error) {
        problems.push(reasonOf(error))
        return undefined
      }
    }
    const start = startCommand(config, server.url, needed)
    const { sync } = config.rollouts
    const facts = await attempt(() => server.inspect(call))
    if (!facts) return { url: server.url, sync, problems, start }
    await attempt(() => checkTakesWeights(facts))
    await attempt(() => checkContext(server, facts, needed))
    const { text } = parts
    if (text) await attempt(() => checkTokenizer(server, text, call))
    const weights = await attempt(() => server.weightsName(call))
    const isComparable = policy && !facts.isPaused && !isRunName(weights)
    const claim = `should hold the weights of ${config.model.dir}`
    const compare = () => policy && checkCanary(server, policy, canaryOf(config, parts), claim, call)
    const difference = isComparable ? await attempt(compare) : undefined
    return {
      ...{ url: server.url, sync, ...facts, problems, start },
      ...(weights !== undefined && { weights }),
      ...(difference && { difference }),
    }
  }
  try {
    return await Promise.all(servers.map(survey))
  } finally {
    for (const server of servers) server.close()
  }
}

/** A command that starts a server at this address, such as the configuration needs. */
function startCommand(
  {
    model,
    rollouts,
    lora,
  }: {
    readonly model: Pick<Config['model'], 'dir' | 'dtype'>
    readonly rollouts: Config['rollouts']
    readonly lora: Config['lora']
  },
  url: string,
  context: number,
): string {
  const { engine, sync, maxStaleness } = rollouts
  const { port, protocol } = new URL(url)
  const dir =
    path.isAbsolute(model.dir) || !/^\.{0,2}\//.test(model.dir) ? model.dir : path.resolve(model.dir)
  const shared = `--dtype ${model.dtype} --port ${port || (protocol === 'https:' ? 443 : 80)}`
  const withAdapters = sync === 'adapter'
  if (engine === 'sglang') {
    const more = withAdapters ? sglangAdapters(lora, maxStaleness) : ''
    return `python -m sglang.launch_server --model-path ${dir} ${shared} --context-length ${context}${more}`
  }
  const variable = withAdapters ? 'VLLM_ALLOW_RUNTIME_LORA_UPDATING' : 'VLLM_SERVER_DEV_MODE'
  const transfer = sync === 'nccl' ? ` --weight-transfer-config '{"backend": "nccl"}'` : ''
  const more = withAdapters ? vllmAdapters(lora, maxStaleness) : transfer
  return `${variable}=1 vllm serve ${dir} ${shared} --max-model-len ${context} --logprobs-mode processed_logprobs --generation-config vllm${more}`
}

/** Those that --max-lora-rank takes. */
const vllmRanks = [1, 8, 16, 32, 64, 128, 256, 320, 512]

function vllmAdapters({ r }: Config['lora'], maxStaleness: number): string {
  const rank = vllmRanks.find(known => known >= r) ?? r
  return ` --enable-lora --max-lora-rank ${rank} --max-loras ${maxStaleness + 1}`
}

function sglangAdapters(lora: Config['lora'], maxStaleness: number): string {
  const { targetModules } = shapeOf(loraOptions(lora, 0))
  return ` --enable-lora --max-lora-rank ${lora.r} --lora-target-modules ${targetModules.join(' ')} --max-loras-per-batch ${maxStaleness + 2}`
}

const ways: Readonly<Record<Sync, string>> = {
  disk: 'from files',
  nccl: 'by NCCL',
  gloo: 'by Gloo',
  adapter: 'by an adapter beside them',
}

/** As lines for people. */
export function formatServers(reports: readonly ServerReport[]): string {
  return reports
    .flatMap(
      ({
        url,
        sync,
        release,
        model,
        maxModelLen,
        refusesWeights,
        isPaused,
        weights,
        difference,
        problems,
        start,
      }) => [
        url,
        ...(release === undefined
          ? []
          : [
              `  ${release}, model ${model}, context ${maxModelLen === Infinity ? 'not told' : maxModelLen}`,
              `  weights: ${weights ?? 'not named by this release'}; ${refusesWeights === undefined ? 'can be replaced' : 'cannot be replaced'} (${ways[sync]})`,
            ]),
        ...(difference
          ? [
              `  log-probs: those of model.dir at the sampling temperature, mean difference ${difference.mean.toPrecision(2)} nats a token (largest ${difference.max.toPrecision(2)})`,
            ]
          : []),
        ...(isRunName(weights) ? ['  log-probs: not compared, since it holds the weights of a run'] : []),
        ...(isPaused ? ['  it is paused; a run that uses it will resume it'] : []),
        ...problems.map(problem => `  ✗ ${problem.replaceAll('\n', '\n    ')}`),
        ...(problems.length > 0 ? [`  to start it: ${start}`] : []),
      ],
    )
    .join('\n')
}
