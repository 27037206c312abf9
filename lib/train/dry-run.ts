/** A configuration tried without training: one group is sampled and judged, and nothing is written. */
import { deriveSeed } from '../base/random.js'
import { told } from '../base/wait.js'
import type { Config } from '../config/config.js'
import { createCursor } from '../data/cursor.js'
import type { Problem } from '../data/problems.js'
import { encodePrompt, fitModel } from '../data/prompts.js'
import { openPolicy } from '../model/engine.js'
import type { Device } from '../model/policy.js'
import { checkTokenizerFits } from '../model/tokenizer.js'
import { rolloutGroups, type ScoredRollout, samplingParams, scoreParts } from '../rollout/rollout.js'
import { fewProblems, type OpenOptions, prepareRun, type Room } from './open.js'

/** What a run would begin with. */
export interface DryRun {
  /** The first problem of the run. */
  readonly problem: Problem
  /** The problem in the template, as the model gets it. */
  readonly prompt: string
  readonly promptTokens: number
  /** sampling.groupSize completions of the prompt, judged. */
  readonly rollouts: readonly ScoredRollout[]
  /** Absent where options.loadPolicy loads the model. */
  readonly room: Room | undefined
}

/**
 * Reads and checks all that train would, loads the model for sampling alone, samples a group of the first problem, and
 * judges the group. Writes nothing; run.output may be missing. Throws RapoError.
 */
export async function dryRun(
  config: Config,
  options: Omit<OpenOptions, 'resume' | 'overwrite'> = {},
): Promise<DryRun> {
  const { model, run, sampling, task } = config
  const prepared = await prepareRun(config, options)
  const { rewards, data, modelDir, stopTokenIds, encode, fitting, room } = prepared
  const { signal } = options
  const inference = { dtype: model.dtype, device: model.device as Device, trainable: false, signal }
  const policy = await openPolicy(modelDir, inference, run.threads, options)
  try {
    checkTokenizerFits(encode.tokenizer, policy.info, modelDir)
    const context = { ...encode, info: policy.info }
    const usable = fitModel(fitting, context, data).map(({ problem }) => problem)
    if (usable.length < sampling.promptsPerStep)
      await told(options.onNotice?.(fewProblems(usable.length, config)), signal)
    const problem = createCursor(usable, run.seed).next(1)[0]!
    const encoded = encodePrompt(problem, context)
    const seed = deriveSeed(run.seed, 'rollout', 1)
    const params = samplingParams(sampling, { n: sampling.groupSize, stopTokenIds, seed })
    const rollouts = await rolloutGroups(policy, encode.tokenizer, [encoded], params, { signal })
    const { maxNewTokens } = sampling
    return {
      problem,
      prompt: encode.template.render(problem.messages ?? problem.prompt),
      promptTokens: encoded.promptIds.length,
      rollouts: await scoreParts(rollouts, rewards, { ...task, maxNewTokens, signal }),
      room,
    }
  } finally {
    await policy.dispose()
  }
}
