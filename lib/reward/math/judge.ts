/** The interface between the comparisons of values, units, sets, equations …, so that none of them imports another. */
import { type Budget, Unreadable } from './budget.js'
import type { Node } from './tree.js'

/** A share of the reference, or 'digits': as many digits as the decimal shows. */
export type Tolerance = number | 'digits'

export interface Judge {
  readonly budget: Budget
  readonly tolerance: Tolerance | undefined
  /** Throws Unreadable if it cannot be decided. a belongs to the answer, b to the reference. */
  isEqual(a: Node, b: Node): boolean
}

/** False if it cannot be decided. */
export function attempt(body: () => boolean, budget: Budget): boolean {
  return unlessUnreadable(body, budget) ?? false
}

/** undefined if it cannot be read or decided. */
export function unlessUnreadable<T>(body: () => T, budget: Budget): T | undefined {
  try {
    return body()
  } catch (error) {
    if (!(error instanceof Unreadable)) throw error
    // When the work limit is reached, nothing else is tried.
    budget.spend(0)
    return undefined
  }
}

export function haveEqualItems(a: readonly Node[], b: readonly Node[], judge: Judge): boolean {
  return a.length === b.length && a.every((item, i) => judge.isEqual(item, b[i]!))
}

/** In any order. */
export function haveSameItems(a: readonly Node[], b: readonly Node[], judge: Judge): boolean {
  if (a.length !== b.length) return false
  const left = [...b]
  return a.every(item => {
    const found = left.findIndex(candidate => attempt(() => judge.isEqual(item, candidate), judge.budget))
    if (found >= 0) left.splice(found, 1)
    return found >= 0
  })
}
