/**
 * A run's configuration: every field once, with its default, range and help line. Files, command-line options, error
 * messages and `--help` all come from this declaration.
 */
import { z } from 'zod'
import { RapoError } from '../base/errors.js'
import type { Correction } from '../loss/correction.js'
import type { Device, PolicyOptions } from '../model/policy.js'
import { reservedArguments } from '../model/template.js'
import { correction, type ResolvedCorrection } from './correction.js'
import { data } from './data.js'
import { distributed } from './distributed.js'
import { evaluation } from './eval.js'
import { lora, loraOptions } from './lora.js'
import { model } from './model.js'
import { kernelObjective, objective, type ResolvedObjective } from './objective.js'
import { observe } from './observe.js'
import { optimizer } from './optimizer.js'
import { rollouts } from './rollouts.js'
import { run } from './run.js'
import { sampling } from './sampling.js'
import { task } from './task.js'

export const schema = z.strictObject({
  model,
  lora: lora.prefault({}),
  data: data.prefault({}),
  task,
  sampling: sampling.prefault({}),
  rollouts: rollouts.prefault({}),
  objective: objective.prefault({}),
  correction: correction.prefault({}),
  optimizer: optimizer.prefault({}),
  run: run.prefault({}),
  distributed: distributed.prefault({}),
  observe: observe.prefault({}),
  eval: evaluation.prefault({}),
})

/** A complete configuration, with its defaults filled in. */
export type Config = Omit<z.output<typeof schema>, 'objective' | 'correction'> & {
  objective: ResolvedObjective
  correction: ResolvedCorrection
}

/** Faults that concern several fields together. */
export function crossFaults(config: Config): [path: string, text: string][] {
  const { model, objective: o, correction, optimizer, sampling, data, task, rollouts } = config
  const faults: [string, string][] = []
  if (data.shard >= data.shards) {
    faults.push(['data.shard', `is ${data.shard}; it must be < data.shards, ${data.shards}`])
  }
  if (data.systemPrompt !== '' && data.template !== 'chat') {
    faults.push([
      'data.systemPrompt',
      `is given; it needs data.template chat, not ${JSON.stringify(data.template)}`,
    ])
  }
  const isChat = data.template === 'chat'
  const reserved = reservedArguments.find(name => name in (data.chatTemplateArguments ?? {}))
  if (data.chatTemplateArguments !== undefined && (reserved !== undefined || !isChat)) {
    const why = isChat ? `sets ${reserved}, which rapo sets` : 'is given; it needs data.template chat'
    faults.push(['data.chatTemplateArguments', why])
  }
  if (task.verifier === undefined && task.environment === undefined) {
    faults.push(['task.verifier', 'is missing: what rewards a completion, where no task.environment does'])
  }
  if (task.environment === undefined) {
    const needsOne = task.maxTurns !== 8 ? 'maxTurns' : 'maxTurnTokens'
    if (task.maxTurns !== 8 || task.maxTurnTokens !== undefined)
      faults.push([`task.${needsOne}`, `is ${task[needsOne]}; it needs task.environment`])
  }
  if (task.maxTurnTokens !== undefined && task.maxTurnTokens > sampling.maxNewTokens) {
    faults.push([
      'task.maxTurnTokens',
      `is ${task.maxTurnTokens}; it must be ≤ sampling.maxNewTokens, ${sampling.maxNewTokens}`,
    ])
  }
  if (task.format !== undefined && !task.rewardFuncs.includes('format')) {
    faults.push(['task.format', `is ${task.format}; it needs format among task.rewardFuncs`])
  }
  if (task.overlongBufferLen > sampling.maxNewTokens) {
    faults.push([
      'task.overlongBufferLen',
      `is ${task.overlongBufferLen}; it must be ≤ sampling.maxNewTokens, ${sampling.maxNewTokens}`,
    ])
  }
  if (task.overlongPenaltyFactor !== 1 && task.overlongBufferLen === 0) {
    faults.push([
      'task.overlongPenaltyFactor',
      `is ${task.overlongPenaltyFactor}; it needs task.overlongBufferLen`,
    ])
  }
  if (model.refModelSyncSteps > 0 && o.penalty === 'none') {
    faults.push([
      'model.refModelSyncSteps',
      `is ${model.refModelSyncSteps}; it must be 0 without a penalty: there is no reference`,
    ])
  }
  if (rollouts.engine === 'local' && rollouts.urls.length > 0) {
    faults.push(['rollouts.urls', `is ${rollouts.urls.join(', ')}; it needs rollouts.engine vllm or sglang`])
  }
  if (rollouts.engine !== 'local' && task.environment !== undefined) {
    faults.push(['rollouts.engine', `is ${rollouts.engine}; it must be local with task.environment`])
  }
  if (rollouts.engine !== 'local' && rollouts.urls.length === 0) {
    faults.push(['rollouts.urls', `is empty; rollouts.engine ${rollouts.engine} needs an address`])
  }
  if (rollouts.engine === 'local' && rollouts.maxStaleness > 0) {
    faults.push([
      'rollouts.maxStaleness',
      `is ${rollouts.maxStaleness}; it must be 0 with rollouts.engine local, which cannot sample while it trains`,
    ])
  }
  if (rollouts.maxStaleness > 1 && correction.level === 'off') {
    faults.push([
      'correction.level',
      `is off; it must be token or sequence with rollouts.maxStaleness ${rollouts.maxStaleness}: the policy's own log-probs are needed where weights of several updates sampled a completion`,
    ])
  }
  if (rollouts.maxStaleness > 1 && sampling.filterGroups !== 'off') {
    faults.push([
      'rollouts.maxStaleness',
      `is ${rollouts.maxStaleness}; it must be ≤ 1 with sampling.filterGroups ${sampling.filterGroups}, which takes further problems while a step is sampled`,
    ])
  }
  const { sync, engine } = rollouts
  if (sync !== 'disk' && engine === 'local')
    faults.push(['rollouts.sync', `is ${sync}; it needs rollouts.engine vllm or sglang`])
  if (sync === 'gloo' && engine === 'vllm')
    faults.push(['rollouts.sync', 'is gloo; it must be disk, nccl or adapter with rollouts.engine vllm'])
  if (sync === 'adapter' && config.lora.r === 0)
    faults.push(['rollouts.sync', 'is adapter; it needs lora.r, the rank of the adapter that is trained'])
  const twice = rollouts.urls.find((url, i) => rollouts.urls.indexOf(url) !== i)
  if (twice !== undefined) faults.push(['rollouts.urls', `names ${twice} twice`])
  if (optimizer.stateDtype !== 'float32' && config.distributed.shard !== 'none') {
    faults.push([
      'optimizer.stateDtype',
      `is ${optimizer.stateDtype}; it must be float32 with distributed.shard ${config.distributed.shard}`,
    ])
  }
  faults.push(...loraFaults(config))
  if (o.penalty === 'none' && o.klCoef !== 0) {
    faults.push(['objective.klCoef', `is ${o.klCoef}; it must be 0 without a penalty`])
  }
  if (o.phiMin > o.phiMax)
    faults.push(['objective.phiMin', `is ${o.phiMin}; it must be ≤ objective.phiMax, ${o.phiMax}`])
  if (o.phi === 'linear' && o.rMin! >= o.rMax)
    faults.push(['objective.rMin', `is ${o.rMin}; it must be < objective.rMax, ${o.rMax}`])
  if (o.phi === 'step' && o.rMin !== undefined)
    faults.push(['objective.rMin', `is ${o.rMin}; a step has objective.rMax alone`])
  if (!o.penalty.startsWith('forward') && (o.phiMin !== 1 || o.phiMax !== 1)) {
    const why =
      o.penalty === 'none' ? 'there is no reference' : 'reverse penalties take the reference as it is'
    faults.push(['objective.phiMin', `is ${o.phiMin}; it must be 1 with penalty ${o.penalty}: ${why}`])
  }
  if (o.entropyStep !== undefined && o.entropyTarget === undefined)
    faults.push(['objective.entropyStep', `is ${o.entropyStep}; it needs objective.entropyTarget`])
  if (correction.level === 'off') {
    const bounds: Partial<Correction> = correction as object
    for (const field of ['outside', 'low', 'high'] as const) {
      if (bounds[field] === undefined) continue
      const text = `is ${bounds[field]}; it needs correction.level token or sequence`
      faults.push([`correction.${field}`, text])
    }
  }
  // gspo has one ratio per sequence, and therefore one weight per sequence.
  if (o.surrogate === 'gspo' && o.topEntropyFraction < 1) {
    faults.push([
      'objective.topEntropyFraction',
      `is ${o.topEntropyFraction}; it must be 1 with surrogate gspo`,
    ])
  }
  if (o.surrogate === 'gspo' && correction.level === 'token')
    faults.push(['correction.level', 'is token; it must be off or sequence with surrogate gspo'])
  if (config.run.keepBest && config.eval.every === 0)
    faults.push([
      'run.keepBest',
      'is true; it needs eval.every, the steps between evaluations during training',
    ])
  if (optimizer.stepsPerBatch > sampling.promptsPerStep) {
    faults.push([
      'optimizer.stepsPerBatch',
      `is ${optimizer.stepsPerBatch}; it must be ≤ sampling.promptsPerStep, ${sampling.promptsPerStep}`,
    ])
  }
  if (faults.length > 0) return faults
  try {
    // Greedy measurements have no objective.
    kernelObjective({ objective: o, sampling: { temperature: sampling.temperature || 1 } })
  } catch (error) {
    faults.push(['objective:', (error as Error).message])
  }
  return faults
}

function loraFaults({ lora: given, model, distributed }: Config): [string, string][] {
  const defaults = lora.parse({})
  if (given.r > 0) {
    const why = 'the reference is the model without its adapter, which does not move'
    const faults: [string, string][] = []
    if (model.refModelSyncSteps > 0)
      faults.push([
        'model.refModelSyncSteps',
        `is ${model.refModelSyncSteps}; it must be 0 with lora.r: ${why}`,
      ])
    if (distributed.shard !== 'none')
      faults.push([
        'distributed.shard',
        `is ${distributed.shard}; it must be none with lora.r: an adapter's gradients and state are small`,
      ])
    return faults
  }
  return (['loraAlpha', 'targetModules', 'useRslora', 'adapterPath', 'merge'] as const)
    .filter(field => String(given[field]) !== String(defaults[field]))
    .map(field => [`lora.${field}`, `is ${given[field]}; it needs lora.r, the rank`])
}

/**
 * The engine's options for a run.
 * @param adapterDir the adapter of the checkpoint that a run with `lora` goes on from
 */
export function trainingOptions(
  { model, lora, optimizer, objective, run, distributed }: Config,
  referenceDir: string,
  adapterDir = lora.adapterPath,
): PolicyOptions {
  const { beta1, beta2, eps, weightDecay, stateDtype, maxGradNorm, recompute } = optimizer
  const hasReference = objective.penalty !== 'none'
  // Unless another one is named, the reference is the policy that the run begins with.
  const referenceAdapterDir = model.reference === undefined ? lora.adapterPath : undefined
  return {
    dtype: model.dtype,
    device: model.device as Device,
    ...(hasReference && { referenceDir }),
    ...(hasReference && referenceAdapterDir !== undefined && { referenceAdapterDir }),
    ...(adapterDir !== undefined ? { adapterDir } : lora.r > 0 && { lora: loraOptions(lora, run.seed) }),
    ...(lora.r > 0 && { mergeAdapter: lora.merge }),
    adamw: { beta1, beta2, eps, weightDecay },
    ...{ stateDtype, seed: run.seed, maxGradNorm, recompute },
    shard: distributed.shard,
  }
}

export function requireField(name: string, value: string | readonly string[], help: string): void {
  if (!value) throw new RapoError('ERR_RAPO_CONFIG', `${name} is missing: ${help}`)
}
