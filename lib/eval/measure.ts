/** Samples and judges completions of problems in calls of the engine, and counts what is correct. */
import { watched } from '../base/call.js'
import { deriveSeed } from '../base/random.js'
import { listKs } from '../base/stats.js'
import { told } from '../base/wait.js'
import type { Config } from '../config/config.js'
import { evalTemperature } from '../config/eval.js'
import type { EncodedPrompt } from '../data/prompts.js'
import { nameOf } from '../data/rows.js'
import type { Tokenizer } from '../model/tokenizer.js'
import type { Verifier } from '../reward/verifier.js'
import type { Sampler } from '../rollout/engine.js'
import { type RolloutContext, sampleRollouts } from '../rollout/episodes.js'
import { type ScoredRollout, sampledTokens, samplingParams, score } from '../rollout/rollout.js'
import { alone, type World } from '../world/world.js'
import { type EvalResult, type ProblemResult, summarizeEval } from './groups.js'
import { type Journal, listCalls, type ProgressLine } from './journal.js'

/** What measure works with. */
export interface MeasureOptions extends RolloutContext {
  readonly engine: Sampler
  readonly tokenizer: Tokenizer
  readonly stopTokenIds: readonly number[]
  readonly verifier: Verifier
  /** The ranks that measure together, each with a journal of its own. Default: this process alone. */
  readonly world?: World
  /** What is measured already, and where each call's result goes. */
  readonly journal: Journal
  /** Called before a call's result is recorded; what it throws ends the measurement. */
  readonly check?: () => void
  /** As EvaluateOptions.onProgress. */
  readonly onProgress?: ((done: number, total: number, solved: number) => unknown) | undefined
  readonly signal: AbortSignal
}

/** One call of the engine: call.count completions of each of these prompts. */
interface Unit {
  readonly prompts: readonly EncodedPrompt[]
  readonly call: ReturnType<typeof listCalls>[number]
}

/**
 * config.eval.samples completions of each prompt, as far as the journal lacks them. A problem's samples depend on
 * config.eval.seed, its id and config.eval.samplesPerCall, not on the other problems. In rounds each rank makes one call, and
 * every rank gets the results of all. The results are in the order of the prompts.
 */
export async function measure(
  prompts: readonly EncodedPrompt[],
  config: Config,
  options: MeasureOptions,
): Promise<Omit<ProblemResult, 'hardForBase'>[]> {
  const { journal, world = alone, signal } = options
  const { samples: n } = config.eval
  const report = (running = 0) => {
    const isSolved = ({ problem: { id } }: EncodedPrompt) =>
      journal.sum(id, 'n') === n && journal.sum(id, 'correct') > 0
    const solved = prompts.filter(isSolved).length
    return options.onProgress?.(journal.sum(undefined, 'n') + running, n * prompts.length, solved)
  }
  await world.together('the evaluation, beginning', () => told(report(), signal))
  const units = listUnits(prompts, config, options)
  for (let first = 0; first < units.length; first += world.size) {
    const round = units.slice(first, first + world.size)
    const unit = round[world.rank]
    const sampled = round.reduce((sum, { prompts, call }) => sum + prompts.length * call.count, 0)
    // The last one counts when it is judged. What onProgress throws waits for the end of the call.
    const reporting = watched('onProgress', (tokens: number, most: number) =>
      report(Math.floor(((sampled - 1) * tokens) / Math.max(1, most))),
    )
    const name = `the evaluation, call ${first + 1} of ${units.length}`
    const lines = await world.gather(name, () =>
      unit ? measureUnit(unit, round.length, config, options, reporting.call) : [],
    )
    await world.together(`${name}, writing`, () => {
      options.check?.()
      for (const line of lines.flat()) journal.add(line)
      reporting.failed.throwIfAborted()
      return told(report(), signal)
    })
  }
  const perProblem = prompts.map(({ problem: { id, difficulty } }) => {
    const correct = journal.sum(id, 'correct')
    const wrongVotes = journal.wrongVotes(id)
    return {
      ...{ id, ...(difficulty !== undefined && { difficulty }), n, correct },
      ...(wrongVotes && { wrongVotes }),
    }
  })
  if (perProblem.every(({ wrongVotes }) => wrongVotes)) return perProblem
  return perProblem.map(({ wrongVotes: _, ...result }) => result)
}

/** What the journal lacks, in calls of at most samplesPerCall completions. Every rank gets problems, as far as there are enough. */
function listUnits(
  prompts: readonly EncodedPrompt[],
  { eval: { samples: n, samplesPerCall } }: Config,
  { journal, world = alone }: MeasureOptions,
): Unit[] {
  const most = Math.max(1, Math.floor(samplesPerCall / n))
  const together = Math.min(most, Math.ceil(prompts.length / world.size))
  const units: Unit[] = []
  for (let first = 0; first < prompts.length; first += together) {
    const some = prompts.slice(first, first + together)
    for (const call of listCalls(n, samplesPerCall)) {
      const missing = some.filter(({ problem }) => !journal.has(problem.id, call.index))
      if (missing.length > 0) units.push({ prompts: missing, call })
    }
  }
  return units
}

/** @param calls how many ranks make a call at the same time */
async function measureUnit(
  { prompts, call }: Unit,
  calls: number,
  config: Config,
  options: MeasureOptions,
  onProgress: (done: number, total: number) => void,
): Promise<ProgressLine[]> {
  const { keepSamples } = config.eval
  const start = performance.now()
  const scored = await sample(prompts, call, config, options, onProgress)
  const seconds = (performance.now() - start) / 1000 / prompts.length / calls
  return prompts.map(({ problem, promptIds }, i) => {
    const group = scored.slice(i * call.count, (i + 1) * call.count)
    const kept = group.slice(0, Math.max(0, keepSamples - call.first))
    const answers = wrongAnswers(group)
    const renderedPrompt = options.tokenizer.decode(promptIds)
    return {
      problemId: problem.id,
      call: call.index,
      n: call.count,
      correct: group.filter(isCorrect).length,
      tokens: group.reduce((sum, rollout) => sum + sampledTokens(rollout), 0),
      seconds,
      ...(answers && { answers }),
      samples: kept.map(({ completion, reward, reason, finishReason, turns }) => ({
        ...{ problemId: problem.id, prompt: problem.prompt, renderedPrompt },
        ...{ completion, reward, reason, finishReason },
        ...(turns && { turns }),
      })),
    }
  })
}

/** The part of eval.json that does not depend on what the result is called. */
export function summarize(
  config: Config,
  perProblem: readonly ProblemResult[],
  journal: Journal,
): Omit<EvalResult, 'model' | 'name'> {
  const { samples: n, largestK, bootstrap, seed } = config.eval
  const { topP, topK, minP, maxNewTokens } = config.sampling
  const ks = listKs(n, largestK)
  return {
    problems: nameOf(config.data.eval),
    ...{ samplesPerProblem: n, temperature: evalTemperature(config), topP, topK, minP, seed, maxNewTokens },
    k: ks,
    groups: summarizeEval(perProblem, ks, bootstrap, seed),
    perProblem,
    seconds: journal.sum(undefined, 'seconds'),
    tokens: journal.sum(undefined, 'tokens'),
  }
}

/** One call: call.count completions of each prompt, judged. */
async function sample(
  prompts: readonly EncodedPrompt[],
  call: ReturnType<typeof listCalls>[number],
  config: Config,
  options: MeasureOptions,
  onProgress: (done: number, total: number) => void,
): Promise<ScoredRollout[]> {
  const { engine, stopTokenIds, verifier, signal } = options
  // Each problem's random stream is its own, whatever else is measured.
  const seeds = prompts.map(({ problem }) =>
    deriveSeed(config.eval.seed, 'eval', problem.id, ...(call.index > 0 ? [call.index] : [])),
  )
  const params = samplingParams(
    { ...config.sampling, temperature: evalTemperature(config) },
    { n: call.count, stopTokenIds, seed: seeds },
  )
  signal.throwIfAborted()
  const rollouts = await sampleRollouts(engine, options, prompts, params, {
    ...config.task,
    ...{ signal, onProgress },
  })
  const { maxNewTokens } = config.sampling
  return score(rollouts, verifier, { ...config.task, maxNewTokens, signal })
}

/** Whether pass@k counts it. */
const isCorrect = ({ reward }: ScoredRollout) => reward >= 1

/** ProgressLine.answers: undefined where a correct completion shows that the verifier gives none. */
function wrongAnswers(group: readonly ScoredRollout[]): Record<string, number> | undefined {
  if (group.some(rollout => isCorrect(rollout) && rollout.answer === undefined)) return undefined
  const votes = new Map<string, number>()
  for (const rollout of group) {
    if (isCorrect(rollout) || rollout.answer === undefined) continue
    votes.set(rollout.answer, (votes.get(rollout.answer) ?? 0) + 1)
  }
  return Object.fromEntries(votes)
}
