/** The training loop: problems → rollouts → rewards → advantages → batches → optimizer steps. */
import { appendJsonLines } from '../base/jsonl.js'
import { deriveSeed } from '../base/random.js'
import type { Config } from '../config/config.js'
import { kernelObjective } from '../config/objective.js'
import { encodePrompt } from '../data/prompts.js'
import { groupAdvantages, type PhiRange, referenceWeights } from '../loss/advantage.js'
import { addMetrics, emptyMetrics } from '../loss/objective.js'
import { splitBatch, splitEvenly, tokenWeights, toSequence } from '../model/batch.js'
import type { Policy, StepResult } from '../model/policy.js'
import { rolloutGroups, type ScoredRollout, samplingParams, score } from '../rollout/rollout.js'
import { type TrainerState, writeCheckpoint } from './checkpoint.js'
import { type PhaseSeconds, type StepMetrics, summarizeStep } from './metrics.js'
import { type OpenOptions, type OpenRun, openRun } from './open.js'
import { remeasure } from './remeasure.js'

/** Hooks into train, beside what opening a run takes. */
export interface TrainOptions extends OpenOptions {
  /** Called before the first step with the number of steps done already. */
  readonly onStart?: (stepsDone: number) => void
  /** Called when a step's lines, and its checkpoint where one was due, are on disk. */
  readonly onStep?: (metrics: StepMetrics) => void
  /** Asked after every step: true saves and ends the run there. */
  readonly isStopping?: () => boolean
}

/** Trains in config.run.output until config.run.steps. Returns the number of steps done. Throws RapoError. */
export async function train(config: Config, options: TrainOptions = {}): Promise<number> {
  const run = await openRun(config, options)
  try {
    options.onStart?.(run.stepsDone)
    let step = run.stepsDone
    let entropyCoef = run.entropyCoef
    let isStopping = false
    while (step < config.run.steps && !isStopping) {
      step++
      const { scored, metrics, nextEntropyCoef } = await trainStep(run, config, step, entropyCoef)
      entropyCoef = nextEntropyCoef
      isStopping = options.isStopping?.() ?? false
      const isSaveDue = isStopping || step === config.run.steps || step % config.run.saveEvery === 0
      const state = { step, cursor: run.cursor.state(), entropyCoef }
      const checkpoint = isSaveDue
        ? await timed(metrics.seconds, 'save', save(run, config, state))
        : undefined
      // Before the commit: a run killed in between drops these lines when it resumes, and loses none.
      appendJsonLines(run.metricsFile, [metrics])
      appendJsonLines(run.samplesFile, chooseSamples(scored, config.run.samplesPerStep, step))
      checkpoint?.commit()
      await run.observer.step(metrics)
      options.onStep?.(metrics)
    }
    return step
  } finally {
    await run.close()
  }
}

/** One batch of rollouts, and the optimizer steps on it. All that is random depends on the run's seed and `step` alone. */
async function trainStep(run: OpenRun, config: Config, step: number, entropyCoef: number) {
  const { policy, context, cursor, stopTokenIds, verifier } = run
  const { sampling } = config
  const seconds: PhaseSeconds = { rollout: 0, score: 0, train: 0, save: 0 }
  const prompts = cursor.next(sampling.promptsPerStep).map(problem => encodePrompt(problem, context))
  const seed = deriveSeed(config.run.seed, 'rollout', step)
  const params = samplingParams(sampling, { n: sampling.groupSize, stopTokenIds, seed })
  const rollouts = await timed(seconds, 'rollout', rolloutGroups(policy, context.tokenizer, prompts, params))
  const scored = await timed(seconds, 'score', score(rollouts, verifier))
  const learningRate = learningRateAt(step, config.optimizer, config.run.steps)
  const updating = update(policy, scored, config, learningRate, entropyCoef)
  const { sums, results, remeasured, nextEntropyCoef } = await timed(seconds, 'train', updating)
  const measured = summarizeStep(scored, sampling.groupSize, sums, results)
  const metrics: StepMetrics = { step, ...measured, ...remeasured, learningRate, seconds }
  return { scored, metrics, nextEntropyCoef }
}

/** optimizer.stepsPerBatch optimizer steps, each on its share of the groups. */
async function update(
  policy: Policy,
  scored: readonly ScoredRollout[],
  config: Config,
  learningRate: number,
  carriedEntropyCoef: number,
) {
  const { penalty, aggregation, advantageBaseline, advantageScale, phi, ...range } = config.objective
  const { groupSize, maxNewTokens } = config.sampling
  const rewards = scored.map(rollout => rollout.reward)
  const options = { baseline: advantageBaseline, scale: advantageScale }
  const advantages = groupAdvantages(rewards, groupSize, options)
  // The reverse penalties are defined with φ = 1 (docs/objective.md).
  const refWeights = penalty.startsWith('forward')
    ? referenceWeights(rewards, { shape: phi, ...range } as PhiRange)
    : undefined
  const sampled = scored.map(({ promptIds, completionIds, logprobs }, i) =>
    toSequence(promptIds, completionIds, {
      advantage: advantages[i]!,
      oldLogprobs: logprobs,
      ...(refWeights && { refWeight: refWeights[i]! }),
    }),
  )
  const { sequences, entropyCoef, nextEntropyCoef, metrics } = await remeasure(
    policy,
    sampled,
    config,
    carriedEntropyCoef,
  )
  const objective = kernelObjective(config, entropyCoef)
  let sums = emptyMetrics
  const results: StepResult[] = []
  const groups = splitEvenly(sequences, sequences.length / groupSize)
  for (const part of splitEvenly(groups, config.optimizer.stepsPerBatch)) {
    const miniBatch = part.flat()
    const weights = tokenWeights(miniBatch, aggregation, maxNewTokens)
    for (const microBatch of splitBatch(miniBatch, weights, config.optimizer.microBatchTokens)) {
      sums = addMetrics(sums, await policy.accumulate(microBatch, objective))
    }
    results.push(await policy.step(learningRate))
  }
  return { sums, results, remeasured: metrics, nextEntropyCoef }
}

/** Linear warm-up to the peak, then the schedule. step counts from 1. */
export function learningRateAt(step: number, optimizer: Config['optimizer'], steps: number): number {
  const { learningRate, warmupSteps, schedule } = optimizer
  if (step <= warmupSteps) return (learningRate * step) / warmupSteps
  const progress = (step - 1 - warmupSteps) / Math.max(1, steps - warmupSteps)
  if (schedule === 'linear') return learningRate * (1 - progress)
  if (schedule === 'cosine') return (learningRate * (1 + Math.cos(Math.PI * progress))) / 2
  return learningRate
}

function save({ policy, modelDir }: OpenRun, { run }: Config, state: TrainerState) {
  return writeCheckpoint(run.output, modelDir, policy, state, run.keepCheckpoints)
}

async function timed<T>(seconds: PhaseSeconds, phase: keyof PhaseSeconds, work: Promise<T>): Promise<T> {
  const start = performance.now()
  const result = await work
  seconds[phase] += (performance.now() - start) / 1000
  return result
}

/** `count` rollouts spread over the batch, as lines of samples.jsonl. */
function chooseSamples(scored: readonly ScoredRollout[], count: number, step: number): object[] {
  const chosen = Math.min(count, scored.length)
  return Array.from({ length: chosen }, (_, i) => {
    const { problem, completion, reward, reason, finishReason } =
      scored[Math.floor((i * scored.length) / chosen)]!
    return { step, problemId: problem.id, prompt: problem.prompt, completion, reward, reason, finishReason }
  })
}
