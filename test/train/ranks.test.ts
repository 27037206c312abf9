/** Training in several processes, over Gloo, with the engine and the command line. */
import { spawnSync } from 'node:child_process'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { readBest, readLatestCheckpoint } from '../../lib/train/checkpoint.js'
import { dealGroups, ownPart } from '../../lib/train/share.js'
import { cli } from '../helpers/cli.js'
import { makeTempDir } from '../helpers/fake-policy.js'
import { freePort, runCommand, runRanks } from '../helpers/ranks.js'
import { readLines } from '../helpers/run-files.js'
import { makeTinyModel } from '../helpers/tiny-model.js'

const root = fileURLToPath(new URL('../..', import.meta.url))
const dir = makeTempDir()
const model = await makeTinyModel()
const problems = path.join(dir, 'problems.jsonl')
const lines = Array.from({ length: 10 }, (_, i) => ({
  id: `p${i}`,
  prompt: `7=7:${'3'.repeat(i)}`,
  answer: 7,
}))
writeFileSync(problems, lines.map(line => `${JSON.stringify(line)}\n`).join(''))

/** Completions that one of two ranks judges in a step. */
const perStep = 24

const plain = {
  model: { dir: model, refModelSyncSteps: 2 },
  data: { train: problems },
  task: { verifier: path.join(root, 'test/helpers/ranks-verifier.ts') },
  sampling: { promptsPerStep: 6, groupSize: 8, maxNewTokens: 6 },
  objective: { preset: 'rapo' },
  optimizer: { learningRate: 0.01, microBatchTokens: 100 },
  run: { steps: 4, saveEvery: 3, samplesPerStep: 48, threads: 1 },
}
const everything = {
  ...plain,
  sampling: { ...plain.sampling, filterGroups: 'reward', maxNumGenBatches: 3 },
  objective: { preset: 'rapo', entropyTarget: 2, entropyStep: 0.001, topEntropyFraction: 0.9 },
  correction: { level: 'token', maxDivergence: 1 },
  optimizer: { ...plain.optimizer, stepsPerBatch: 2 },
  model: { dir: model },
  lora: { r: 4, loraAlpha: 8 },
}

function writeConfig(name: string, values: object): string {
  const file = path.join(dir, `${name}.json`)
  writeFileSync(file, JSON.stringify(values))
  return file
}
/** Problems that are measured in two calls each. */
const measured = {
  ...plain,
  data: { ...plain.data, eval: problems },
  eval: { samples: 8, samplesPerCall: 4, keepSamples: 3, bootstrap: 100 },
}
const watched = {
  ...measured,
  run: { ...plain.run, steps: 2, keepBest: true },
  eval: { ...measured.eval, every: 1, onStart: true, samplesInTraining: 8, problemsInTraining: 0 },
}
/** Several micro-batches, of which the ranks have different numbers. */
const sharded = { ...plain, distributed: { shard: 'gradients' } }
const files = {
  sharded: writeConfig('sharded', sharded),
  plain: writeConfig('plain', plain),
  everything: writeConfig('everything', everything),
  measured: writeConfig('measured', measured),
  watched: writeConfig('watched', watched),
}

/** Trains in a directory of that name. */
async function train(
  name: string,
  processes: number,
  { config = files.plain, action = '', args = [] as readonly string[] } = {},
) {
  const env = { ...process.env, RAPO_TEST_ACTION: action }
  const output = path.join(dir, name)
  const command = [...cli, 'train', '-c', config, '--run.output', output, ...args] as const
  return { output, ...(await runCommand(command, processes, { env })) }
}

/** What must be the same bits in two runs that did the same. */
function bitsOf(run: string) {
  const checkpoint = readLatestCheckpoint(run)!
  const read = (file: string) => readFileSync(path.join(checkpoint.dir, file), 'latin1')
  return {
    metrics: readLines(run, 'metrics.jsonl'),
    samples: readLines(run, 'samples.jsonl'),
    weights: read('model.safetensors'),
    state: read('rapo/state.safetensors'),
    trainer: read('rapo/trainer.json'),
  }
}

function assertClose(actual: unknown, expected: unknown, tolerance: number, what: string): void {
  const [a, b] = [actual as number, expected as number]
  assert.ok(Math.abs(a - b) <= tolerance * Math.max(1e-3, Math.abs(b)), `${what}: ${a}, expected ${b}`)
}

/** Of which a rank's rounding has no part. */
const exact = [
  'rewardMean',
  'rewardStd',
  'tokens',
  'completionLengthMean',
  'truncatedFraction',
  'skippedSteps',
]
const rounded = ['loss', 'kl', 'entropy', 'gradNorm', 'ratioMean']

/**
 * The first step's sums are those of one process, added in double precision in another order, but for the gradient, whose
 * float32 sums are rounded in another order: 2^-24 relative an addition. Later steps begin with weights that differ by that.
 */
function assertAlike(run: string, one: string): void {
  const [metrics, expected] = [readLines(run, 'metrics.jsonl'), readLines(one, 'metrics.jsonl')]
  assert.is(metrics.length, expected.length)
  for (const [i, line] of metrics.entries()) {
    for (const name of exact) assert.is(line[name], expected[i]![name], `step ${i + 1}, ${name}`)
    for (const name of rounded) {
      const tolerance = i > 0 ? 1e-3 : name === 'gradNorm' ? 1e-6 : 1e-12
      assertClose(line[name], expected[i]![name], tolerance, `step ${i + 1}, ${name}`)
    }
  }
  const texts = (of: string) =>
    readLines(of, 'samples.jsonl').map(({ step, problemId, completion, reward }) => [
      step,
      problemId,
      completion,
      reward,
    ])
  assert.equal(texts(run), texts(one))
}

test('two and three ranks train as one process does', async () => {
  const one = await train('one', 1)
  assert.is(one.exitCode, 0, one.stderr.join('\n'))
  for (const processes of [2, 3]) {
    const run = await train(`world-${processes}`, processes)
    assert.is(run.exitCode, 0, run.stderr.join('\n'))
    // Rank 0 speaks for all.
    assert.match(run.stdout[0]!, /^4 steps done/)
    assert.equal(run.stdout.slice(1).join(''), '')
    assert.equal(run.stderr.slice(1).join(''), '')
    assertAlike(run.output, one.output)
  }
})

test('with an adapter, filtered groups, corrections, an entropy target and several optimizer steps', async () => {
  const one = await train('all-1', 1, { config: files.everything })
  assert.is(one.exitCode, 0, one.stderr.join('\n'))
  const two = await train('all-2', 2, { config: files.everything })
  assert.is(two.exitCode, 0, two.stderr.join('\n'))
  const [line, expected] = [two.output, one.output].map(run => readLines(run, 'metrics.jsonl')[0]!)
  for (const name of [
    ...exact,
    'generatedGroups',
    'filteredFraction',
    'maskedFraction',
    'zeroAdvantageFraction',
  ])
    assert.is(line![name], expected![name], name)
  // The second optimizer step begins with weights that differ by roundings.
  for (const name of [...rounded, 'entropyCoef', 'importanceMean'])
    assertClose(line![name], expected![name], 1e-5, name)
})

test('a rank that is killed ends the run, which the same command in a new attempt finishes to the same bits', async () => {
  const broken = await train('broken', 2, { action: `kill 1 ${2 * perStep + 5}` })
  assert.is(broken.exitCode, 137)
  assert.is(broken.failure, 'rank 1 of 2 was ended by SIGKILL')
  assert.match(broken.stderr[0]!, /rapo: step 3, rollouts: .*rank 1 ended without a message: killed/)
  assert.match(broken.stderr[0]!, /the state after step 2 is saved/)
  assert.is(readLatestCheckpoint(broken.output)!.trainer.step, 2)
  // As torchrun starts the processes again, but with a store that rank 0 serves.
  const command = [...cli, 'train', '-c', files.plain, '--run.output', broken.output] as const
  const attempt = { MASTER_PORT: `${await freePort()}`, TORCHELASTIC_USE_AGENT_STORE: 'False' }
  const finished = await runCommand(command, 2, { world: { ...attempt, TORCHELASTIC_RESTART_COUNT: '1' } })
  assert.is(finished.exitCode, 0, finished.stderr.join('\n'))
  assert.equal(bitsOf(broken.output), bitsOf(path.join(dir, 'world-2')))
})

test('ranks that share out gradients and state train as one process does', async () => {
  const run = await train('sharded', 2, { config: files.sharded })
  assert.is(run.exitCode, 0, run.stderr.join('\n'))
  assertAlike(run.output, path.join(dir, 'one'))
})

test('--processes starts the ranks; SIGTERM saves what each has, and the run goes on to the same bits', async () => {
  const action = `terminate 0 ${perStep + 5}`
  const stopped = await train('stopped', 1, { config: files.sharded, action, args: ['--processes', '2'] })
  assert.is(stopped.exitCode, 143, stopped.stderr.join('\n'))
  const { step } = readLatestCheckpoint(stopped.output)!.trainer
  assert.ok(step === 1 || step === 2, `saved after step ${step}`)
  assert.match(stopped.stdout[0]!, `saved after step ${step}; to go on: `)
  assert.match(stopped.stdout[0]!, `train --resume ${stopped.output} --processes 2`)
  const resumed = await runCommand([...cli, 'train', '--resume', stopped.output, '--processes', '2'], 1)
  assert.is(resumed.exitCode, 0, resumed.stderr.join('\n'))
  assert.equal(bitsOf(stopped.output), bitsOf(path.join(dir, 'sharded')))
})

test('a rank that alone is told to end: all save the step that is done', async () => {
  const { output, exitCode, stdout, stderr } = await train('left', 2, { action: `leave 1 ${perStep + 5}` })
  assert.ok([130, 143].includes(exitCode), `${exitCode}: ${stderr.join('\n')}`)
  const { step } = readLatestCheckpoint(output)!.trainer
  assert.ok(step === 1 || step === 2, `saved after step ${step}`)
  assert.match(stdout[0]!, `saved after step ${step}; to go on: `)
})

test('ranks that share out the optimizer cannot save what a killed one had, and say so', async () => {
  const action = `kill 1 ${2 * perStep + 5}`
  const { output, exitCode, stderr } = await train('parts', 2, { config: files.sharded, action })
  assert.is(exitCode, 137)
  assert.match(stderr[0]!, /the state after step 2 could not be saved: the other processes had their parts/)
  assert.is(readLatestCheckpoint(output), undefined)
})

test('what one rank fails with is told by all, and what is done is saved', async () => {
  const failed = await train('failed', 2, { action: `throw 1 ${perStep + 5}` })
  assert.is(failed.exitCode, 1)
  const why = /the verifier failed on problem "p\d", completion ".*": the judge is ill/
  assert.match(failed.stderr[0]!, /^rapo: rank 1: the verifier failed/m)
  assert.match(failed.stderr[0]!, why)
  assert.match(failed.stderr[0]!, /the state after step 1 is saved in .*\nto go on from step 1: /)
  assert.match(failed.stderr[1]!, /^rank 1: rapo: the verifier failed/)
})

/** pass@k and all that is counted; the times and the directory's name differ. */
function evalOf(output: string): Record<string, unknown> {
  const { seconds, model, name, ...counted } = JSON.parse(
    readFileSync(path.join(output, 'eval.json'), 'utf8'),
  )
  return { ...counted, samples: readLines(output, 'eval-samples.jsonl') }
}

test('rapo eval shares the problems out: the numbers of one process, also after a kill', async () => {
  const measure = async (name: string, processes: number, action = '') => {
    const output = path.join(dir, name)
    const env = { ...process.env, RAPO_TEST_ACTION: action }
    const args = ['--model', model, '-c', files.measured, '--output', output]
    return { output, ...(await runCommand([...cli, 'eval', ...args], processes, { env })) }
  }
  const one = await measure('eval-1', 1)
  assert.is(one.exitCode, 0, one.stderr.join('\n'))
  const three = await measure('eval-3', 3)
  assert.is(three.exitCode, 0, three.stderr.join('\n'))
  assert.equal(evalOf(three.output), evalOf(one.output))
  assert.match(three.stdout[0]!, /tokens in .* written to/)
  assert.equal(three.stdout.slice(1).join('') + three.stderr.slice(1).join(''), '')
  // Each rank judges 4 completions a round.
  const killed = await measure('eval-killed', 2, 'kill 1 10')
  assert.is(killed.exitCode, 137)
  assert.match(killed.stderr[0]!, /^rapo: the evaluation, call 5 of 20: .*rank 1 ended without a message/m)
  assert.is(readLines(killed.output, 'eval-progress.jsonl').length, 1 + 4)
  const finished = await measure('eval-killed', 1)
  assert.is(finished.exitCode, 0, finished.stderr.join('\n'))
  assert.equal(evalOf(finished.output), evalOf(one.output))
})

test('an evaluation during training is that of rapo eval in one process, and the best checkpoint is kept', async () => {
  const { output, exitCode, stderr } = await train('watched', 2, { config: files.watched })
  assert.is(exitCode, 0, stderr.join('\n'))
  const [first, ...rest] = readLines(output, 'evals.jsonl')
  const { seconds, step, ...counted } = first!
  const { samples, ...expected } = evalOf(path.join(dir, 'eval-1'))
  assert.equal(counted, expected)
  assert.is(step, 0)
  assert.equal(
    rest.map(({ step }) => step),
    [1, 2],
  )
  assert.ok([1, 2].includes(readBest(output)!))
})

test('what a launcher that started several processes cannot mean is refused', () => {
  const world = { RANK: '0', WORLD_SIZE: '2', MASTER_ADDR: '127.0.0.1', MASTER_PORT: '1' }
  const fail = (...given: string[]) => {
    const [node, ...args] = [...cli, ...given]
    const env = { ...process.env, ...world }
    const { status, stderr } = spawnSync(node!, args, { env, encoding: 'utf8' })
    assert.is(status, 1)
    return stderr
  }
  assert.match(
    fail('generate', '--model', model),
    /rapo generate is the work of one process, but a launcher started 2 processes/,
  )
  assert.match(
    fail('train', '-c', files.plain, '--processes', '3'),
    /--processes is 3, but a launcher started 2 processes/,
  )
})

test('a rank that is killed while all write the state: the checkpoint before is whole, and another world goes on', async () => {
  const output = path.join(dir, 'died')
  const { exitCode, stderr } = await runRanks('save-child.ts', 2, [files.sharded, output, '1', '4'])
  assert.is(exitCode, 137)
  assert.match(stderr[0]!, /^the checkpoint of step 4, state: .*rank 1 ended without a message: killed/m)
  assert.is(readLatestCheckpoint(output)!.trainer.step, 3)
  const args = ['train', '--resume', output, '--distributed.shard', 'optimizer']
  const resumed = await runCommand([...cli, ...args], 1)
  assert.is(resumed.exitCode, 0, resumed.stderr.join('\n'))
  assertAlike(output, path.join(dir, 'one'))
  assert.not(existsSync(path.join(output, 'checkpoints', 'step-000004.tmp')))
})

test('what all ranks find wrong is told once', async () => {
  const taken = await train('world-2', 2)
  assert.is(taken.exitCode, 1)
  assert.match(taken.stderr[0]!, /holds a run already/)
  assert.is(taken.stderr[1], '')
  const missing = await train('missing', 2, { args: ['--data.train', 'none.jsonl'] })
  assert.match(missing.stderr[0]!, /none\.jsonl/)
  assert.is(missing.stderr[1], '')
})

test('prompts are shared out in parts, groups by their cost', () => {
  const items = ['a', 'b', 'c', 'd', 'e']
  const parts = [0, 1, 2].map(rank => ownPart(items, { rank, size: 3 }))
  assert.equal(
    parts.flatMap(({ part }) => part),
    items,
  )
  assert.equal(
    parts.map(({ part, before }) => [part.length, before]),
    [
      [2, 0],
      [1, 2],
      [2, 3],
    ],
  )
  const group = (tokens: number) => [{ tokenIds: Array(tokens).fill(1), completionMask: [], advantage: 0 }]
  const info = { parameters: 1000, layers: 1, hiddenSize: 1 }
  const groups = [10, 70, 20, 30, 40].map(group)
  // 70 tokens of one sequence cost 74,900, 40 and 30 of two cost 72,500: 20 goes there too, and 10 to the first.
  const dealt = [0, 1].map(rank => dealGroups(groups, info, { rank, size: 2 }))
  assert.equal(dealt, [
    [0, 1],
    [2, 3, 4],
  ])
  assert.equal(dealGroups(groups, info, { rank: 0, size: 1 }), [0, 1, 2, 3, 4])
  assert.equal(dealGroups([], info, { rank: 1, size: 2 }), [])
})

test.run()
