/** maj@k, also called cons@k: how often the most frequent answer of k completions is correct. */
import { createRandom } from '../base/random.js'
import { passAtK } from '../base/stats.js'

/** How the completions of a problem vote. Those without an answer do not. */
export interface Votes {
  /** Number of completions. */
  readonly n: number
  /** Number of correct ones. They all vote for the same answer: whatever equals the reference is one answer. */
  readonly correct: number
  /** For each wrong answer the number of completions that have it. */
  readonly wrongVotes: readonly number[]
}

/** Number of random orders of the completions behind each estimate. */
const ORDERS = 1000

/**
 * For each k the probability that the most frequent answer among k of the n completions is the correct one. A tie between t
 * answers that include the correct one counts 1 / t; where none of the k completions has an answer, the result is wrong.
 *
 * maj@1 is pass@1, the share of correct completions, and maj@n is counted, both exactly. Others are means over 1000 subsets drawn
 * without replacement, so that their standard error is at most 0.016 for one problem. The same seed draws the same subsets.
 *
 * @param ks ascending, each from 1 to n
 */
export function majAtK({ n, correct, wrongVotes }: Votes, ks: readonly number[], seed: number): number[] {
  // Answer 0 is the correct one; -1 stands for no answer.
  const answers = new Int32Array(n).fill(-1)
  let at = 0
  for (const [answer, votes] of [correct, ...wrongVotes].entries()) {
    answers.fill(answer, at, at + votes)
    at += votes
  }
  const counts = new Int32Array(wrongVotes.length + 1)
  const sums = ks.map(() => 0)
  const drawn = ks.filter(k => k > 1 && k < n)
  if (drawn.length > 0 && correct > 0) {
    const random = createRandom(seed)
    for (let order = 0; order < ORDERS; order++) {
      counts.fill(0)
      for (const [i, k] of ks.entries()) {
        if (k === n) break
        for (let place = i === 0 ? 0 : ks[i - 1]!; place < k; place++) {
          const other = place + random.below(n - place)
          const answer = answers[other]!
          answers[other] = answers[place]!
          answers[place] = answer
          if (answer >= 0) counts[answer]!++
        }
        sums[i]! += shareOfCorrect(counts)
      }
    }
  }
  return ks.map((k, i) => {
    if (k === 1) return passAtK(n, correct, 1)
    return k === n ? shareOfCorrect([correct, ...wrongVotes]) : sums[i]! / ORDERS
  })
}

/** 1 where the first answer has the most votes, 1 / t where t answers have as many, else 0. */
function shareOfCorrect(counts: ArrayLike<number>): number {
  const own = counts[0]!
  if (own === 0) return 0
  let tied = 1
  for (let i = 1; i < counts.length; i++) {
    if (counts[i]! > own) return 0
    if (counts[i] === own) tied++
  }
  return 1 / tied
}
