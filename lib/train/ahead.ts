/**
 * The rollouts of each step. With rollouts.maxStaleness 1 those of the next step are sampled and judged while a step is trained on
 * ("one step off"): the weights that sampled them are then one update older than the policy that they train.
 */
import type { Config } from '../config/config.js'
import type { Cursor, CursorState } from '../data/cursor.js'
import type { RolloutEngine } from '../rollout/engine.js'
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
  /** The rollouts of `step`, once the weights of now are with the engine. Those of the next step begin, where they may. */
  next(step: number, clock: Clock): Promise<Gathered>
  /** Where the problems of the steps after the last one that next gave begin. */
  cursor(): CursorState
  /** The rollouts of the next step, when they are there; undefined where there are none, or where sampling them failed. */
  ahead(): Promise<Ahead | undefined>
  /** What the rollouts of `step` took since the last call. */
  measure(step: number): RolloutMetrics
}

/** Rollouts that were begun for a step, and the cursor's state before them. */
interface Begun {
  readonly step: number
  readonly before: CursorState
  readonly outcome: Promise<Ahead | { readonly failure: unknown }>
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
    readonly ahead?: Ahead | undefined
  },
  config: Config,
): Rollouts {
  const { world, cursorAt, signal } = parts
  const { engine: kind, maxStaleness } = config.rollouts
  const { engine, busySeconds } = metered(parts.engine)
  let cursor = cursorAt(parts.from)
  let begun: Begun | undefined
  if (parts.ahead && maxStaleness > 0) {
    begun = { step: parts.ahead.step, before: cursor.state(), outcome: Promise.resolve(parts.ahead) }
    cursor = cursorAt(parts.ahead.cursor)
  }
  let versions: readonly number[] = []
  let period = { start: performance.now(), busy: 0, waited: 0 }

  const sample = (step: number, clock: Clock) => gather({ ...parts, engine, cursor }, config, step, clock)

  const begin = (step: number): Begun => {
    const before = cursor.state()
    // The time that it takes is not the trainer's.
    const outcome = sample(step, { seconds: emptySeconds() }).then(
      gathered => ({ step, gathered, cursor: cursor.state() }),
      failure => ({ failure }),
    )
    return { step, before, outcome }
  }

  /** The rollouts that were begun; undefined where there are none, or where the servers were lost. */
  const finish = async (): Promise<Gathered | undefined> => {
    const settled = await begun?.outcome
    if (!settled || 'gathered' in settled) return settled?.gathered
    cursor = cursorAt(begun!.before)
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
  const sampleNow = async (step: number, clock: Clock): Promise<Gathered> => {
    const before = cursor.state()
    for (let attempt = 1; ; attempt++) {
      await syncWeights(step, clock)
      try {
        return await sample(step, clock)
      } catch (failure) {
        if (!(failure instanceof ServersLost && maxStaleness > 0 && attempt < ATTEMPTS)) throw failure
        cursor = cursorAt(before)
      }
    }
  }

  return {
    async next(step, clock) {
      if (kind !== 'local') clock.seconds.sync = 0
      const ready = begun && (await timed(clock, 'rollout', finish))
      const gathered = ready ?? (await sampleNow(step, clock))
      if (maxStaleness > 0 && step < config.run.steps) {
        if (ready) await syncWeights(step, clock)
        begun = begin(step + 1)
      } else {
        begun = undefined
      }
      period.waited += clock.seconds.rollout
      versions = gathered.sampled.flatMap(({ version }) => (version === undefined ? [] : [version]))
      return gathered
    },
    cursor: () => begun?.before ?? cursor.state(),
    async ahead() {
      const settled = await begun?.outcome
      return settled && 'gathered' in settled ? settled : undefined
    },
    measure(step) {
      if (kind === 'local') return {}
      const [now, busy] = [performance.now(), busySeconds()]
      const seconds = (now - period.start) / 1000
      const share = (part: number) => Math.min(1, Math.max(0, part / seconds))
      const { waited } = period
      const serversIdleFraction = share(seconds - (busy - period.busy))
      period = { start: now, busy, waited: 0 }
      const oldest = versions.reduce((a, b) => Math.min(a, b), step - 1)
      return { staleness: step - 1 - oldest, trainerIdleFraction: share(waited), serversIdleFraction }
    },
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
