/** Evaluation during training (eval.every): pass@k on data.eval after some of the steps, each a line of evals.jsonl. */
import { existsSync } from 'node:fs'
import { appendJsonLines, parseJsonLines, readInput, truncateJsonLines } from '../base/jsonl.js'
import type { Lock } from '../base/lock.js'
import { type Config, requireField } from '../config/config.js'
import type { DataOptions } from '../data/fields.js'
import { readProblems } from '../data/problems.js'
import { type EncodeContext, type EncodedPrompt, encodeProblems } from '../data/prompts.js'
import type { EvalResult } from '../eval/groups.js'
import { createJournal } from '../eval/journal.js'
import { measure, summarize } from '../eval/measure.js'
import type { PromptTemplate } from '../model/template.js'
import type { Tokenizer } from '../model/tokenizer.js'
import type { NamedEnvironment } from '../reward/environment.js'
import type { Verifier } from '../reward/verifier.js'
import type { RolloutEngine } from '../rollout/engine.js'
import type { World } from '../world/world.js'

/** A line of evals.jsonl: what eval.json says, without the names, and after which step. */
export interface StepEvaluation extends Omit<EvalResult, 'model' | 'name'> {
  readonly step: number
}

/** What is evaluated, and with what. */
export interface EvalSet {
  readonly prompts: readonly EncodedPrompt[]
  readonly template: PromptTemplate
  readonly stopTokenIds: readonly number[]
  readonly verifier: Verifier
}

/** Reads the problems of data.eval where eval.every asks for evaluations. Throws as readProblems and fitContext do. */
export async function readEvalSet(
  config: Config,
  {
    modelDir,
    tokenizer,
    verifier,
    options,
  }: {
    readonly modelDir: string
    readonly tokenizer: Tokenizer
    readonly verifier: Verifier
    readonly options: DataOptions
  },
): Promise<EvalSet | undefined> {
  const { data, eval: evaluation, sampling } = config
  if (evaluation.every === 0) return undefined
  requireField('data.eval', data.eval, 'the problem file of the evaluations that eval.every asks for')
  const problems = await readProblems(data.eval, verifier, options)
  const { maxNewTokens } = sampling
  const fields = { ...data, ...options }
  const { encode, stopTokenIds, fitting } = encodeProblems(
    problems,
    modelDir,
    tokenizer,
    maxNewTokens,
    fields,
  )
  return {
    prompts: fitting.slice(0, evaluation.problemsInTraining || fitting.length),
    template: encode.template,
    stopTokenIds,
    verifier,
  }
}

/** The evaluations of a run: which are done, and how good each was. */
export interface Evaluations extends EvalSet {
  /** evals.jsonl. */
  readonly file: string
  /** evals-samples.jsonl. */
  readonly samplesFile: string
  /** pass@1 of all problems, by step. */
  readonly scores: Map<number, number>
}

/** Drops what a killed process wrote of steps that are still to come. Returns pass@1 of all problems of the others, by step. */
export function truncateEvaluations(
  { file, samplesFile }: Pick<Evaluations, 'file' | 'samplesFile'>,
  stepsDone: number,
): Map<number, number> {
  truncateJsonLines(file, stepsDone)
  const lines = existsSync(file) ? parseJsonLines(readInput(file), file) : []
  const scores = new Map(
    lines.map(({ value }) => {
      const { step, groups } = value as unknown as StepEvaluation
      return [step, groups.all!.passAtK[0]!]
    }),
  )
  // Samples are written before the line of their evaluation, which is then done again.
  truncateJsonLines(samplesFile, scores.has(stepsDone) ? stepsDone : stepsDone - 1)
  return scores
}

/** Whether config asks for an evaluation after this step that is not done yet. */
export function isEvaluationDue(
  { eval: { every, onStart }, run: { steps } }: Config,
  { scores }: Evaluations,
  step: number,
) {
  const isAsked = step === 0 ? onStart : step % every === 0 || step === steps
  return isAsked && !scores.has(step)
}

/** Whether no evaluation but this one, after the first step, was better or as good. */
export function isBest({ scores }: Evaluations, step: number, best: number | undefined): boolean {
  const score = scores.get(step)
  if (score === undefined || step === 0) return false
  const bestScore = best === undefined ? undefined : scores.get(best)
  return bestScore === undefined || score > bestScore
}

/**
 * Evaluates the weights of now, which are those after `step`, on all ranks together. The same completions come as from `rapo
 * eval` with as many samples. Nothing is written before all are judged.
 */
export async function evaluateStep(
  run: {
    readonly world: World
    readonly engine: RolloutEngine
    readonly context: Pick<EncodeContext, 'tokenizer'>
    readonly environment: NamedEnvironment | undefined
    readonly lock: Lock
    readonly signal: AbortSignal
  },
  evaluations: Evaluations,
  config: Config,
  step: number,
  onProgress?: (done: number, total: number) => void,
): Promise<StepEvaluation> {
  const { world, engine, context, environment, lock, signal } = run
  const { prompts, template, stopTokenIds, verifier } = evaluations
  const { samplesInTraining: samples, keepSamples } = config.eval
  const own = { ...config, eval: { ...config.eval, samples, keepSamples: Math.min(1, keepSamples) } }
  const journal = createJournal()
  const name = `the evaluation after step ${step}`
  await world.together(name, () => engine.syncWeights(step, { signal }))
  const perProblem = await measure(prompts, own, {
    ...{
      world,
      engine,
      tokenizer: context.tokenizer,
      template,
      environment,
      stopTokenIds,
      verifier,
      journal,
      signal,
    },
    ...{ check: lock.check, onProgress },
  })
  const result = { step, ...summarize(own, perProblem, journal) }
  await world.together(`${name}, writing`, () => {
    lock.check()
    if (world.rank !== 0) return
    const lines = [...journal.samples(prompts)].map(sample => ({ step, ...sample }))
    appendJsonLines(evaluations.samplesFile, lines)
    appendJsonLines(evaluations.file, [result])
  })
  evaluations.scores.set(step, result.groups.all!.passAtK[0]!)
  return result
}

/** pass@k and maj@k of all problems by their names: { 'pass@1': 0.4, 'pass@2': 0.5, 'maj@2': 0.4, … }. */
export function scoresByName({ k: ks, groups }: Pick<EvalResult, 'k' | 'groups'>): Record<string, number> {
  const { passAtK, majority } = groups.all!
  const named = (name: string, values: readonly number[]) =>
    ks.map((k, i) => [`${name}@${k}`, values[i]!] as const)
  // maj@1 is pass@1.
  const majorities = majority ? named('maj', majority.majAtK).slice(1) : []
  return Object.fromEntries([...named('pass', passAtK), ...majorities])
}
