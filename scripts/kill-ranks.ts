/**
 * `npm run kill-ranks`: small runs of several ranks, of which a random one is killed with SIGKILL at a random moment, again and
 * again. After each kill the same command goes on, as torchrun starts it again, until the run ends. Metrics, samples, evaluations,
 * weights and state must then be the bits of a run without a kill, and nothing half-written may be left; after each kill
 * the other ranks must have ended. Needs Linux (/proc).
 *
 *   --kills 50   in all
 *   --seed N     of the ranks and moments. Default: a new one, which is printed
 *
 * Ends with "N passed, N failed", counted in runs.
 */
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { createRandom } from '../lib/base/random.js'
import { median } from '../lib/bench/batch.js'
import { shards } from '../lib/model/policy.js'
import { readBest, readLatestCheckpoint } from '../lib/train/checkpoint.js'
import { cli } from '../test/helpers/cli.js'
import { runCommand } from '../test/helpers/ranks.js'
import { readLines } from '../test/helpers/run-files.js'
import { makeTinyModel } from '../test/helpers/tiny-model.js'

const { values: flags } = parseArgs({
  options: { kills: { type: 'string', default: '50' }, seed: { type: 'string' } },
})
const kills = Number(flags.kills)
const seed = flags.seed === undefined ? Date.now() % 1_000_000 : Number(flags.seed)
const random = createRandom(seed)
const root = fileURLToPath(new URL('..', import.meta.url))
const scratch = mkdtempSync(path.join(tmpdir(), 'rapo-kill-'))
process.on('exit', () => rmSync(scratch, { recursive: true, force: true }))

/** Milliseconds after a kill until the launcher asks the other ranks to end, and until it ends them: that is a failure here. */
const patience = { ask: 5_000, kill: 120_000 }
const steps = 12
/** In one run: each kill leaves fewer steps for the next one. */
const killsPerRun = 3

const problems = path.join(scratch, 'problems.jsonl')
const problem = (i: number) => ({ id: `p${i}`, prompt: `7=7:${'3'.repeat(i)}`, answer: 7 })
writeFileSync(problems, Array.from({ length: 10 }, (_, i) => `${JSON.stringify(problem(i))}\n`).join(''))
const config = {
  model: { dir: await makeTinyModel(), refModelSyncSteps: 3 },
  data: { train: problems, eval: problems },
  task: { verifier: path.join(root, 'test', 'helpers', 'ranks-verifier.ts') },
  sampling: {
    ...{ promptsPerStep: 6, groupSize: 8, maxNewTokens: 6 },
    ...{ filterGroups: 'reward', maxNumGenBatches: 3 },
  },
  objective: { preset: 'rapo', entropyTarget: 2, entropyStep: 0.001 },
  optimizer: { learningRate: 0.01, microBatchTokens: 100, stepsPerBatch: 2 },
  eval: { every: 4, samplesInTraining: 4, problemsInTraining: 0 },
  run: { steps, saveEvery: 2, keepBest: true, samplesPerStep: 48, threads: 1 },
}

/** Each number of ranks with each way of sharing out. */
const forms = [2, 3].flatMap(ranks =>
  shards.map(shard => ({ ranks, shard, name: `${ranks} ranks, ${shard}` })),
)
type Form = (typeof forms)[number]

interface Victim {
  readonly rank: number
  /** Steps that are done before; −1 where the ranks have just been started. */
  readonly step: number
  /** Milliseconds from then on. */
  readonly delay: number
}

interface Attempt {
  /** What the run was doing when a rank was killed, as the other ranks say; undefined where the run ended. */
  readonly phase?: string
  /** From the kill until the last rank had ended. */
  readonly seconds: number
  /** Milliseconds of the whole attempt. */
  readonly total: number
}

/** One start of all ranks, of which one is killed unless the run ends earlier. */
async function attempt(form: Form, output: string, restarts: number, victim?: Victim): Promise<Attempt> {
  const { ranks, shard, name } = form
  const file = path.join(scratch, `${name}.json`)
  writeFileSync(file, JSON.stringify({ ...config, distributed: { shard } }))
  const begin = performance.now()
  const over = new AbortController()
  const killing = victim && killLater(victim, output, over.signal)
  const { exitCode, stderr, failure } = await runCommand(
    [...cli, 'train', '-c', file, '--run.output', output],
    ranks,
    { patience, world: { TORCHELASTIC_RESTART_COUNT: `${restarts}` } },
  )
  const end = performance.now()
  over.abort()
  const killed = await killing
  const total = end - begin
  if (exitCode === 0) return { seconds: 0, total }
  const said = stderr.join('').split('\n')
  const fail = (what: string) => {
    throw new Error(`${what}\n${said.join('\n')}`)
  }
  if (killed === undefined || failure !== `rank ${victim!.rank} of ${ranks} was ended by SIGKILL`)
    fail(`${failure}, and was not killed`)
  const seconds = (end - killed!) / 1000
  if (1000 * seconds > patience.kill) fail(`a rank had not ended ${patience.kill / 1000} s after the kill`)
  const told = said.map(line => /^(?:rank \d+: )?rapo: ([^:]+): .*rank \d+ ended/.exec(line)?.[1])
  const phase = told
    .find(text => text !== undefined)
    ?.replaceAll(/(of )?(optimizer )?step \d+,? ?/g, '')
    .trim()
  return { phase: phase ?? (victim!.step < 0 ? 'starting' : 'without a word of the others'), seconds, total }
}

/** Returns when it killed the process; undefined if there was none any more. */
async function killLater({ rank, step, delay }: Victim, output: string, over: AbortSignal) {
  const begin = Date.now()
  try {
    while (step >= 0 && !(isOpen(output, begin) && stepsDone(output) >= step))
      await sleep(5, undefined, { signal: over })
    await sleep(delay, undefined, { signal: over })
  } catch {
    return undefined
  }
  const pid = pidOf(rank)
  if (pid === undefined) return undefined
  process.kill(pid, 'SIGKILL')
  return performance.now()
}

/** Whether an attempt since then has opened the run, and dropped the lines that an earlier one wrote after its checkpoint. */
function isOpen(output: string, since: number): boolean {
  const file = path.join(output, 'config.yaml')
  return existsSync(file) && statSync(file).mtimeMs >= since
}

/** The lines of metrics.jsonl. */
function stepsDone(output: string): number {
  const file = path.join(output, 'metrics.jsonl')
  return existsSync(file) ? readFileSync(file, 'latin1').split('\n').length - 1 : 0
}

/** The process of that rank, one of this process's children. */
function pidOf(rank: number): number | undefined {
  const children = readFileSync(`/proc/self/task/${process.pid}/children`, 'latin1').trim().split(' ')
  return children
    .filter(Boolean)
    .map(Number)
    .find(pid => {
      try {
        return readFileSync(`/proc/${pid}/environ`, 'latin1').split('\0').includes(`RANK=${rank}`)
      } catch {
        return false // it has just ended
      }
    })
}

/** All that must be the same bits. */
function bitsOf(run: string): Record<string, unknown> {
  const { dir } = readLatestCheckpoint(run)!
  const read = (file: string) => readFileSync(path.join(dir, file), 'latin1')
  const lines = ['metrics.jsonl', 'samples.jsonl', 'evals.jsonl', 'evals-samples.jsonl']
  return {
    ...Object.fromEntries(lines.map(name => [name, JSON.stringify(readLines(run, name))])),
    weights: read('model.safetensors'),
    reference: read('rapo/reference/model.safetensors'),
    state: read('rapo/state.safetensors'),
    trainer: read('rapo/trainer.json'),
    best: readBest(run),
    // A run that is broken off saves its last step, which then is one of the checkpoints that are kept.
    files: [
      ...readdirSync(run),
      ...readdirSync(path.join(run, 'checkpoints')).filter(name => !/^step-\d+$/.test(name)),
      ...readdirSync(dir, { recursive: true }),
    ]
      .sort()
      .join('\n'),
  }
}

/** The run without a kill, and the milliseconds of its start and of a step. */
async function measureWhole(form: Form) {
  const output = path.join(scratch, `unbroken ${form.name}`)
  const begin = performance.now()
  const over = new AbortController()
  let started = 0
  const watching = (async () => {
    while (stepsDone(output) < 1) await sleep(5, undefined, { signal: over.signal })
    started = performance.now() - begin
  })().catch(() => {})
  const { total } = await attempt(form, output, 0)
  over.abort()
  await watching
  console.log(
    `${form.name}: without a kill ${seconds(total)}, of which ${seconds(started)} to the first step`,
  )
  return { bits: bitsOf(output), start: started, step: (total - started) / steps }
}

const seconds = (milliseconds: number) => `${(milliseconds / 1000).toFixed(1)} s`

console.log(`seed ${seed}`)
const whole = new Map<string, Awaited<ReturnType<typeof measureWhole>>>()
const waits: number[] = []
const phases = new Map<string, number>()
const totals = { passed: 0, failed: 0 }
for (let run = 0; waits.length < kills && totals.failed < 5; run++) {
  const form = forms[run % forms.length]!
  const output = path.join(scratch, `run-${run}`)
  const moments: string[] = []
  try {
    if (!whole.has(form.name)) whole.set(form.name, await measureWhole(form))
    const { bits, start, step } = whole.get(form.name)!
    const draw = (): Victim => {
      const saved = existsSync(output) ? (readLatestCheckpoint(output)?.trainer.step ?? 0) : 0
      const isStarting = saved === steps || random.below(6) === 0
      return {
        rank: random.below(form.ranks),
        step: isStarting ? -1 : saved + random.below(steps - saved),
        delay: random.float() * (isStarting ? start : step),
      }
    }
    for (let restarts = 0; ; restarts++) {
      const isMortal = waits.length < kills && moments.length < killsPerRun
      const victim = isMortal ? draw() : undefined
      const { phase, seconds } = await attempt(form, output, restarts, victim)
      if (phase === undefined) break
      waits.push(seconds)
      phases.set(phase, (phases.get(phase) ?? 0) + 1)
      const when = victim!.step < 0 ? '' : ` after step ${victim!.step}`
      moments.push(`rank ${victim!.rank}${when} (${phase})`)
    }
    const own = bitsOf(output)
    const other = Object.keys(bits).filter(name => bits[name] !== own[name])
    if (other.length > 0) throw new Error(`not the bits of the run without a kill: ${other.join(', ')}`)
    totals.passed++
    console.log(`ok      ${form.name}, killed: ${moments.join(', ') || 'never'}`)
  } catch (error) {
    totals.failed++
    const { message } = error as Error
    console.log(`FAILED  ${form.name}, killed: ${moments.join(', ') || 'never'}: ${message}`)
  }
  rmSync(output, { recursive: true, force: true })
}
const counts = [...phases].sort((a, b) => b[1] - a[1]).map(([phase, count]) => `${count} ${phase}`)
console.log(`${waits.length} kills: ${counts.join('; ')}`)
console.log(
  `from a kill to the end of all ranks: median ${median(waits).toFixed(1)} s, most ${Math.max(...waits).toFixed(1)} s`,
)
console.log(`${totals.passed} passed, ${totals.failed} failed`)
process.exitCode = totals.failed > 0 ? 1 : 0
