/**
 * Writes data/countdown/{train,test}.jsonl: npx tsx scripts/make-countdown-data.ts
 * The same options give the same bytes. No problem (numbers and target) is in both files.
 */
import { mkdirSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { parseArgs } from 'node:util'
import { createRandom } from '../lib/base/random.js'
import { type CountdownProblem, listProblems, promptOf } from './countdown-solver.js'

const { values } = parseArgs({
  options: {
    output: { type: 'string', default: 'data/countdown' },
    seed: { type: 'string', default: '1' },
    /** Test problems of each difficulty. */
    test: { type: 'string', default: '64' },
    /** Train problems of each difficulty, at most. */
    easy: { type: 'string', default: '1707' },
    hard: { type: 'string', default: '3414' },
    'max-number': { type: 'string', default: '15' },
  },
})
const random = createRandom(Number(values.seed))
const all = listProblems(Number(values['max-number']))
const split: Record<'train' | 'test', CountdownProblem[]> = { train: [], test: [] }
for (const difficulty of ['easy', 'hard'] as const) {
  const shuffled = random.shuffle(all.filter(problem => problem.difficulty === difficulty))
  const testCount = Number(values.test)
  split.test.push(...shuffled.slice(0, testCount))
  split.train.push(...shuffled.slice(testCount, testCount + Number(values[difficulty])))
}
mkdirSync(values.output, { recursive: true })
for (const [name, problems] of Object.entries(split)) {
  const lines = problems.map(problem => {
    const { numbers, target, difficulty } = problem
    const id = `${difficulty}-${numbers.join('-')}-${target}`
    return JSON.stringify({ id, prompt: promptOf(problem), answer: { numbers, target }, difficulty })
  })
  const file = path.join(values.output, `${name}.jsonl`)
  writeFileSync(file, `${lines.join('\n')}\n`)
  console.log(`${file}: ${lines.length} problems`)
}
