/** The bound on the work for a verdict, and the exception that ends a verdict which cannot be reached. */

/**
 * The reason why the verifier cannot handle an answer or its value. This is not an Error: a stack trace for each would cost
 * more than parsing.
 */
export class Unreadable {
  constructor(readonly reason: string) {}
}

/**
 * The work that one comparison may do, counted in steps of a few microseconds. What is not decided within it is not equal. The
 * work is counted rather than timed, so that a verdict does not depend on the machine.
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
