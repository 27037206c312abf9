/** maj@k against every subset, and against answers that are votes by hand. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { majAtK, type Votes } from '../../lib/eval/majority.js'

/** The mean over all subsets of size k, each with its answers counted anew. */
function overAllSubsets({ n, correct, wrongVotes }: Votes, k: number): number {
  const answers = [
    ...Array(correct).fill('right'),
    ...wrongVotes.flatMap((votes, i) => Array(votes).fill(`wrong ${i}`)),
  ]
  while (answers.length < n) answers.push(undefined)
  let sum = 0
  let subsets = 0
  for (let bits = 0; bits < 2 ** n; bits++) {
    const chosen = answers.filter((_, i) => (bits >> i) & 1)
    if (chosen.length !== k) continue
    subsets++
    const votes = new Map<string, number>()
    for (const answer of chosen) if (answer) votes.set(answer, (votes.get(answer) ?? 0) + 1)
    const most = Math.max(0, ...votes.values())
    const winners = [...votes].filter(([, count]) => count === most).map(([answer]) => answer)
    if (winners.includes('right')) sum += 1 / winners.length
  }
  return sum / subsets
}

test('agrees with the mean over all subsets', () => {
  const cases: Votes[] = [
    { n: 10, correct: 3, wrongVotes: [4, 2] },
    { n: 10, correct: 4, wrongVotes: [2, 2, 1] },
    { n: 9, correct: 1, wrongVotes: [1, 1, 1] },
    { n: 8, correct: 5, wrongVotes: [3] },
    { n: 10, correct: 2, wrongVotes: [] },
  ]
  for (const [i, votes] of cases.entries()) {
    const ks = Array.from({ length: votes.n }, (_, k) => k + 1)
    for (const [at, value] of majAtK(votes, ks, i).entries()) {
      const expected = overAllSubsets(votes, ks[at]!)
      const isExact = ks[at] === 1 || ks[at] === votes.n
      // A mean of 1000 values in [0, 1] has a standard error of at most .5 / √1000 = .0158; five of these.
      const allowed = isExact ? 1e-12 : 0.08
      assert.ok(
        Math.abs(value - expected) <= allowed,
        `${JSON.stringify(votes)} k ${ks[at]}: ${value}, ${expected}`,
      )
    }
  }
})

test('by hand: ties are shared, those without an answer do not vote', () => {
  assert.equal(majAtK({ n: 4, correct: 1, wrongVotes: [1] }, [4], 1), [0.5])
  assert.equal(majAtK({ n: 4, correct: 1, wrongVotes: [] }, [4], 1), [1])
  assert.equal(majAtK({ n: 4, correct: 1, wrongVotes: [2] }, [4], 1), [0])
  assert.equal(majAtK({ n: 4, correct: 0, wrongVotes: [] }, [1, 2, 4], 1), [0, 0, 0])
  assert.equal(majAtK({ n: 4, correct: 4, wrongVotes: [] }, [1, 2, 4], 1), [1, 1, 1])
})

test('the same seed gives the same numbers', () => {
  const votes = { n: 40, correct: 15, wrongVotes: [10, 8, 2] }
  assert.equal(majAtK(votes, [2, 8, 16], 3), majAtK(votes, [2, 8, 16], 3))
  assert.not.equal(majAtK(votes, [2, 8, 16], 3), majAtK(votes, [2, 8, 16], 4))
})

test.run()
