/** The bound on the work of a verdict, and what ends a verdict that has none. */

/** Why an answer, or its value, is beyond what the verifier does. No Error: a stack trace for each would cost more than the parse. */
export class Unreadable {
  constructor(readonly reason: string) {}
}

/**
 * The work that one comparison may do, counted in steps of a few microseconds: what is not decided by then is not
 * equal. A count, not a clock, so that a verdict does not depend on the machine.
 */
export class Budget {
  #left: number

  constructor(steps: number) {
    this.#left = steps
  }

  spend(steps: number): void {
    this.#left -= steps
    if (!(this.#left >= 0)) throw new Unreadable('more work than the verifier does')
  }
}
