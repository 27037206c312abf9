/** rapo/rollouts.json of a checkpoint: the rollouts of the next steps, which were sampled before the checkpoint (docs/files.md). */
import { readFileSync } from 'node:fs'
import { RapoError } from '../base/errors.js'
import type { Problem } from '../data/problems.js'
import type { ScoredRollout } from '../rollout/rollout.js'
import type { Ahead } from './ahead.js'
import type { Gathered } from './gather.js'

export function formatAhead(steps: readonly Ahead[]): string {
  return `${JSON.stringify({ steps: steps.map(toWritten) })}\n`
}

function toWritten({ step, cursor, gathered }: Ahead): WrittenStep {
  const { sampled, trained, zeroAdvantageFraction, metrics } = gathered
  const isTrained = new Set(trained)
  const rollouts = sampled.map(rollout => ({
    ...rollout,
    problem: rollout.problem.id,
    completionIds: Array.from(rollout.completionIds),
    logprobs: Array.from(rollout.logprobs),
    isTrained: isTrained.has(rollout),
  }))
  return { step, cursor, zeroAdvantageFraction, metrics, rollouts }
}

/** What formatAhead wrote. Throws ERR_RAPO_FORMAT for a file that is damaged, or names a problem that is not among `problems`. */
export function readAhead(file: string, problems: readonly Problem[]): Ahead[] {
  try {
    const { steps } = JSON.parse(readFileSync(file, 'utf8')) as { steps: WrittenStep[] }
    const byId = new Map(problems.map(problem => [problem.id, problem]))
    return steps.map(written => fromWritten(written, byId))
  } catch (cause) {
    throw new RapoError('ERR_RAPO_FORMAT', `${file} is damaged: ${(cause as Error).message}`, { cause })
  }
}

function fromWritten(
  { step, cursor, zeroAdvantageFraction, metrics, rollouts }: WrittenStep,
  byId: ReadonlyMap<string, Problem>,
): Ahead {
  const trained: ScoredRollout[] = []
  const sampled = rollouts.map(({ problem: id, isTrained, ...rest }): ScoredRollout => {
    const problem = byId.get(id)
    if (!problem) throw new Error(`there is no problem "${id}"`)
    const completionIds = Int32Array.from(rest.completionIds)
    const logprobs = Float32Array.from(rest.logprobs)
    if (completionIds.length !== logprobs.length) throw new Error(`a completion of "${id}" is cut off`)
    const rollout = { ...rest, problem, completionIds, logprobs }
    if (isTrained) trained.push(rollout)
    return rollout
  })
  return { step, cursor, gathered: { sampled, trained, zeroAdvantageFraction, metrics } }
}

interface WrittenStep
  extends Pick<Ahead, 'step' | 'cursor'>,
    Pick<Gathered, 'zeroAdvantageFraction' | 'metrics'> {
  readonly rollouts: readonly Written[]
}

interface Written extends Omit<ScoredRollout, 'problem' | 'completionIds' | 'logprobs'> {
  readonly problem: string
  readonly completionIds: readonly number[]
  readonly logprobs: readonly number[]
  readonly isTrained: boolean
}
