/** The order in which problems are trained on: shuffled anew each pass, and resumable. */
import { RapoError } from '../base/errors.js'
import { createRandom, deriveSeed, digest } from '../base/random.js'
import type { Problem } from './problems.js'

/** The position of a cursor. Together with the seed it decides which problems come next. */
export interface CursorState {
  /** Number of whole passes over the problems so far. */
  readonly epoch: number
  /** Number of problems taken in the current pass. */
  readonly position: number
  /** Hash of the seed and the problems, by which a changed file is noticed. */
  readonly fingerprint: string
  /** Hash of the problems' other columns; absent if there are none, and in states of versions that did not read them. */
  readonly columnsFingerprint?: string
}

/** Hands out problems in a fixed order. The order can be continued later from the state. */
export interface Cursor {
  /** The next problems. */
  next(count: number): Problem[]
  /** The current position, for createCursor. */
  state(): CursorState
  /** Another cursor at this position, which goes its own way. */
  fork(): Cursor
}

/**
 * Takes problems in an order that is a new seeded permutation in each epoch. A batch may span two epochs. Given the state
 * of an earlier cursor, the order continues from there. Throws ERR_RAPO_DATA if the state belongs to other problems or to
 * another seed.
 */
export function createCursor(problems: readonly Problem[], seed: number, from?: CursorState): Cursor {
  const fingerprint = digest([seed, problems.map(({ columns: _, ...problem }) => problem)])
  const columns = problems.map(problem => problem.columns)
  const columnsFingerprint = columns.some(Boolean) ? digest(columns) : undefined
  const hasOtherColumns =
    from?.columnsFingerprint !== undefined && from.columnsFingerprint !== columnsFingerprint
  if (from && (from.fingerprint !== fingerprint || hasOtherColumns)) {
    throw new RapoError(
      'ERR_RAPO_DATA',
      'the training problems or the seed are not those that the checkpoint was made with',
    )
  }
  if (from && from.position > problems.length) {
    throw new RapoError(
      'ERR_RAPO_DATA',
      `the checkpoint's position ${from.position} lies beyond the ${problems.length} training problems`,
    )
  }
  const orderOf = (epoch: number) => createRandom(deriveSeed(seed, 'epoch', epoch)).shuffle(problems)
  const at = (startEpoch: number, startPosition: number, startOrder: readonly Problem[]): Cursor => {
    let [epoch, position, order] = [startEpoch, startPosition, startOrder]
    return {
      next(count) {
        const taken: Problem[] = []
        while (taken.length < count) {
          if (position === order.length) {
            epoch++
            position = 0
            order = orderOf(epoch)
          }
          taken.push(order[position++]!)
        }
        return taken
      },
      state: () => ({ epoch, position, fingerprint, ...(columnsFingerprint && { columnsFingerprint }) }),
      fork: () => at(epoch, position, order),
    }
  }
  const epoch = from?.epoch ?? 0
  return at(epoch, from?.position ?? 0, orderOf(epoch))
}
