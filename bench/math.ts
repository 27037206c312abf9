/**
 * `npm run bench:math`: the verifier `math` against Math-Verify on test/data/math-cases.jsonl, or on other cases of the
 * same form: --cases FILE. A case has an answer, which is put into a box, or a whole completion. Math-Verify runs in the Python that RAPO_PYTHON names, or python3, where it has it
 * (pip install 'math-verify[antlr4_13_2]==0.9.0'); else only rapo is measured. --json FILE keeps every verdict.
 */
import { spawnSync } from 'node:child_process'
import { readFileSync, writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { verifyMath } from '../lib/reward/math.js'

const { values: flags } = parseArgs({
  options: {
    cases: {
      type: 'string',
      default: fileURLToPath(new URL('../test/data/math-cases.jsonl', import.meta.url)),
    },
    json: { type: 'string' },
  },
})

interface Case {
  readonly category?: string
  readonly reference: string
  readonly answer?: string
  readonly completion?: string
  readonly equal: boolean
  readonly heldOut?: boolean
}

interface Verdict {
  readonly correct: boolean
  /** Of the processor: other work on the machine does not count. */
  readonly seconds: number
}

const cases: Case[] = readFileSync(flags.cases, 'utf8')
  .trim()
  .split('\n')
  .map(line => JSON.parse(line))
const asked = cases.map(({ answer, completion, reference }) => ({
  completion: completion ?? `The final answer is $\\boxed{${answer}}$.`,
  reference,
}))

const judges: [name: string, verdicts: readonly Verdict[]][] = [['rapo', judgeAll()]]
const peer = askPeer()
if (peer) judges.push(['Math-Verify', peer])

const subsets: [name: string, isIn: (one: Case) => boolean][] = [['all', () => true]]
if (cases.some(({ heldOut }) => heldOut)) subsets.push(['held out', ({ heldOut }) => heldOut === true])
console.log(
  '| cases | verifier | right | wrongly accepted | wrongly rejected | CPU time an answer | longest |',
)
console.log('|---|---|---|---|---|---|---|')
for (const [subset, isIn] of subsets) {
  for (const [name, verdicts] of judges) console.log(row(subset, name, verdicts, isIn))
}
if (flags.json) {
  const lines = cases.map((one, i) => {
    return JSON.stringify({
      ...one,
      ...Object.fromEntries(judges.map(([name, verdicts]) => [name, verdicts[i]!.correct])),
    })
  })
  writeFileSync(flags.json, `${lines.join('\n')}\n`)
}

/** The second of two passes: the first one is mostly the compiler's. */
function judgeAll(): Verdict[] {
  const pass = () =>
    asked.map(({ completion, reference }) => {
      const start = process.cpuUsage()
      const correct = verifyMath(completion, reference).reward === 1
      const { user, system } = process.cpuUsage(start)
      return { correct, seconds: (user + system) / 1e6 }
    })
  pass()
  return pass()
}

function askPeer(): Verdict[] | undefined {
  const python = process.env.RAPO_PYTHON || 'python3'
  const check = spawnSync(python, ['-c', 'import math_verify'], { stdio: 'ignore' })
  if (check.status !== 0) {
    console.log(`no Math-Verify: ${python} does not import it (RAPO_PYTHON names another Python)\n`)
    return undefined
  }
  const script = fileURLToPath(new URL('math_peer.py', import.meta.url))
  // Twice, as for rapo.
  const lines = asked.map(one => `${JSON.stringify(one)}\n`).join('')
  const run = spawnSync(python, [script], { input: lines + lines, encoding: 'utf8', maxBuffer: 2 ** 28 })
  if (run.status !== 0) throw new Error(`${script} ended with ${run.status}: ${run.stderr}`)
  const verdicts: Verdict[] = run.stdout
    .trim()
    .split('\n')
    .map(line => JSON.parse(line))
  return verdicts.slice(asked.length)
}

function row(
  subset: string,
  name: string,
  verdicts: readonly Verdict[],
  isIn: (one: Case) => boolean,
): string {
  const judged = cases.flatMap((one, i) => (isIn(one) ? [{ ...one, ...verdicts[i]! }] : []))
  const accepted = judged.filter(({ equal, correct }) => correct && !equal).length
  const rejected = judged.filter(({ equal, correct }) => !correct && equal).length
  const pairs = judged.filter(({ equal }) => equal).length
  const right = judged.length - accepted - rejected
  const milliseconds = judged.map(({ seconds }) => 1000 * seconds)
  const mean = milliseconds.reduce((sum, ms) => sum + ms, 0) / judged.length
  return `| ${[
    `${subset} (${judged.length})`,
    name,
    `${right} (${(right / judged.length).toFixed(3)})`,
    `${accepted} of ${judged.length - pairs}`,
    `${rejected} of ${pairs}`,
    `${mean.toFixed(2)} ms`,
    `${Math.max(...milliseconds).toFixed(1)} ms`,
  ].join(' | ')} |`
}
