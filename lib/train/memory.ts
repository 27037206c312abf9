/** Predicts the memory that a run will need, part by part, before anything is loaded. */
import { freemem } from 'node:os'
import { RapoError } from '../base/errors.js'
import { byteSize } from '../base/text.js'
import type { Config } from '../config/config.js'
import { trainingOptions } from '../config/config.js'
import type { EncodedPrompt } from '../data/prompts.js'
import type { MemoryPrediction } from '../model/engine.js'

/** Bytes of Node, libtorch's code and the problems, measured with an empty run. */
const PROGRAM_BYTES = 3.5e8

export interface MemoryPlan extends MemoryPrediction {
  readonly program: number
  /** Bytes at the worst moment: the parts that are held all the time, plus the larger of the additions by training and generation. */
  readonly peak: number
}

/** The sum over parts. MemoryPrediction says when each part is held. */
export function planMemory(m: MemoryPrediction): MemoryPlan {
  const program = PROGRAM_BYTES
  const held = program + m.weights + m.masters + m.moments + m.gradients + m.reference
  return { ...m, program, peak: held + Math.max(m.activations + m.logits, m.merged + m.cache + m.sampling) }
}

/** The plan of one of `processes` processes of a training run that uses all of these prompts, and of its evaluations (eval.every) on others. */
export async function planRun(
  config: Config,
  dirs: { readonly modelDir: string; readonly referenceDir: string },
  prompts: readonly EncodedPrompt[],
  evalPrompts: readonly EncodedPrompt[] = [],
  processes = 1,
): Promise<MemoryPlan> {
  const engine = await import('../model/engine.js')
  const { promptsPerStep, groupSize, maxNewTokens } = config.sampling
  const { samplesPerCall, samplesInTraining } = config.eval
  const evaluated = Math.min(
    Math.max(samplesPerCall, samplesInTraining),
    evalPrompts.length * samplesInTraining,
  )
  const promptTokens = [...prompts, ...evalPrompts].reduce(
    (longest, { promptIds }) => Math.max(longest, promptIds.length),
    0,
  )
  const shape = {
    promptTokens,
    maxNewTokens,
    sequences: Math.max(Math.ceil(promptsPerStep / processes) * groupSize, evaluated),
    processes,
  }
  const options = trainingOptions(config, dirs.referenceDir)
  const prediction = await engine.predictMemory(dirs.modelDir, options, shape)
  // Between the turns of episodes as much is kept again (SamplingParams.turn).
  const turns = config.task.environment === undefined ? 1 : 2
  return planMemory({ ...prediction, cache: turns * prediction.cache })
}

/** Number of bytes that this process may still take. */
export function availableMemory(): number {
  return process.availableMemory?.() ?? freemem()
}

/** Throws ERR_RAPO_OUT_OF_MEMORY, which lists the parts and what would help, if the plan does not fit. */
export function checkMemory(plan: MemoryPlan, available = availableMemory()): void {
  if (plan.peak <= available) return
  throw new RapoError(
    'ERR_RAPO_OUT_OF_MEMORY',
    `the run needs ${byteSize(plan.peak)} of memory, ${byteSize(available)} are available\n${formatMemory(plan)}\n` +
      'less of it: model.dtype bfloat16, optimizer.stateDtype bfloat16, lora.r 16, lora.merge false, optimizer.recompute true, a smaller model; the reference counts only with a penalty',
  )
}

const labels: Record<keyof MemoryPlan, string> = {
  program: 'program',
  weights: 'weights',
  masters: 'masters (float32)',
  moments: 'moments',
  gradients: 'gradients (float32)',
  reference: 'reference',
  activations: 'activations, in training',
  logits: 'logits of a chunk, in training',
  merged: 'merged weights, in generation',
  cache: 'key/value cache, in generation',
  sampling: 'logits and layers, in generation',
  peak: 'peak',
}

/** The plan as lines for people. */
export function formatMemory(plan: MemoryPlan): string {
  return Object.entries(labels)
    .map(([part, label]) => `  ${label.padEnd(33)}${byteSize(plan[part as keyof MemoryPlan]).padStart(9)}`)
    .join('\n')
}
