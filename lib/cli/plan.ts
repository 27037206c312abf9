/** What `rapo doctor --config` says of a configuration: the memory and the disk that its run will need, and its servers. */
import { reasonOf } from '../base/errors.js'
import { byteSize } from '../base/text.js'
import { type Config, requireField } from '../config/config.js'
import { readProblems } from '../data/problems.js'
import { type EncodedPrompt, encodeProblems } from '../data/prompts.js'
import { checkModel } from '../model/directory.js'
import { openPolicy } from '../model/engine.js'
import { type HubOptions, resolveModel } from '../model/hub.js'
import type { Device, LoadPolicy } from '../model/policy.js'
import { loadTokenizer } from '../model/tokenizer.js'
import { loadEnvironment } from '../reward/environments.js'
import { loadJudge } from '../reward/rewards.js'
import { checkSync } from '../rollout/open.js'
import { knownText } from '../rollout/servers/checks.js'
import { formatServers, type ServerReport, surveyServers } from '../rollout/servers/survey.js'
import { type DiskPlan, formatDisk, freeDisk, planDisk } from '../train/disk.js'
import { formatMemory, type MemoryPlan, planRun } from '../train/memory.js'

export interface Plan {
  /** Processes of the run. */
  readonly processes: number
  /** The memory of each process. */
  readonly run: MemoryPlan
  readonly disk: DiskPlan
  /** Bytes that are free where the run goes; absent where nothing says so. */
  readonly freeDisk?: number
  /** With rollouts.urls. */
  readonly servers?: readonly ServerReport[]
  /** With rollouts.urls: why the servers' log-probs were not compared with the model's. */
  readonly notCompared?: string
  /** With rollouts.urls: why this machine cannot send weights to servers as rollouts.sync says. */
  readonly cannotSend?: string
}

export interface PlanOptions {
  /** Called with the number of bytes so far while a model or data is fetched from the hub. */
  readonly onProgress?: HubOptions['onProgress']
  /** Loads the model. Default: the engine's loadPolicy. */
  readonly loadPolicy?: LoadPolicy | undefined
  /** Default 1. */
  readonly processes?: number
}

/** Loads the model only where there are servers, to compare their log-probs. Throws RapoError. */
export async function planConfig(
  config: Config,
  { onProgress, loadPolicy, processes = 1 }: PlanOptions = {},
): Promise<Plan> {
  const { model, data: section, task } = config
  requireField('data.train', section.train, 'the problem file to train on')
  const hub = onProgress ? { onProgress } : {}
  const data = { ...section, ...(onProgress && { onDownload: onProgress }) }
  const [, verifier] = await loadJudge(task, await loadEnvironment(task.environment))
  const problems = await readProblems(data.train, verifier, data)
  const modelDir = await resolveModel(model.dir, hub)
  const referenceDir = model.reference ? await resolveModel(model.reference, hub) : modelDir
  const tokenizer = loadTokenizer(modelDir)
  const { maxNewTokens } = config.sampling
  const encoded = encodeProblems(problems, modelDir, tokenizer, maxNewTokens, data)
  const { stopTokenIds, fitting: prompts } = encoded
  const run = await planRun(config, { modelDir, referenceDir }, prompts, [], processes)
  const free = await freeDisk(config.run.output || 'runs')
  const parts = { text: knownText(prompts[0]!.problem.prompt, tokenizer), prompts }
  return {
    ...{ processes, run, disk: planDisk(config, run) },
    ...(free !== undefined && { freeDisk: free }),
    ...(config.rollouts.urls.length > 0 &&
      (await survey(config, modelDir, { ...parts, stopTokenIds }, loadPolicy))),
  }
}

async function survey(
  config: Config,
  modelDir: string,
  parts: {
    readonly text: ReturnType<typeof knownText>
    readonly prompts: readonly EncodedPrompt[]
    readonly stopTokenIds: readonly number[]
  },
  loadPolicy: LoadPolicy | undefined,
): Promise<Pick<Plan, 'servers' | 'notCompared' | 'cannotSend'>> {
  const { dtype, device } = config.model
  const load = async () => {
    if (!loadPolicy) checkModel(modelDir)
    const inference = { dtype, device: device as Device, trainable: false }
    return openPolicy(modelDir, inference, config.run.threads, loadPolicy ? { loadPolicy } : {})
  }
  const loaded = await load().catch(error => ({ notCompared: reasonOf(error) }))
  const policy = 'notCompared' in loaded ? undefined : loaded
  const prompts = parts.prompts.map(({ promptIds }) => promptIds)
  try {
    const servers = await surveyServers(config, { ...parts, prompts, policy })
    const cannotSend = lackOfSending(config)
    return {
      servers,
      ...('notCompared' in loaded && loaded),
      ...(cannotSend !== undefined && { cannotSend }),
    }
  } finally {
    await policy?.dispose()
  }
}

function lackOfSending(config: Config): string | undefined {
  try {
    checkSync(config)
    return undefined
  } catch (error) {
    return reasonOf(error)
  }
}

/** @param available bytes of memory, for a process */
export function isPossible(plan: Plan, available: number) {
  const { run, disk, freeDisk = Infinity, servers = [], cannotSend } = plan
  if (cannotSend !== undefined) return false
  return run.peak <= available && disk.peak <= freeDisk && servers.every(({ problems }) => !problems.length)
}

/** As lines for people. */
export function formatPlan(plan: Plan, file: string): string {
  const { processes, run, disk, freeDisk, servers, notCompared, cannotSend } = plan
  const who = processes === 1 ? '' : ` in each of ${processes} processes`
  const free = freeDisk === undefined ? '' : `, of ${byteSize(freeDisk)} free`
  const parts = [
    `memory that ${file} will need${who}\n${formatMemory(run)}`,
    `disk that its checkpoints will need${free}\n${formatDisk(disk)}`,
    ...(servers ? [`its servers\n${formatServers(servers)}`] : []),
    ...(cannotSend === undefined ? [] : [`✗ ${cannotSend}`]),
    ...(notCompared === undefined ? [] : [`log-probs were not compared: ${notCompared}`]),
  ]
  return parts.join('\n\n')
}
