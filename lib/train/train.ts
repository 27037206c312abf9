/** The training loop: problems → rollouts → rewards → advantages → batches → optimizer steps. */
import { RapoError, reasonOf } from '../base/errors.js'
import { appendJsonLines } from '../base/jsonl.js'
import { told } from '../base/wait.js'
import type { Config } from '../config/config.js'
import { kernelObjective } from '../config/objective.js'
import { multiObjectiveAdvantages, type PhiRange, referenceWeights } from '../loss/advantage.js'
import { addMetrics, emptyMetrics } from '../loss/objective.js'
import { splitEvenly, tokenWeights } from '../model/batch.js'
import type { StepResult } from '../model/policy.js'
import { rolloutSequence, type ScoredRollout } from '../rollout/rollout.js'
import { alone, isApart, type World } from '../world/world.js'
import { accumulateShare } from './accumulate.js'
import type { Ahead } from './ahead.js'
import { formatAhead } from './ahead-file.js'
import { markBest, type Retention, readBest, type TrainerState, writeCheckpoint } from './checkpoint.js'
import { evaluateStep, isBest, isEvaluationDue, type StepEvaluation } from './evaluation.js'
import { type Symptom, watchHealth } from './health.js'
import { emptySeconds, type Phase, type StepMetrics, summarizeStep, timed } from './metrics.js'
import { type OpenOptions, type OpenRun, openRun } from './open.js'
import { remeasure } from './remeasure.js'
import { bestAndWorst, chooseSamples, type SampleLine, toSampleLine } from './samples.js'
import { learningRateAt } from './schedule.js'

/**
 * The hooks of train, beside the options of opening a run. Hooks are awaited. If one throws, the state is saved and the run
 * ends.
 */
export interface TrainOptions extends OpenOptions {
  /** Called before the first step with the number of steps done already. */
  readonly onStart?: (stepsDone: number) => void
  /** Called when a step's lines, and its checkpoint and its evaluation if they were due, are on disk. */
  readonly onStep?: (metrics: StepMetrics) => void
  /** Called when a phase of a step begins, and for evaluations again and again with the completions done. */
  readonly onPhase?: (phase: Phase | 'eval', done?: number, total?: number) => void
  /** With eval.every: called when an evaluation's lines are on disk. */
  readonly onEvaluation?: (evaluation: StepEvaluation) => void
  /** With run.showSamples: called after the first step, and every so many steps, with the best and the worst completion. */
  readonly onSamples?: (samples: readonly SampleLine[]) => void
  /** Called after every step. If it returns true, the state is saved and the run ends. */
  readonly isStopping?: () => boolean | Promise<boolean>
}

/** An open run and its current state. */
interface Run extends OpenRun {
  /** The state after the last complete step. */
  state: TrainerState
  /** Whether the weights have changed since that state. */
  isMidStep: boolean
  /** Whether the reference has changed since the run began. */
  hasMoved: boolean
  /** The step of the newest checkpoint. */
  stepSaved: number
}

/**
 * Trains in config.run.output until config.run.steps. Returns the number of steps done. If something ends the run earlier,
 * the state after the last complete step is saved if possible. Throws RapoError. Aborting options.signal stops between tokens
 * or micro-batches; the state is saved in the same way, and the call rejects with the signal's reason.
 */
export async function train(config: Config, options: TrainOptions = {}): Promise<number> {
  const open = await openRun(config, options)
  const run: Run = Object.assign(open, { isMidStep: false, stepSaved: open.state.step })
  const health = watchHealth(config.sampling)
  const warn = async (symptoms: readonly Symptom[]) => {
    if (run.world.rank !== 0) return
    for (const { text } of symptoms) await told(options.onNotice?.(text), run.signal)
  }
  try {
    await run.world.together('starting', () => told(options.onStart?.(run.state.step), run.signal))
    await evaluate(run, config, options)
    let isStopping = false
    while (run.state.step < config.run.steps && !isStopping) {
      const step = run.state.step + 1
      const { scored, metrics, entropyCoef } = await trainStep(run, config, step, options.onPhase)
      await syncReference(run, config, step)
      const asked = await ask(options.isStopping, run)
      isStopping = asked.isStopping
      const isSaveDue = isStopping || step === config.run.steps || step % config.run.saveEvery === 0
      const state = { ...run.state, step, cursor: run.rollouts.cursor(), entropyCoef }
      const clock = { seconds: metrics.seconds, onPhase: options.onPhase }
      const saving = async () => save(run, config, state, await run.rollouts.ahead())
      const checkpoint = isSaveDue ? await timed(clock, 'save', saving) : undefined
      const toLine = (rollout: ScoredRollout) => toSampleLine(rollout, step, run.context.tokenizer)
      await run.world.together(`step ${step}, writing`, () => {
        run.lock.check()
        if (run.world.rank !== 0) return
        // Lines are written before the commit: a run killed in between drops them when it resumes, and loses none.
        appendJsonLines(run.metricsFile, [metrics])
        appendJsonLines(run.samplesFile, chooseSamples(scored, config.run.samplesPerStep).map(toLine))
        checkpoint?.commit()
      })
      if (isSaveDue) run.stepSaved = step
      run.state = state
      run.isMidStep = false
      if ('failure' in asked) throw asked.failure
      // A run that is asked to stop evaluates when it is resumed.
      if (!isStopping) await evaluate(run, config, options)
      await run.world.together(`step ${step}, hooks`, async () => {
        await run.observer.step(metrics, run.signal)
        await told(options.onStep?.(metrics), run.signal)
        const { showSamples } = config.run
        if (showSamples > 0 && (step - 1) % showSamples === 0)
          await told(options.onSamples?.(bestAndWorst(scored).map(toLine)), run.signal)
        await warn(health.add(metrics))
      })
    }
    await run.world.together('ending', () => warn(health.end()))
  } catch (error) {
    const failure = run.state.step > run.stepSaved ? await rescue(run, config, error) : error
    // The first error is the one to report.
    await run.close(error).catch(() => {})
    throw failure
  }
  await run.close()
  return run.state.step
}

/**
 * Evaluates the state, where eval.every asks for an evaluation that is not done yet; with run.keepBest makes sure that the
 * best state is in a checkpoint.
 */
async function evaluate(run: Run, config: Config, options: TrainOptions): Promise<void> {
  const { world, evaluations, state } = run
  const { output, keepBest } = config.run
  if (!evaluations) return
  const isDue = isEvaluationDue(config, evaluations, state.step)
  // A kill may have come between an evaluation and the naming of its checkpoint.
  if (!isDue && !(keepBest && evaluations.scores.has(state.step))) return
  const isWriter = world.rank === 0
  const onProgress = (done: number, total: number) => options.onPhase?.('eval', done, total)
  const evaluation = isDue ? await evaluateStep(run, evaluations, config, state.step, onProgress) : undefined
  const compare = () => keepBest && isWriter && isBest(evaluations, state.step, readBest(output))
  const [isNewBest] = await world.gather('comparing with the best evaluation', compare)
  if (isNewBest) {
    const isSaveDue = run.stepSaved !== state.step
    if (isSaveDue) options.onPhase?.('save')
    const checkpoint = isSaveDue ? await save(run, config, state, await run.rollouts.ahead()) : undefined
    await world.together('naming the best checkpoint', () => {
      run.lock.check()
      if (!isWriter) return
      checkpoint?.commit()
      markBest(output, state.step)
    })
    run.stepSaved = state.step
  }
  if (!evaluation) return
  await world.together('telling of the evaluation', () => {
    run.observer.evaluated(evaluation)
    return told(options.onEvaluation?.(evaluation), run.signal)
  })
}

/** An error of isStopping is kept and thrown after the step is finished. */
async function ask(isStopping: TrainOptions['isStopping'], { world, signal }: Run) {
  try {
    const all = await world.gather('asking whether to stop', async () => told(isStopping?.(), signal))
    return { isStopping: all.includes(true) }
  } catch (failure) {
    return { isStopping: true, failure }
  }
}

/**
 * Saves the state after the last complete step, if the weights are still those of that state, and says so in the error. The
 * gradient of the failed step is not part of the state.
 */
async function rescue(run: Run, config: Config, error: unknown): Promise<unknown> {
  const isAlone = isApart(error)
  if (run.isMidStep || run.lock.lost.aborted || (isAlone && run.world.rank !== 0)) return error
  const { step } = run.state
  const isSharded = run.world.size > 1 && config.distributed.shard !== 'none'
  const isAbort = run.signal.aborted && error === run.signal.reason
  let note = `the state after step ${step} is saved in ${config.run.output}`
  try {
    if (isAlone && isSharded)
      throw new Error('the other processes had their parts of the optimizer (distributed.shard)')
    // All checkpoints are kept, since the newest may be the cause of the error.
    const all = { keep: Infinity }
    const checkpoint = await save(run, config, run.state, [], all, isAlone ? alone : run.world)
    run.lock.check()
    checkpoint.commit()
  } catch (second) {
    note = `the state after step ${step} could not be saved: ${reasonOf(second)}`
    if (isAbort) run.notify(note)
  }
  if (isAbort || !(error instanceof RapoError) || run.world.rank !== 0) return error
  return new RapoError(error.code, `${error.message}\n${note}`, { cause: error })
}

/** One batch of rollouts and the optimizer steps on it. All randomness depends only on the run's seed and on `step`. */
async function trainStep(run: Run, config: Config, step: number, onPhase: TrainOptions['onPhase']) {
  const clock = { seconds: emptySeconds(), onPhase }
  const gathered = await run.rollouts.next(step, clock)
  const { sampled, trained, zeroAdvantageFraction, metrics: filtered } = gathered
  const learningRate = learningRateAt(step, config.optimizer, config.run.steps)
  const { sums, results, remeasured, nextEntropyCoef } = await timed(clock, 'train', () =>
    update(run, trained, config, learningRate),
  )
  const taken = results.length > 0 ? results : [{ gradNorm: 0, skipped: false }]
  const measured = summarizeStep(sampled, config.sampling.groupSize, sums, taken)
  const skippedSteps = measured.skippedSteps + config.optimizer.stepsPerBatch - results.length
  const metrics: StepMetrics = {
    ...{ step, ...measured, zeroAdvantageFraction, skippedSteps },
    ...{ ...remeasured, ...filtered, ...run.rollouts.measure(step), learningRate, seconds: clock.seconds },
  }
  return { scored: sampled, metrics, entropyCoef: nextEntropyCoef }
}

/** optimizer.stepsPerBatch optimizer steps, each on its share of the groups. */
async function update(run: Run, scored: readonly ScoredRollout[], config: Config, learningRate: number) {
  const { policy, signal } = run
  const { penalty, aggregation, phi, maskTruncatedCompletions, ...range } = config.objective
  const { groupSize, maxNewTokens } = config.sampling
  const rewards = scored.map(rollout => rollout.reward)
  const advantages = advantagesOf(scored, config)
  // The reverse penalties are defined with φ = 1 (docs/objective.md).
  const refWeights = penalty.startsWith('forward')
    ? referenceWeights(rewards, { shape: phi, ...range } as PhiRange)
    : undefined
  const sampled = scored.map((rollout, i) => {
    const sequence = rolloutSequence(rollout, {
      advantage: advantages[i]!,
      ...(refWeights && { refWeight: refWeights[i]! }),
    })
    // A masked completion's reward still counts in the mean of its group.
    const isMasked = maskTruncatedCompletions && rollout.finishReason === 'length'
    return isMasked
      ? { ...sequence, completionMask: new Uint8Array(sequence.completionMask.length) }
      : sequence
  })
  const { sequences, entropyCoef, nextEntropyCoef, metrics } = await remeasure(
    run,
    sampled,
    config,
    run.state.entropyCoef!,
    { signal },
  )
  const objective = kernelObjective(config, entropyCoef)
  let sums = emptyMetrics
  const results: StepResult[] = []
  const groups = splitEvenly(sequences, sequences.length / groupSize)
  for (const part of splitEvenly(groups, config.optimizer.stepsPerBatch)) {
    const miniBatch = part.flat()
    // sampling.filterGroups may leave fewer groups than optimizer steps.
    if (miniBatch.length === 0) continue
    const weights = splitEvenly(tokenWeights(miniBatch, aggregation, maxNewTokens), part.length)
    // A batch whose first optimizer step is done is finished: half of one could not be resumed.
    const stop = run.isMidStep ? undefined : signal
    const all = await accumulateShare(run, part, weights, objective, config, stop)
    sums = all.reduce(addMetrics, sums)
    run.isMidStep = true
    // Adds up the gradients of all ranks.
    results.push(await policy.step(learningRate))
  }
  return { sums, results, remeasured: metrics, nextEntropyCoef }
}

function advantagesOf(scored: readonly ScoredRollout[], { objective, sampling }: Config): number[] {
  const { advantageBaseline, advantageScale, multiObjectiveAggregation } = objective
  const parts = (scored[0]?.parts ?? [{ weight: 1 }]).map(({ weight }, k) => ({
    weight,
    rewards: scored.map(({ reward, parts }) => (parts ? parts[k]!.reward : reward)),
  }))
  return multiObjectiveAdvantages(parts, sampling.groupSize, {
    baseline: advantageBaseline,
    scale: advantageScale,
    aggregation: multiObjectiveAggregation,
  })
}

/** TR-DPO (arXiv 2404.09656): every model.refModelSyncSteps steps the reference moves to the policy. */
async function syncReference(run: Run, { model }: Config, step: number): Promise<void> {
  if (model.refModelSyncSteps === 0 || step % model.refModelSyncSteps !== 0) return
  run.isMidStep = true
  await run.policy.syncReference!(model.refModelMixupAlpha)
  run.hasMoved = true
}

/** All ranks wait until the checkpoint is written, and learn whether it could be. */
async function save(
  run: Run,
  { run: { output, keepCheckpoints, saveOptimizer }, distributed }: Config,
  state: TrainerState,
  ahead: readonly Ahead[],
  retention: Retention = { keep: keepCheckpoints, states: saveOptimizer },
  world: World = run.world,
) {
  const { policy, modelDir, baseModel, lock, hasMoved } = run
  await world.together(`the checkpoint of step ${state.step}`, lock.check)
  const rollouts = ahead.length > 0 ? formatAhead(ahead) : undefined
  const isSharded = distributed.shard !== 'none'
  return writeCheckpoint(output, modelDir, policy, state, retention, {
    ...{ hasMoved, baseModel, rollouts, world, isSharded },
  })
}
