/**
 * `npm run bench:math`: compares the verifier `math` with Math-Verify and SymPy on three groups:
 * - the cases of this project,
 * - the completions under docs/results whose problems lie in RAPO_DATA (default: ../shared/data beside the clone),
 * - random pairs. Each pair on which rapo, Math-Verify, SymPy and the construction disagree is written to --disagreements FILE.
 *
 * The others run in the Python that RAPO_PYTHON names, or in python3, if they are installed there (pip install
 * 'math-verify[antlr4_13_2]==0.9.0'). Without them only rapo is measured. --cases FILE judges only that file, --pairs N sets
 * the number of pairs, --json FILE writes every verdict on a case.
 */
import { spawnSync } from 'node:child_process'
import { existsSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { verifyMath } from '../lib/reward/math.js'
import { pairOf } from './math_pairs.js'

const root = fileURLToPath(new URL('..', import.meta.url))
const { values: flags } = parseArgs({
  options: {
    cases: { type: 'string' },
    pairs: { type: 'string', default: '20000' },
    json: { type: 'string' },
    disagreements: { type: 'string', default: 'math-disagreements.jsonl' },
  },
})

interface Case {
  readonly group: string
  readonly kind?: string
  readonly reference: string
  readonly answer?: string
  readonly completion: string
  /** undefined if the right verdict is not known. */
  readonly equal?: boolean
}

interface Verdict {
  readonly correct: boolean
  /** Processor time, which other work on the machine does not change. */
  readonly seconds: number
  readonly sympy?: boolean | null
}

const linesOf = (file: string) =>
  readFileSync(file, 'utf8')
    .trim()
    .split('\n')
    .map(line => JSON.parse(line))
const boxed = (answer: string) => `The final answer is $\\boxed{${answer}}$.`

const groups = flags.cases
  ? [{ name: path.basename(flags.cases), cases: casesOf(flags.cases) }]
  : [
      { name: 'cases', cases: casesOf(path.join(root, 'test/data/math-cases.jsonl')) },
      {
        name: 'cases in the style of models',
        cases: casesOf(path.join(root, 'test/data/math-model-cases.jsonl')),
      },
      { name: 'cases by rule', cases: casesOf(path.join(root, 'test/data/math-rule-cases.jsonl')) },
      { name: 'completions', cases: completions() },
      { name: 'random pairs', cases: randomPairs() },
    ]

console.log(
  '| what | verifier | right | wrongly accepted | wrongly rejected | CPU time an answer | longest |',
)
console.log('|---|---|---|---|---|---|---|')
const hasPeer = checkPeer()
for (const { name, cases } of groups) {
  if (cases.length === 0) continue
  const own = judgeAll(cases)
  console.log(row(name, 'rapo', cases, own))
  const peer = hasPeer ? askPeer(cases) : undefined
  if (peer) console.log(row(name, 'Math-Verify', cases, peer))
  if (name === 'random pairs') report(cases, own, peer)
  if (flags.json) {
    const lines = cases.map((one, i) => {
      return JSON.stringify({
        ...one,
        rapo: own[i]!.correct,
        ...(peer && { 'Math-Verify': peer[i]!.correct }),
      })
    })
    writeFileSync(`${flags.json}.${name.replaceAll(' ', '-')}.jsonl`, `${lines.join('\n')}\n`)
  }
}

function casesOf(file: string): Case[] {
  return linesOf(file).map(one => ({ group: '', ...one, completion: one.completion ?? boxed(one.answer) }))
}

/** Completions that were judged before. Those verdicts were read by eye (docs/results/math-0.5b) and count as right. */
function completions(): Case[] {
  const data = process.env.RAPO_DATA || path.join(root, '../shared/data')
  const files = ['gsm8k_test', 'math500', 'aime24'].map(name => path.join(data, `${name}.jsonl`))
  if (!files.every(file => existsSync(file))) return []
  const answers = new Map<string, string>(
    files.flatMap(file => linesOf(file).map(one => [one.problem.trim(), one.answer])),
  )
  const results = path.join(root, 'docs/results')
  const samples = readdirSync(results, { recursive: true, encoding: 'utf8' }).filter(file =>
    file.endsWith('eval-samples.jsonl'),
  )
  return samples.flatMap(file =>
    linesOf(path.join(results, file)).flatMap(({ prompt, completion, reward }): Case[] => {
      const problem = [...answers.keys()].find(text => prompt.includes(text))
      const reference = problem === undefined ? undefined : answers.get(problem)
      return reference === undefined ? [] : [{ group: file, reference, completion, equal: reward >= 1 }]
    }),
  )
}

function randomPairs(): Case[] {
  return Array.from({ length: Number(flags.pairs) }, (_, seed) => {
    const { kind, answer, reference, equal } = pairOf(seed)
    return { group: kind, kind, answer, reference, completion: boxed(answer), equal }
  })
}

/** The second of two passes, since the first one is mostly compilation. */
function judgeAll(cases: readonly Case[]): Verdict[] {
  const pass = () =>
    cases.map(({ completion, reference }) => {
      const start = process.cpuUsage()
      const correct = verifyMath(completion, reference).reward === 1
      const { user, system } = process.cpuUsage(start)
      return { correct, seconds: (user + system) / 1e6 }
    })
  pass()
  return pass()
}

function checkPeer(): boolean {
  const python = process.env.RAPO_PYTHON || 'python3'
  const { status } = spawnSync(python, ['-c', 'import math_verify'], { stdio: 'ignore' })
  if (status !== 0)
    console.log(`no Math-Verify: ${python} does not import it (RAPO_PYTHON names another Python)\n`)
  return status === 0
}

function askPeer(cases: readonly Case[]): Verdict[] {
  const script = path.join(root, 'bench/math_peer.py')
  const input = cases
    .map(({ completion, reference, kind, answer }) =>
      JSON.stringify({ completion, reference, ...(kind && { answer }) }),
    )
    .join('\n')
  const python = process.env.RAPO_PYTHON || 'python3'
  const run = spawnSync(python, [script], { input: `${input}\n`, encoding: 'utf8', maxBuffer: 2 ** 28 })
  if (run.status !== 0) throw new Error(`${script} ended with ${run.status}: ${run.stderr}`)
  return run.stdout
    .trim()
    .split('\n')
    .map(line => JSON.parse(line))
}

function row(name: string, verifier: string, cases: readonly Case[], verdicts: readonly Verdict[]): string {
  const judged = cases.map((one, i) => ({ ...one, ...verdicts[i]! }))
  const accepted = judged.filter(({ equal, correct }) => correct && !equal).length
  const rejected = judged.filter(({ equal, correct }) => !correct && equal).length
  const pairs = judged.filter(({ equal }) => equal).length
  const right = judged.length - accepted - rejected
  const milliseconds = judged.map(({ seconds }) => 1000 * seconds)
  const mean = milliseconds.reduce((sum, ms) => sum + ms, 0) / judged.length
  return `| ${[
    `${name} (${judged.length})`,
    verifier,
    `${right} (${(right / judged.length).toFixed(3)})`,
    `${accepted} of ${judged.length - pairs}`,
    `${rejected} of ${pairs}`,
    `${mean.toFixed(2)} ms`,
    `${Math.max(...milliseconds).toFixed(1)} ms`,
  ].join(' | ')} |`
}

/** Counts the disagreements of the judges by kind and writes every such pair to a file. */
function report(cases: readonly Case[], own: readonly Verdict[], peer?: readonly Verdict[]): void {
  const all = cases.map(({ kind, answer, reference, equal }, i) => ({
    kind,
    answer,
    reference,
    equal,
    rapo: own[i]!.correct,
    ...(peer && { mathVerify: peer[i]!.correct, sympy: peer[i]!.sympy }),
  }))
  type Line = (typeof all)[number]
  const isDisputed = ({ equal, rapo, mathVerify, sympy }: Line) =>
    [rapo, mathVerify, sympy].some(verdict => typeof verdict === 'boolean' && verdict !== equal)
  const disputed = all.filter(isDisputed)
  writeFileSync(flags.disagreements, disputed.map(line => `${JSON.stringify(line)}\n`).join(''))
  console.log(
    `\n${disputed.length} of ${all.length} disputed, in ${flags.disagreements}; by kind, accepted though different / rejected though equal:\n`,
  )
  console.log('| kind | pairs | rapo | Math-Verify | SymPy | not read by SymPy |')
  console.log('|---|---|---|---|---|---|')
  for (const kind of new Set(all.map(one => one.kind))) {
    const mine = all.filter(one => one.kind === kind)
    const faults = (verdictOf: (line: Line) => boolean | null | undefined) => {
      const accepted = mine.filter(line => verdictOf(line) === true && !line.equal).length
      const rejected = mine.filter(line => verdictOf(line) === false && line.equal).length
      return `${accepted} / ${rejected}`
    }
    const unread = mine.filter(({ sympy }) => sympy === null).length
    console.log(
      `| ${[kind, mine.length, faults(line => line.rapo), faults(line => line.mathVerify), faults(line => line.sympy), unread].join(' | ')} |`,
    )
  }
}
