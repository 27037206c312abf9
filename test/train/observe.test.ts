import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { RapoError } from '../../lib/base/errors.js'
import { parseConfig } from '../../lib/config/load.js'
import { emptyMetrics } from '../../lib/loss/objective.js'
import { readLatestCheckpoint } from '../../lib/train/checkpoint.js'
import { type StepMetrics, summarizeStep } from '../../lib/train/metrics.js'
import { flatten, loadHook, openObserver } from '../../lib/train/observe/observe.js'
import { formatPrometheus } from '../../lib/train/observe/prometheus.js'
import { crc32c, encodeRecord, openTensorBoard } from '../../lib/train/observe/tensorboard.js'
import { train } from '../../lib/train/train.js'
import { loadFakePolicy, makeFakeModel, makeTempDir } from '../helpers/fake-policy.js'

// ---- A decoder of event files that shares no code with the writer.

interface Event {
  wallTime: number
  step: number
  version?: string
  isStart: boolean
  scalars: Record<string, number>
}

/** CRC-32C bit by bit, masked. */
function masked(data: Uint8Array): number {
  let crc = 0xffffffffn
  for (const byte of data) {
    crc ^= BigInt(byte)
    for (let bit = 0; bit < 8; bit++) crc = crc & 1n ? (crc >> 1n) ^ 0x82f63b78n : crc >> 1n
  }
  crc ^= 0xffffffffn
  return Number((((crc >> 15n) | (crc << 17n)) + 0xa282ead8n) & 0xffffffffn)
}

function* records(file: Buffer): Generator<Buffer> {
  for (let at = 0; at < file.length; ) {
    const length = Number(file.readBigUInt64LE(at))
    assert.is(file.readUInt32LE(at + 8), masked(file.subarray(at, at + 8)), 'checksum of a length')
    const data = file.subarray(at + 12, at + 12 + length)
    assert.is(file.readUInt32LE(at + 12 + length), masked(data), 'checksum of data')
    yield data
    at += 16 + length
  }
}

/** The fields of a message: varints as numbers, the rest as bytes. */
function* fieldsOf(data: Buffer): Generator<[field: number, value: number | Buffer]> {
  let at = 0
  const varint = () => {
    let value = 0
    for (let shift = 1; ; shift *= 128) {
      const byte = data[at++]!
      value += (byte & 127) * shift
      if (byte < 128) return value
    }
  }
  while (at < data.length) {
    const key = varint()
    const kind = key & 7
    const size = kind === 1 ? 8 : kind === 5 ? 4 : kind === 2 ? varint() : 0
    assert.ok([0, 1, 2, 5].includes(kind), `wire type ${kind}`)
    yield [key >> 3, kind === 0 ? varint() : data.subarray(at, at + size)]
    at += size
  }
  assert.is(at, data.length)
}

function decodeEvent(data: Buffer): Event {
  const event: Event = { wallTime: Number.NaN, step: 0, isStart: false, scalars: {} }
  for (const [field, value] of fieldsOf(data)) {
    if (field === 1) event.wallTime = (value as Buffer).readDoubleLE()
    if (field === 2) event.step = value as number
    if (field === 3) event.version = String(value)
    if (field === 7)
      for (const [inner, status] of fieldsOf(value as Buffer)) event.isStart = inner === 1 && status === 1
    if (field !== 5) continue
    for (const [, summary] of fieldsOf(value as Buffer)) {
      const parts = new Map(fieldsOf(summary as Buffer))
      event.scalars[String(parts.get(1))] = (parts.get(2) as Buffer).readFloatLE()
    }
  }
  return event
}

const readEvents = (dir: string) =>
  readdirSync(dir)
    .sort()
    .map(name => [...records(readFileSync(path.join(dir, name)))].map(decodeEvent))

// ---- TensorBoard

test('CRC-32C: the check value of the polynomial, and those of RFC 3720, B.4', () => {
  assert.is(crc32c(Buffer.from('123456789')), 0xe3069283)
  assert.is(crc32c(new Uint8Array(32)), 0x8a9136aa)
  assert.is(crc32c(new Uint8Array(32).fill(0xff)), 0x62a8ab43)
})

test('a record holds its data between two checksums', () => {
  const data = Buffer.from('some bytes')
  assert.equal(
    [...records(Buffer.concat([encodeRecord(data), encodeRecord(Buffer.alloc(0))]))],
    [data, Buffer.alloc(0)],
  )
})

test('an event file: version, start, then a summary a step', () => {
  const dir = path.join(makeTempDir(), 'made')
  const before = Date.now() / 1000
  const board = openTensorBoard(dir, 300)
  board.add(301, [
    ['rewardMean', 0.25],
    ['seconds/rollout', 1e-3],
    ['gradNorm', Number.NaN],
  ])
  board.add(2 ** 40, [['ratioMean', Infinity]])
  board.close()
  const [events] = readEvents(dir)
  assert.is(events!.length, 4)
  assert.ok(events!.every(({ wallTime }) => wallTime >= before && wallTime <= Date.now() / 1000))
  assert.is(events![0]!.version, 'brain.Event:2')
  assert.equal([events![1]!.isStart, events![1]!.step], [true, 301])
  assert.is(events![2]!.step, 301)
  assert.equal(events![2]!.scalars, {
    rewardMean: 0.25,
    'seconds/rollout': Math.fround(1e-3),
    gradNorm: Number.NaN,
  })
  assert.equal([events![3]!.step, events![3]!.scalars], [2 ** 40, { ratioMean: Infinity }])

  const fresh = makeTempDir()
  openTensorBoard(fresh).close()
  const [start] = readEvents(fresh)
  assert.equal([start![1]!.isStart, start![1]!.step], [true, 1])
})

test('a directory that cannot be made is an error that names the file', () => {
  const dir = makeTempDir()
  writeFileSync(path.join(dir, 'file'), '')
  assert.throws(
    () => openTensorBoard(path.join(dir, 'file', 'tensorboard')),
    (error: unknown) =>
      error instanceof RapoError && error.code === 'ERR_RAPO_IO' && /tfevents/.test(error.message),
  )
})

// ---- Prometheus

const metrics: StepMetrics = {
  step: 7,
  ...summarizeStep(
    [{ reward: 1, completionIds: new Int32Array(3), finishReason: 'stop' } as never],
    1,
    { ...emptyMetrics, tokens: 3, klSum: 0.3, ratioSum: Infinity },
    [{ gradNorm: Number.NaN, skipped: true }],
  ),
  learningRate: 1e-6,
  seconds: { rollout: 1.5, score: 0, train: 2, save: 0 },
}

test('Prometheus: one gauge a metric, with help and type, labels escaped', () => {
  const text = formatPrometheus(metrics, { run: 'a "b"\\c\nd' })
  const lines = text.trimEnd().split('\n')
  assert.ok(text.endsWith('\n'))
  const run = 'run="a \\"b\\"\\\\c\\nd"'
  assert.ok(lines.includes(`rapo_step{${run}} 7`), text)
  assert.ok(lines.includes(`rapo_reward_mean{${run}} 1`), text)
  assert.ok(lines.includes(`rapo_seconds{${run},phase="rollout"} 1.5`), text)
  assert.ok(lines.includes(`rapo_grad_norm{${run}} NaN`), text)
  assert.ok(lines.includes(`rapo_ratio_mean{${run}} +Inf`), text)
  assert.ok(lines.includes(`rapo_learning_rate{${run}} 0.000001`), text)
  const names = new Set(
    Object.keys(metrics).map(name => `rapo_${name.replace(/[A-Z]/g, c => `_${c.toLowerCase()}`)}`),
  )
  assert.equal(
    new Set(lines.filter(line => line.startsWith('# TYPE')).map(line => line.split(' ')[2])),
    names,
  )
  // The exposition format, line by line.
  const sample = /^[a-z_]+\{(?:[a-z]+="(?:[^"\\\n]|\\[\\"n])*",?)*\} (?:NaN|[+-]Inf|[-+.e\d]+)$/
  for (const line of lines) assert.ok(/^# (HELP|TYPE) rapo_[a-z_]+ \S/.test(line) || sample.test(line), line)
})

test('flatten: inner groups by path, nothing but numbers', () => {
  assert.equal(flatten({ step: 1, kl: 2, seconds: { save: 3 }, note: 'x', none: null }, '/'), [
    ['kl', 2],
    ['seconds/save', 3],
  ])
})

// ---- A run

function makeConfig(changes: { run?: object; observe?: object }) {
  const dir = makeTempDir()
  const problems = path.join(dir, 'problems.jsonl')
  writeFileSync(
    problems,
    Array.from({ length: 4 }, (_, i) => `${JSON.stringify({ prompt: `${i}=7:`, answer: '7' })}\n`).join(''),
  )
  return parseConfig({
    model: { dir: makeFakeModel() },
    data: { train: problems },
    task: { verifier: 'exact' },
    sampling: { promptsPerStep: 2, groupSize: 4, maxNewTokens: 3 },
    objective: { preset: 'dr-grpo' },
    run: { output: path.join(dir, 'run'), steps: 4, saveEvery: 2, ...changes.run },
    observe: changes.observe ?? {},
  })
}

const readMetrics = (output: string) =>
  readFileSync(path.join(output, 'metrics.jsonl'), 'utf8')
    .trim()
    .split('\n')
    .map(line => JSON.parse(line) as StepMetrics)

test('a run: all three see every step as metrics.jsonl has it; a resumed run goes on', async () => {
  const dir = makeTempDir()
  const prometheus = path.join(dir, 'rapo.prom')
  const hook = path.join(dir, 'hook.mjs')
  writeFileSync(
    hook,
    `import { appendFileSync } from 'node:fs'
    export default async (metrics, { config }) => appendFileSync(${JSON.stringify(path.join(dir, 'hooked'))}, config.run.steps + ':' + JSON.stringify(metrics) + '\\n')`,
  )
  const config = makeConfig({ run: { steps: 2 }, observe: { tensorboard: true, prometheus, hook } })
  await train(config, { loadPolicy: loadFakePolicy })
  const longer = { ...config, run: { ...config.run, steps: 4 } }
  await train(longer, { loadPolicy: loadFakePolicy, resume: true })

  const lines = readMetrics(config.run.output)
  const files = readEvents(path.join(config.run.output, 'tensorboard'))
  const starts = files.flat().filter(({ isStart }) => isStart)
  assert.equal(starts.map(({ step }) => step).sort(), [1, 3])
  const points = files.flat().filter(({ scalars }) => 'rewardMean' in scalars)
  assert.equal(
    points.map(({ step, scalars }) => [step, scalars]).sort(([a], [b]) => Number(a) - Number(b)),
    lines.map(line => [
      line.step,
      Object.fromEntries(flatten(line, '/').map(([tag, value]) => [tag, Math.fround(value)])),
    ]),
  )
  assert.is(readFileSync(prometheus, 'utf8'), formatPrometheus(lines.at(-1)!, { run: config.run.output }))
  assert.not(existsSync(`${prometheus}.tmp`))
  const hooked = readFileSync(path.join(dir, 'hooked'), 'utf8').trim().split('\n')
  assert.equal(
    hooked,
    lines.map(line => `${line.step <= 2 ? 2 : 4}:${JSON.stringify(line)}`),
  )
})

test('overwriting a run removes its event files', async () => {
  const config = makeConfig({ run: { steps: 1 }, observe: { tensorboard: true } })
  for (const overwrite of [false, true]) await train(config, { loadPolicy: loadFakePolicy, overwrite })
  assert.is(readEvents(path.join(config.run.output, 'tensorboard')).length, 1)
})

test('by default a run writes none of it', async () => {
  const config = makeConfig({ run: { steps: 1 } })
  await train(config, { loadPolicy: loadFakePolicy })
  assert.not(readdirSync(config.run.output).includes('tensorboard'))
})

const codeAndMessage = async (work: Promise<unknown>) => {
  const error = await work.then(
    () => assert.unreachable('nothing was thrown'),
    error => error,
  )
  assert.instance(error, RapoError)
  return `${(error as RapoError).code} ${(error as RapoError).message}`
}

test('a hook that is not there, does not load or is no function ends the run before it begins', async () => {
  const dir = makeTempDir()
  const cases: [name: string, content: string | undefined, expected: RegExp][] = [
    ['missing.mjs', undefined, /ERR_RAPO_CONFIG observe\.hook: there is no file .*missing\.mjs/],
    [
      'broken.mjs',
      'throw new Error("boom")',
      /ERR_RAPO_CONFIG observe\.hook .*broken\.mjs did not load: boom/,
    ],
    ['odd.mjs', 'throw "boom"', /did not load: boom/],
    [
      'value.mjs',
      'export default 3',
      /ERR_RAPO_CONFIG observe\.hook .*value\.mjs: its default export must be a function/,
    ],
  ]
  for (const [name, content, expected] of cases) {
    const hook = path.join(dir, name)
    if (content !== undefined) writeFileSync(hook, content)
    const config = makeConfig({ observe: { hook } })
    // Before the model is loaded, and without a run directory that has nothing in it.
    const loadPolicy = async () => assert.unreachable('a model was loaded') as never
    assert.match(await codeAndMessage(train(config, { loadPolicy })), expected)
    assert.not(existsSync(config.run.output))
  }
})

test('a hook that throws ends the run; its step is on disk', async () => {
  const hook = path.join(makeTempDir(), 'hook.mjs')
  writeFileSync(hook, 'export default ({ step }) => { if (step === 2) throw new Error("full") }')
  const config = makeConfig({ observe: { hook } })
  assert.match(
    await codeAndMessage(train(config, { loadPolicy: loadFakePolicy })),
    /ERR_RAPO_INTERNAL observe\.hook .*hook\.mjs failed on step 2: full/,
  )
  assert.is(readMetrics(config.run.output).length, 2)
})

test('openObserver writes nothing before a step', async () => {
  const config = makeConfig({
    observe: { tensorboard: true, prometheus: path.join(makeTempDir(), 'x.prom') },
  })
  const observer = openObserver(config, await loadHook(config), 0, () => {})
  observer.close()
  assert.not(existsSync(config.run.output))
  assert.not(existsSync(config.observe.prometheus))
})

test('files of observers that cannot be written any more: warned of once, and the run goes on', async () => {
  const dir = path.join(makeTempDir(), 'textfiles')
  mkdirSync(dir)
  const prometheus = path.join(dir, 'rapo.prom')
  const config = makeConfig({ observe: { tensorboard: true, prometheus } })
  const warnings: string[] = []
  const warned = (warning: Error) => warnings.push(warning.message)
  process.on('warning', warned)
  const onStart = () => {
    rmSync(dir, { recursive: true })
    writeFileSync(path.join(config.run.output, 'tensorboard'), '')
  }
  try {
    assert.is(await train(config, { loadPolicy: loadFakePolicy, onStart }), 4)
    await new Promise(resolve => setImmediate(resolve))
  } finally {
    process.off('warning', warned)
  }
  assert.is(readMetrics(config.run.output).length, 4)
  const about = (file: string) =>
    warnings.filter(text => text.includes(file) && text.endsWith('; the run goes on without'))
  assert.is(about(prometheus).length, 1, warnings.join('\n'))
  assert.is(about('tfevents').length, 1, warnings.join('\n'))
})

test('a hook that throws between saves: the run goes on from its step', async () => {
  const hook = path.join(makeTempDir(), 'hook.mjs')
  writeFileSync(hook, 'export default ({ step }) => { if (step === 3) throw new Error("full") }')
  const config = makeConfig({ run: { saveEvery: 50 }, observe: { hook } })
  assert.match(
    await codeAndMessage(train(config, { loadPolicy: loadFakePolicy })),
    /failed on step 3: full \(\S+hook\S*:\d+:\d+\)\nthe state after step 3 is saved in /,
  )
  assert.is(readLatestCheckpoint(config.run.output)!.trainer.step, 3)
})

test('an evaluation goes to TensorBoard at its step, to Prometheus until the next, to the hook once', async () => {
  const [output, prometheus] = [makeTempDir(), path.join(makeTempDir(), 'rapo.prom')]
  const [hook, log] = [path.join(output, 'hook.mjs'), path.join(output, 'log.jsonl')]
  writeFileSync(
    hook,
    `import { appendFileSync } from 'node:fs'
     export default ({ step }, { evaluation }) =>
       appendFileSync(${JSON.stringify(log)}, JSON.stringify([step, evaluation?.step ?? null]) + '\\n')`,
  )
  const config = parseConfig({
    ...{ model: { dir: 'm' }, task: { verifier: 'math' }, run: { output } },
    observe: { tensorboard: true, prometheus, hook },
  })
  const observer = openObserver(config, await loadHook(config), 0, () => {})
  const all = { problems: 1, passAtK: [0.25, 0.5], low: [0, 0], high: [1, 1] }
  await observer.step(metrics)
  observer.evaluated({ step: 8, k: [1, 2], groups: { all } } as never)
  await observer.step({ ...metrics, step: 8 })
  await observer.step({ ...metrics, step: 9 })
  observer.close()
  assert.is(readFileSync(log, 'utf8'), '[7,null]\n[8,8]\n[9,null]\n')
  const scalars = readEvents(path.join(output, 'tensorboard'))
    .flat()
    .filter(event => 'eval/pass@1' in event.scalars)
  assert.equal(
    scalars.map(({ step, scalars }) => [step, scalars]),
    [[8, { 'eval/pass@1': 0.25, 'eval/pass@2': 0.5 }]],
  )
  assert.match(readFileSync(prometheus, 'utf8'), `rapo_eval{run="${output}",measure="pass@2"} 0.5`)
})

test.run()
