/**
 * The rollouts of each step. With rollouts.maxStaleness n those of the next n steps are sampled and judged while a step is trained
 * on: the weights that sampled them are then up to n updates older than the policy that they train. With n ≥ 2 updates of the
 * weights reach the servers while they sample.
 */
import type { Config } from '../config/config.js'
import type { Cursor, CursorState } from '../data/cursor.js'
import type { RolloutEngine } from '../rollout/engine.js'
import { type ScoredRollout, sampledTokens } from '../rollout/rollout.js'
import { ServersLost } from '../rollout/servers/fleet.js'
import { type Gathered, type GatherParts, gather } from './gather.js'
import { type Clock, emptySeconds, type RolloutMetrics, timed } from './metrics.js'

/** Rollouts of a step that is still to come, as a checkpoint keeps them. */
export interface Ahead {
  readonly step: number
  readonly gathered: Gathered
  /** Where the problems behind theirs begin. */
  readonly cursor: CursorState
}

/** Where the rollouts of a run come from, step after step. */
export interface Rollouts {
  /** The rollouts of `step`, once the weights of now are with the engine. Those of later steps begin, where they may. */
  next(step: number, clock: Clock): Promise<Gathered>
  /** Where the problems of the steps after the last one that next gave begin. */
  cursor(): CursorState
  /** The rollouts of the steps after that, when those that were begun are there; none from the first on that failed. */
  ahead(): Promise<readonly Ahead[]>
  /** What the rollouts of `step` took since the last call. */
  measure(step: number): RolloutMetrics
}

/** Rollouts, and where the problems behind theirs begin. */
interface Done {
  readonly gathered: Gathered
  readonly after: Cursor
}

/** Rollouts that were begun for a step, and where its problems begin. */
interface Begun {
  readonly step: number
  readonly before: Cursor
  readonly outcome: Promise<Done | { readonly failure: unknown }>
}

/** How often a step is sampled again because all servers were lost. */
const ATTEMPTS = 8

/**
 * @param parts what gather takes; `cursorAt` makes a cursor at a state, `from` is the state to begin with, `ahead` the rollouts of a
 *   checkpoint
 */
export function createRollouts(
  parts: Omit<GatherParts, 'cursor'> & {
    readonly cursorAt: (state: CursorState | undefined) => Cursor
    readonly from?: CursorState | undefined
    readonly ahead?: readonly Ahead[] | undefined
  },
  config: Config,
): Rollouts {
  const { world, cursorAt, signal } = parts
  const { engine: kind, maxStaleness } = config.rollouts
  const { promptsPerStep } = config.sampling
  const { engine, busySeconds } = metered(parts.engine)
  /** Where the problems behind those of all steps that were begun begin. */
  let behind = cursorAt(parts.from)
  /** In the order of their steps, without a gap. */
  const begun: Begun[] = []
  for (const { step, gathered, cursor } of parts.ahead ?? []) {
    // From here on they would be too old: the run was begun with a larger maxStaleness.
    if (stalenessOf(gathered.sampled, step).staleness > maxStaleness) break
    const after = cursorAt(cursor)
    begun.push({ step, before: behind, outcome: Promise.resolve({ gathered, after }) })
    behind = after
  }
  let ages: ReturnType<typeof stalenessOf> | undefined
  let period = { start: performance.now(), busy: 0, waited: 0 }

  const sample = async (step: number, before: Cursor, clock: Clock): Promise<Done> => {
    const after = before.fork()
    return { gathered: await gather({ ...parts, engine, cursor: after }, config, step, clock), after }
  }

  const begin = (step: number, before: Cursor): Begun => {
    // The time that it takes is not the trainer's.
    const outcome = sample(step, before, { seconds: emptySeconds() }).catch(failure => ({ failure }))
    return { step, before, outcome }
  }

  /** The rollouts that were begun; undefined where the servers were lost. */
  const finish = async ({ outcome }: Begun): Promise<Done | undefined> => {
    const settled = await outcome
    if (!('failure' in settled)) return settled
    if (!(settled.failure instanceof ServersLost)) throw settled.failure
    return undefined
  }

  const syncWeights = async (step: number, clock: Clock) => {
    const start = performance.now()
    await world.together(`step ${step}, weights`, () => {
      signal.throwIfAborted()
      return engine.syncWeights(step - 1, { signal })
    })
    const { seconds } = clock
    if (seconds.sync !== undefined) seconds.sync += (performance.now() - start) / 1000
  }

  /** The rollouts of a step that were not begun before. */
  const sampleNow = async (step: number, before: Cursor, clock: Clock): Promise<Done> => {
    for (let attempt = 1; ; attempt++) {
      await syncWeights(step, clock)
      try {
        return await sample(step, before, clock)
      } catch (failure) {
        if (!(failure instanceof ServersLost && maxStaleness > 0 && attempt < ATTEMPTS)) throw failure
      }
    }
  }

  /** Begins the steps after `step`, as far as they may be. */
  const beginAhead = (step: number) => {
    const last = Math.min(step + maxStaleness, config.run.steps)
    for (let next = (begun.at(-1)?.step ?? step) + 1; next <= last; next++) {
      begun.push(begin(next, behind))
      // With sampling.filterGroups, which may take more problems, one step alone is begun, and `next` corrects this.
      behind = behind.fork()
      behind.next(promptsPerStep)
    }
  }

  return {
    async next(step, clock) {
      if (kind !== 'local') clock.seconds.sync = 0
      const first = begun.shift()
      const ready = first && (await timed(clock, 'rollout', () => finish(first)))
      const { gathered, after } = ready ?? (await sampleNow(step, first?.before ?? behind, clock))
      if (begun.length === 0) behind = after
      if (maxStaleness > 0 && step < config.run.steps) {
        if (ready) await syncWeights(step, clock)
        beginAhead(step)
      }
      period.waited += clock.seconds.rollout
      ages = stalenessOf(gathered.sampled, step)
      return gathered
    },
    cursor: () => (begun[0]?.before ?? behind).state(),
    async ahead() {
      const settled = await Promise.all(begun.map(({ outcome }) => outcome))
      const all: Ahead[] = []
      for (const [i, one] of settled.entries()) {
        if ('failure' in one) break
        all.push({ step: begun[i]!.step, gathered: one.gathered, cursor: one.after.state() })
      }
      return all
    },
    measure() {
      if (kind === 'local') return {}
      const [now, busy] = [performance.now(), busySeconds()]
      const seconds = (now - period.start) / 1000
      const share = (part: number) => Math.min(1, Math.max(0, part / seconds))
      const { waited } = period
      const serversIdleFraction = share(seconds - (busy - period.busy))
      period = { start: now, busy, waited: 0 }
      return { ...ages, trainerIdleFraction: share(waited), serversIdleFraction }
    },
  }
}

/** How many updates of the policy came between sampling and the step: at most, and on average over the tokens. */
function stalenessOf(rollouts: readonly ScoredRollout[], step: number) {
  const ageOf = (version: number) => step - 1 - version
  let [staleness, sum, tokens, mixed] = [0, 0, 0, 0]
  for (const rollout of rollouts) {
    const { version = step - 1, versions } = rollout
    staleness = Math.max(staleness, ageOf(version))
    const count = sampledTokens(rollout)
    tokens += count
    sum += versions ? versions.reduce((all, one) => all + ageOf(one), 0) : count * ageOf(version)
    if (versions) mixed++
  }
  return {
    staleness,
    stalenessMean: sum / Math.max(1, tokens),
    mixedFraction: mixed / Math.max(1, rollouts.length),
  }
}

/** The engine, with the seconds in which it had anything to sample. */
function metered(engine: RolloutEngine): { engine: RolloutEngine; busySeconds: () => number } {
  let running = 0
  let since = 0
  let total = 0
  const generate: RolloutEngine['generate'] = async (...call) => {
    if (running++ === 0) since = performance.now()
    try {
      return await engine.generate(...call)
    } finally {
      if (--running === 0) total += performance.now() - since
    }
  }
  return {
    engine: { ...engine, generate },
    busySeconds: () => (total + (running > 0 ? performance.now() - since : 0)) / 1000,
  }
}
