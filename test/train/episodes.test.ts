/** Training and evaluation on episodes: what is trained on, what the files say, and the same bits after a kill. */
import { spawn } from 'node:child_process'
import { once } from 'node:events'
import { readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { moments } from '../../lib/base/stats.js'
import { parseConfig } from '../../lib/config/load.js'
import { evaluate } from '../../lib/eval/evaluate.js'
import type { LoadPolicy } from '../../lib/model/policy.js'
import { loadTokenizer } from '../../lib/model/tokenizer.js'
import type { Turn } from '../../lib/reward/verifier.js'
import type { StepMetrics } from '../../lib/train/metrics.js'
import { train } from '../../lib/train/train.js'
import { loadFakePolicy, makeFakeModel, makeTempDir, recordBatches } from '../helpers/fake-policy.js'
import { fingerprint, readLines } from '../helpers/run-files.js'
import { makeConfig } from '../helpers/train-child.js'

/** Writes 7 (id 10), = (id 19) and the end (id 1) often, so that some completions ask the calculator and some answer. */
const model = makeFakeModel({ 1: Math.log(200), 10: Math.log(200), 19: Math.log(200) })
const tokenizer = loadTokenizer(model)

const calculator = {
  task: { verifier: undefined, environment: 'countdown-calculator', maxTurns: 3, maxTurnTokens: 4 },
  sampling: { maxNewTokens: 16 },
}

interface Line {
  readonly step: number
  readonly turns: Turn[]
  readonly completion: string
  readonly reward: number
  readonly reason: string
  readonly finishReason: string
}
const samplesOf = (output: string) => readLines(output, 'samples.jsonl') as unknown as Line[]

async function run(changes: Parameters<typeof makeConfig>[2]) {
  const output = path.join(makeTempDir(), 'run')
  const { batches, loadPolicy } = recordBatches()
  const metrics: StepMetrics[] = []
  await train(makeConfig(output, model, { ...changes, run: { samplesPerStep: 9999, ...changes!.run } }), {
    loadPolicy,
    onStep: line => void metrics.push(line),
  })
  return { output, batches, metrics, samples: samplesOf(output) }
}

test('only tokens that the model wrote are trained on and counted', async () => {
  const { batches, metrics, samples } = await run({ ...calculator, run: { steps: 3 } })
  assert.ok(samples.some(({ turns }) => turns.length > 1))
  for (const [s, { turnsMean, completionLengthMean, tokens, truncatedFraction }] of metrics.entries()) {
    const own = samples.filter(({ step }) => step === s + 1)
    assert.is(own.length, 32)
    assert.is(turnsMean, moments(own.map(({ turns }) => turns.length)).mean)
    const batch = batches[s]!
    // Rows, by their sequences: the completions of the turns, each with its end, and nothing else.
    const rows = own.map(() => [] as number[])
    for (const [i, position] of batch.rowPositions.entries()) {
      const b = batch.sequences.offsets.findIndex(offset => offset > position) - 1
      assert.is(batch.sequences.tokenIds[position + 1], batch.tokenIds[i])
      rows[b]!.push(batch.tokenIds[i]!)
    }
    const written = own.map(({ turns }) => turns.map(({ completion }) => completion).join(''))
    assert.equal(
      rows.map(row => tokenizer.decode(row).replaceAll('<eos>', '')),
      written,
    )
    // All tokens, in the order said and answered.
    for (const [b, { turns, finishReason }] of own.entries()) {
      const text = tokenizer
        .decode(batch.sequences.tokenIds.slice(batch.sequences.offsets[b], batch.sequences.offsets[b + 1]))
        .replaceAll('<eos>', '')
      const said = turns.map(({ completion, observation = '' }, t) =>
        // What the environment says when no turn can follow is not read.
        t === turns.length - 1 && finishReason === 'length' ? completion : completion + observation,
      )
      assert.match(text, /^7=7:\d/)
      assert.is(text.slice(5), said.join(''))
      for (const { completion, observation } of turns) {
        if (observation !== undefined) assert.ok(completion.endsWith('='), completion)
      }
    }
    assert.is(tokens, batch.tokenIds.length)
    assert.is(completionLengthMean, tokens / 32)
    assert.is(truncatedFraction, own.filter(({ finishReason }) => finishReason === 'length').length / 32)
  }
})

test('an episode in one turn is what training on completions is, bit for bit', async () => {
  const file = path.join(makeTempDir(), 'once.mjs')
  writeFileSync(file, 'export default { reset: () => 0, step: () => ({ done: true }) }')
  const changes = { run: { steps: 4 } }
  const plain = await run(changes)
  const once_ = await run({ ...changes, task: { environment: file } })
  const { weights, state } = fingerprint(plain.output)
  assert.equal([fingerprint(once_.output).weights, fingerprint(once_.output).state], [weights, state])
  assert.equal(
    once_.samples.map(({ turns, ...line }) => {
      assert.equal(turns, [{ completion: line.completion }])
      return line
    }),
    plain.samples as object[],
  )
})

test('rewards beside that of the environment judge its episodes, and see the turns', async () => {
  const file = path.join(makeTempDir(), 'turns.mjs')
  writeFileSync(
    file,
    'export default (completion, answer, { turns, tokens }) => turns.length / 10 + tokens / 1000',
  )
  const { metrics, samples } = await run({
    ...calculator,
    task: { ...calculator.task, rewardFuncs: [file], rewardWeights: [2, 1] },
    run: { steps: 1 },
  })
  assert.equal(Object.keys(metrics[0]!.rewards!), ['countdown-calculator', 'turns'])
  for (const { turns, reward, ...line } of samples) {
    const [own, other] = (line as unknown as { rewards: { reward: number }[] }).rewards
    assert.is(reward, 2 * own!.reward + other!.reward)
    assert.is(Math.floor(other!.reward * 10 + 1e-9), turns.length)
  }
})

test('killed and resumed: the same bits', async () => {
  const changes = { ...calculator, run: { steps: 10 } }
  const whole = path.join(makeTempDir(), 'run')
  await train(makeConfig(whole, model, changes), { loadPolicy: loadFakePolicy })
  const killed = path.join(makeTempDir(), 'run')
  for (const [place, count] of [
    ['generate', 5],
    ['accumulate', 6],
    ['', 0],
  ] as const) {
    const args = [
      ...['--import', 'tsx', 'test/helpers/train-child.ts', 'run', killed, model],
      ...[place, String(count), JSON.stringify(changes)],
    ]
    const child = spawn(process.execPath, args, { stdio: 'inherit' })
    const [code, signal] = (await once(child, 'exit')) as [number | null, string | null]
    assert.is(signal ?? code, place === '' ? 0 : 'SIGKILL')
  }
  assert.equal(fingerprint(killed), fingerprint(whole))
})

test('pass@k over episodes, interrupted or not', async () => {
  const problems = path.join(makeTempDir(), 'problems.jsonl')
  const line = (id: string) => JSON.stringify({ id, prompt: `${id}=7:`, answer: { numbers: [7], target: 7 } })
  writeFileSync(problems, ['1', '2', '3'].map(id => `${line(id)}\n`).join(''))
  const measure = async (output: string, task: object = {}, failAt?: number) => {
    let calls = 0
    const loadPolicy: LoadPolicy = async (from, options) => {
      const policy = await loadFakePolicy(from, options)
      return {
        ...policy,
        async generate(...call) {
          if (++calls === failAt) throw new Error('broken')
          return policy.generate(...call)
        },
      }
    }
    const config = parseConfig({
      model: { dir: model },
      task: { ...calculator.task, ...task },
      data: { eval: problems },
      sampling: calculator.sampling,
      eval: { samples: 16, samplesPerCall: 16, keepSamples: 16, bootstrap: 100 },
    })
    const { seconds: _, ...result } = await evaluate(config, {
      ...{ dir: model, model: 'm', name: 'n', output, loadPolicy },
    })
    const samples = readFileSync(path.join(output, 'eval-samples.jsonl'), 'utf8')
    return {
      result,
      samples,
      lines: samples
        .trim()
        .split('\n')
        .map(text => JSON.parse(text) as Line),
    }
  }
  const whole = await measure(path.join(makeTempDir(), 'whole'))
  const own = whole.lines
  assert.is(own.length, 48)
  assert.ok(own.some(({ turns }) => turns.length > 1) && own.some(({ reward }) => reward === 1))
  assert.is(
    whole.result.perProblem.reduce((sum, { correct }) => sum + correct, 0),
    own.filter(({ reward }) => reward === 1).length,
  )
  // Tokens of the model: what it wrote, and the end of each completion that has one.
  const written = own
    .flatMap(({ turns }) => turns.map(({ completion }) => completion.length))
    .reduce((a, b) => a + b)
  const turns = own.reduce((sum, { turns }) => sum + turns.length, 0)
  assert.ok(whole.result.tokens > written && whole.result.tokens <= written + turns)
  const broken = path.join(makeTempDir(), 'broken')
  assert.match(await measure(broken, {}, 5).then(() => '', String), 'broken')
  const resumed = await measure(broken)
  assert.equal([resumed.result, resumed.samples], [whole.result, whole.samples])
  // Other limits are another measurement.
  const other = path.join(makeTempDir(), 'other')
  assert.match(await measure(other, {}, 5).then(() => '', String), 'broken')
  assert.match(
    await measure(other, { maxTurns: 2 }).then(() => '', String),
    'holds an interrupted measurement with task.maxTurns 3, not 2',
  )
})

test('what does not fit together is said before any work', async () => {
  const message = (task: object) => {
    try {
      makeConfig('x', model, { task })
      return ''
    } catch (error) {
      return (error as Error).message
    }
  }
  assert.match(message({ verifier: undefined }), 'task.verifier is missing: what rewards a completion')
  assert.match(message({ maxTurns: 3 }), 'task.maxTurns is 3; it needs task.environment')
  assert.match(message({ maxTurnTokens: 3 }), 'task.maxTurnTokens is 3; it needs task.environment')
  assert.match(
    message({ environment: 'x', maxTurnTokens: 5 }),
    'task.maxTurnTokens is 5; it must be ≤ sampling.maxNewTokens, 4',
  )
  assert.match(message({ environment: 'x', maxTurns: 0 }), 'task.maxTurns is 0; it must be')
  const file = path.join(makeTempDir(), 'open.mjs')
  writeFileSync(file, 'export default { reset: () => 0, step: () => ({ done: true }) }')
  const failing = run({ task: { verifier: undefined, environment: file } })
  assert.match(
    await failing.then(() => '', String),
    'the environment open ended the episode without a reward, and there is no task.verifier',
  )
})

test.run()
