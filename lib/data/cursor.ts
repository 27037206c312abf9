/** The order in which problems are trained on: shuffled anew each pass, and resumable. */
import { RapoError } from '../base/errors.js'
import { createRandom, deriveSeed, digest } from '../base/random.js'
import type { Problem } from './problems.js'

/** Where a cursor stands; with the seed, all that decides which problems come next. */
export interface CursorState {
  /** Whole passes over the problems so far. */
  readonly epoch: number
  /** Problems taken in this pass. */
  readonly position: number
  /** Of the seed and the problems, so that a changed file is noticed. */
  readonly fingerprint: string
  /** Of the problems' other columns; absent where there are none, and in states of versions that did not read them. */
  readonly columnsFingerprint?: string
}

/** An order of the problems that can be left and taken up again. */
export interface Cursor {
  /** The next problems. */
  next(count: number): Problem[]
  /** Where the cursor stands now, for createCursor. */
  state(): CursorState
}

/**
 * Takes problems in an order that is a new seeded permutation each epoch; a batch may span two epochs. With the state
 * of an earlier cursor it goes on from there; throws ERR_RAPO_DATA where problems or seed are not those of that state.
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
  let epoch = from?.epoch ?? 0
  let position = from?.position ?? 0
  let order = orderOf(epoch)
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
  }
}
