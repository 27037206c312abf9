/** The rollouts of a step: samples and rewards them, and with sampling.filterGroups drops groups without a difference in rewards. */
import { deriveSeed } from '../base/random.js'
import type { Config } from '../config/config.js'
import type { Cursor } from '../data/cursor.js'
import { type EncodeContext, encodePrompt } from '../data/prompts.js'
import { splitEvenly } from '../model/batch.js'
import type { NamedEnvironment } from '../reward/environment.js'
import type { RewardPart } from '../reward/rewards.js'
import type { RolloutEngine } from '../rollout/engine.js'
import { sampleRollouts } from '../rollout/episodes.js'
import { type ScoredRollout, samplingParams, scoreParts } from '../rollout/rollout.js'
import type { World } from '../world/world.js'
import { type Clock, type Filtered, timed } from './metrics.js'
import { ownPart } from './share.js'

export interface Gathered {
  /** All rollouts of the step: whole groups, in the order sampled. */
  readonly sampled: readonly ScoredRollout[]
  /** The rollouts to train on. */
  readonly trained: readonly ScoredRollout[]
  /** Share of the sampled groups whose advantages are all 0. */
  readonly zeroAdvantageFraction: number
  readonly metrics: Filtered
}

/** What the rollouts of a step are made with. */
export interface GatherParts {
  readonly world: World
  readonly engine: RolloutEngine
  readonly context: EncodeContext
  /** Where the task has several turns. */
  readonly environment: NamedEnvironment | undefined
  readonly cursor: Cursor
  readonly stopTokenIds: readonly number[]
  readonly rewards: readonly RewardPart[]
  readonly signal: AbortSignal
}

/**
 * Samples sampling.promptsPerStep groups. With sampling.filterGroups (DAPO's dynamic sampling, arXiv 2503.14476) groups
 * without a difference in their rewards are left out, and as many further prompts are sampled instead, until there are
 * enough groups or sampling.maxNumGenBatches calls were made. The samples depend only on the run's seed, the step, the number
 * of the call and the cursor's position, so that a repeated step gives the same bits. Each rank samples and
 * rewards its part of the prompts; every rank returns the rollouts of all ranks.
 */
export async function gather(
  { world, engine, context, environment, cursor, stopTokenIds, rewards, signal }: GatherParts,
  config: Config,
  step: number,
  clock: Clock,
): Promise<Gathered> {
  const { sampling, task } = config
  const { filterGroups, maxNumGenBatches, promptsPerStep, groupSize, maxNewTokens } = sampling
  const groups: ScoredRollout[][] = []
  const kept: ScoredRollout[][] = []
  const calls = filterGroups === 'off' ? 1 : maxNumGenBatches
  for (let call = 0; call < calls && kept.length < promptsPerStep; call++) {
    const problems = cursor.next(promptsPerStep - kept.length)
    const prompts = problems.map(problem => encodePrompt(problem, context))
    const seed = deriveSeed(config.run.seed, 'rollout', step, ...(call > 0 ? [call] : []))
    const { part, before } = ownPart(prompts, world)
    const firstCompletion = before * groupSize
    const rest = { n: groupSize, stopTokenIds, seed, ...(firstCompletion > 0 && { firstCompletion }) }
    const sampleAndScore = async () => {
      signal.throwIfAborted()
      if (part.length === 0) return []
      const rollouts = await timed(clock, 'rollout', () =>
        sampleRollouts(engine, { ...context, environment }, part, samplingParams(sampling, rest), {
          ...task,
          signal,
        }),
      )
      const judged = await timed(clock, 'score', () =>
        scoreParts(rollouts, rewards, { ...task, maxNewTokens, signal }),
      )
      // The problem and the prompt are not sent, since every rank has them.
      return judged.map(({ problem: _, promptIds: __, ...own }) => own)
    }
    const all = (await world.gather(`step ${step}, rollouts`, sampleAndScore)).flat()
    const scored = splitEvenly(all, prompts.length).map((group, p) =>
      group.map((rollout): ScoredRollout => ({ ...prompts[p]!, ...rollout })),
    )
    groups.push(...scored)
    kept.push(...scored.filter(group => filterGroups === 'off' || differs(group, filterGroups, config)))
  }
  const share = (count: number) => count / groups.length
  return {
    sampled: groups.flat(),
    trained: kept.flat(),
    zeroAdvantageFraction: share(groups.filter(group => !differs(group, 'reward', config)).length),
    metrics:
      filterGroups === 'off'
        ? {}
        : { generatedGroups: groups.length, filteredFraction: share(groups.length - kept.length) },
  }
}

/** Whether a group's rewards, or the verifier's rewards alone, differ. */
function differs(group: readonly ScoredRollout[], by: 'reward' | 'acc', { objective }: Config): boolean {
  const isMixed = (read: (rollout: ScoredRollout) => number) =>
    group.some(rollout => read(rollout) !== read(group[0]!))
  if (by === 'acc') return isMixed(({ reward, parts }) => (parts ? parts[0]!.reward : reward))
  const parts = group[0]!.parts ?? []
  // With normalize-then-sum each reward has its own advantage.
  if (objective.multiObjectiveAggregation === 'normalize-then-sum' && parts.length > 0)
    return parts.some(({ weight }, k) => weight !== 0 && isMixed(rollout => rollout.parts![k]!.reward))
  return isMixed(({ reward }) => reward)
}
