/**
 * Whatever is in a file that a person, another program or a killed process wrote: a reader gives a value or throws a
 * RapoError, and nothing else. The same inputs every time; RAPO_FUZZ_RUNS and RAPO_FUZZ_SEED look further.
 */
import { cpSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import fc from 'fast-check'
import { parquetWriteBuffer } from 'hyparquet-writer'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { RapoError } from '../../lib/base/errors.js'
import { parseJsonLines, truncateJsonLines } from '../../lib/base/jsonl.js'
import { fields } from '../../lib/config/help.js'
import { loadConfig, parseConfig, stringifyConfig } from '../../lib/config/load.js'
import { createCursor } from '../../lib/data/cursor.js'
import { type Problem, readProblems } from '../../lib/data/problems.js'
import { readRows } from '../../lib/data/rows.js'
import { loadTokenizer, readStopTokenIds } from '../../lib/model/tokenizer.js'
import { writeReport } from '../../lib/report/page.js'
import { countdown, verifyCountdown } from '../../lib/reward/countdown.js'
import { readLatestCheckpoint } from '../../lib/train/checkpoint.js'
import { makeFakeModel, makeTempDir } from '../helpers/fake-policy.js'
import { writeThreeRuns } from '../helpers/report-fixture.js'

const numRuns = Number(process.env.RAPO_FUZZ_RUNS ?? 100)
const seed = Number(process.env.RAPO_FUZZ_SEED ?? 1)
const dir = makeTempDir()

/** The body's value, or undefined where it threw a RapoError with a message. */
function orRapoError<T>(body: () => T): T | undefined {
  try {
    return body()
  } catch (error) {
    if (!(error instanceof RapoError)) throw error
    assert.is.not(error.message, '')
    return undefined
  }
}

// ---- What files may hold

/** JSON values whose keys are now and then those that a reader looks for. */
const jsonOf = (keys: readonly string[]) =>
  fc.letrec<{ value: unknown }>(tie => ({
    value: fc.oneof(
      { depthSize: 'small', withCrossShrink: true },
      fc.oneof(
        fc.constantFrom<unknown>(null, true, 0, -1, 1, 2 ** 53, 1e308, 1.5, '', 'x', '__proto__'),
        fc.double({ noNaN: true }),
        fc.string({ unit: 'binary' }),
      ),
      fc.array(tie('value'), { maxLength: 4 }),
      fc.dictionary(
        fc.oneof(fc.constantFrom(...keys, '__proto__', 'constructor'), fc.string()),
        tie('value'),
        {
          maxKeys: 6,
        },
      ),
    ),
  })).value

/** A text in which some stretches were replaced by fragments, or other stretches of it. */
const mutated = (text: string, fragments: readonly string[]) =>
  fc
    .array(
      fc.record({
        at: fc.nat(Math.max(0, text.length - 1)),
        length: fc.oneof(fc.constant(0), fc.nat(12)),
        piece: fc.oneof(
          fc.constantFrom(...fragments),
          fc.string({ unit: 'binary', maxLength: 8 }),
          fc.nat(text.length).map(start => text.slice(start, start + 20)),
        ),
      }),
      { minLength: 1, maxLength: 5 },
    )
    .map(edits =>
      edits.reduce((now, { at, length, piece }) => now.slice(0, at) + piece + now.slice(at + length), text),
    )

const jsonFragments = [
  '{',
  '}',
  '[',
  ']',
  ',',
  ':',
  '"',
  'null',
  '-1',
  '1e999',
  '"__proto__":',
  '\\u0000',
  '\n',
]
const yamlFragments = [
  ...jsonFragments,
  '&a ',
  '*a',
  '&a [*a]',
  '<<: *a\n',
  '%YAML 1.1\n---\n',
  '--- ',
  '? ',
  '- ',
  '!!binary ',
  '!!set ',
  '!!timestamp 2001-01-01',
  '!<x> ',
  '|\n ',
  '.nan',
  '.inf',
  '\t',
]

const bytes = fc.uint8Array({ maxLength: 200 }).map(array => Buffer.from(array))
const fileOf = (text: string, keys: readonly string[], fragments = jsonFragments): fc.Arbitrary<Buffer> =>
  fc.oneof(
    { weight: 1, arbitrary: bytes },
    { weight: 2, arbitrary: jsonOf(keys).map(value => Buffer.from(JSON.stringify(value) ?? '')) },
    { weight: 4, arbitrary: mutated(text, fragments).map(changed => Buffer.from(changed)) },
  )

function holds<T>(
  name: string,
  arbitrary: fc.Arbitrary<T>,
  body: (input: T) => void | Promise<void>,
  examples: T[] = [],
) {
  test(name, async () => {
    const property = fc.asyncProperty(arbitrary, async input => await body(input))
    await fc.assert(property, { numRuns, seed, examples: examples.map(example => [example]) })
  })
}

// ---- The configuration

const groups = ['model', 'data', 'task', 'sampling', 'objective', 'optimizer', 'run', 'observe', 'eval']
const fieldNames = [...groups, ...fields.map(field => field.path.split('.')[1]!)]
const goodConfig = { model: { dir: 'm' }, task: { verifier: 'exact' } }
const goodYaml = stringifyConfig(parseConfig(goodConfig))
const configFile = path.join(dir, 'c.yaml')

holds(
  'loadConfig: any file',
  fileOf(goodYaml, fieldNames, yamlFragments),
  content => {
    writeFileSync(configFile, content)
    const config = orRapoError(() => loadConfig(configFile))
    if (config) assert.equal(parseConfig(JSON.parse(JSON.stringify(config))), config)
  },
  [
    // Aliases: a value that holds itself, and one that would grow without bound.
    Buffer.from('model: &a\n  dir: *a\n'),
    Buffer.from('run: &a { seed: [*a] }\n'),
    Buffer.from(
      `a: &a [x]\n${[...'bcdefghij'].map((c, i) => `${c}: &${c} [${Array(9).fill(`*${'abcdefghi'[i]}`)}]\n`).join('')}`,
    ),
    Buffer.from('? [1, 2]\n: 3\n'),
    Buffer.from('__proto__: { dir: m }\n'),
  ],
)

holds(
  'loadConfig: any override as text',
  fc.dictionary(fc.constantFrom(...fields.map(field => field.path)), fc.string({ unit: 'binary' })),
  overrides => {
    orRapoError(() => loadConfig(undefined, overrides))
  },
)

holds(
  'parseConfig: any value',
  fc.oneof(jsonOf(fieldNames), fc.anything({ withBigInt: true, withMap: true })),
  value => {
    orRapoError(() => parseConfig(value))
  },
)

// ---- Problems

const problemKeys = ['id', 'prompt', 'answer', 'difficulty', 'numbers', 'target']
const goodProblems = [
  { id: 'a', prompt: '3 5=8:', answer: { numbers: [3, 5], target: 8 }, difficulty: 'easy' },
  { id: 2, prompt: '1 1=2:', answer: { numbers: [1, 1], target: 2 } },
]
const problemsFile = path.join(dir, 'problems.jsonl')

holds(
  'readProblems: any file',
  fileOf(goodProblems.map(line => `${JSON.stringify(line)}\n`).join(''), problemKeys),
  async content => {
    writeFileSync(problemsFile, content)
    const problems = await readProblems(problemsFile, countdown).catch(error =>
      orRapoError<Problem[]>(() => {
        throw error
      }),
    )
    for (const { id, prompt, answer } of problems ?? []) {
      assert.ok(typeof id === 'string' && prompt !== '')
      verifyCountdown(prompt, answer as never)
    }
  },
)

holds('parseJsonLines: any bytes', bytes, content => {
  for (const { value } of orRapoError(() => parseJsonLines(content, 'file')) ?? [])
    assert.type(value, 'object')
})

/** Every kind of page that a writer makes: dictionaries, numbers, nulls, lists, plain and compressed. */
const parquetFiles = (['UNCOMPRESSED', 'SNAPPY'] as const).map(codec =>
  Buffer.from(
    parquetWriteBuffer({
      codec,
      columnData: [
        { name: 'prompt', data: ['3 5=8:', '1 1=2:', '3 5=8:', '2 2=4:'] },
        { name: 'answer', data: goodProblems.map(({ answer }) => answer).flatMap(one => [one, one]) },
        { name: 'difficulty', data: ['easy', null, 'hard', null], nullable: true },
        { name: 'weight', data: [1.5, 2, -0, 1e300] },
        { name: 'count', data: [1n, 2n, 3n, 2n ** 60n] },
      ],
    }),
  ),
)

/** Bytes replaced, put in or left out: anywhere, and often in the footer, which says where everything is. */
const mutatedParquet = fc.constantFrom(...parquetFiles).chain(file =>
  fc
    .array(
      fc.record({
        at: fc.oneof(fc.nat(file.length - 1), fc.integer({ min: file.length >> 1, max: file.length - 1 })),
        left: fc.constantFrom(1, 1, 1, 0, 4, 40),
        piece: fc.oneof(
          fc.constantFrom([0], [0xff], [0x7f], [0x80], [0xff, 0xff, 0xff, 0xff, 0x0f], []),
          fc.array(fc.nat(255), { maxLength: 6 }),
        ),
      }),
      { minLength: 1, maxLength: 4 },
    )
    .map(edits =>
      edits.reduce(
        (now, { at, left, piece }) =>
          Buffer.concat([now.subarray(0, at), Buffer.from(piece), now.subarray(at + left)]),
        file,
      ),
    ),
)
const parquetFile = path.join(dir, 'rows.parquet')

test('the Parquet files that are damaged next are whole', async () => {
  for (const file of parquetFiles) {
    writeFileSync(parquetFile, file)
    assert.is((await readRows(parquetFile)).length, 4)
  }
})

holds(
  'readRows: any Parquet file',
  fc.oneof({ weight: 9, arbitrary: mutatedParquet }, bytes),
  async content => {
    writeFileSync(parquetFile, content)
    try {
      const rows = await readRows(parquetFile)
      assert.ok(rows.length > 0)
      for (const { value } of rows) assert.type(value, 'object')
    } catch (error) {
      if (!(error instanceof RapoError)) throw error
      assert.is(error.code, 'ERR_RAPO_DATA')
    }
  },
)

holds(
  'verifyCountdown: any completion is worth 0 or 1',
  fc.oneof(
    fc.string({ unit: 'binary' }),
    fc
      .array(fc.constantFrom('3', '5', '+', '-', '*', '/', '(', ')', ' ', '0', '\n'))
      .map(parts => parts.join('')),
  ),
  completion => {
    const { reward, reason } = verifyCountdown(completion, { numbers: [3, 5, 5], target: 7 })
    assert.ok((reward === 0 || reward === 1) && reason !== '')
  },
)

// ---- A run directory

const runs = path.join(dir, 'runs')
const { rapo: goodRun } = writeThreeRuns(runs)
const runKeys = [
  'step',
  'seconds',
  'problemId',
  'prompt',
  'completion',
  'reward',
  'k',
  'groups',
  'all',
  'passAtK',
  'low',
  'high',
]
for (const name of ['config.yaml', 'metrics.jsonl', 'samples.jsonl', 'eval.json', 'eval-samples.jsonl']) {
  const whole = readFileSync(path.join(goodRun, name), 'utf8')
  // The first lines will do, and shrink better.
  const good = name.endsWith('.jsonl') ? `${whole.split('\n').slice(0, 4).join('\n')}\n` : whole
  const run = path.join(dir, 'changed')
  holds(`the report: any ${name}`, fileOf(good, runKeys, yamlFragments), async content => {
    cpSync(goodRun, run, { recursive: true })
    for (const lines of ['metrics.jsonl', 'samples.jsonl', 'eval-samples.jsonl']) {
      const text = readFileSync(path.join(goodRun, lines), 'utf8')
      writeFileSync(path.join(run, lines), text.split('\n').slice(0, 4).join('\n'))
    }
    writeFileSync(path.join(run, name), content)
    const output = path.join(dir, 'report.html')
    rmSync(output, { force: true })
    try {
      await writeReport({ runs: [run], output })
    } catch (error) {
      if (!(error instanceof RapoError)) throw error
      return
    }
    assert.ok(readFileSync(output, 'utf8').trimEnd().endsWith('</html>'))
  })
}

holds(
  'truncateJsonLines: keeps whole lines of no later step, whatever the file',
  fileOf('{"step":1}\n{"step":2}\n{"st', ['step']),
  content => {
    const file = path.join(dir, 'metrics.jsonl')
    writeFileSync(file, content)
    truncateJsonLines(file, 1)
    const left = readFileSync(file, 'utf8')
    assert.ok(left === '' || left.endsWith('\n'))
    for (const line of left.split('\n').slice(0, -1)) assert.ok(JSON.parse(line).step <= 1, line)
  },
)

const goodTrainer = {
  step: 3,
  entropyCoef: 0.003,
  cursor: { epoch: 0, position: 2, fingerprint: '0123456789abcdef' },
}
const problems: Problem[] = goodProblems.map(({ prompt, answer }, i) => ({ id: String(i), prompt, answer }))
const fingerprint = createCursor(problems, 1).state().fingerprint

holds(
  'a checkpoint: any trainer.json, whose cursor then gives problems',
  fileOf(JSON.stringify({ ...goodTrainer, cursor: { ...goodTrainer.cursor, fingerprint } }), [
    'step',
    'cursor',
    'epoch',
    'position',
  ]),
  content => {
    const run = path.join(dir, 'checkpointed')
    mkdirSync(path.join(run, 'checkpoints', 'step-000003', 'rapo'), { recursive: true })
    writeFileSync(path.join(run, 'checkpoints', 'latest'), 'step-000003\n')
    writeFileSync(path.join(run, 'checkpoints', 'step-000003', 'rapo', 'trainer.json'), content)
    const checkpoint = orRapoError(() => readLatestCheckpoint(run))
    if (checkpoint) assert.ok((checkpoint.trainer.entropyCoef ?? 0) >= 0)
    const cursor = checkpoint && orRapoError(() => createCursor(problems, 1, checkpoint.trainer.cursor))
    if (cursor) assert.ok(cursor.next(5).every(problem => problems.includes(problem)))
  },
  [Buffer.from(JSON.stringify({ step: 3, cursor: { epoch: 0, position: 3, fingerprint } }))],
)

holds(
  'a checkpoint: any name in latest stays inside the run',
  fc.oneof(
    bytes,
    fc
      .constantFrom('../step-000003', '.', '', '/', 'step-000003/..', 'step-x')
      .map(text => Buffer.from(text)),
  ),
  content => {
    const run = path.join(dir, 'named')
    mkdirSync(path.join(run, 'checkpoints', 'step-000003', 'rapo'), { recursive: true })
    mkdirSync(path.join(run, 'step-000003', 'rapo'), { recursive: true })
    for (const place of ['checkpoints', '.']) {
      writeFileSync(path.join(run, place, 'step-000003', 'rapo', 'trainer.json'), JSON.stringify(goodTrainer))
    }
    writeFileSync(path.join(run, 'checkpoints', 'latest'), content)
    const checkpoint = orRapoError(() => readLatestCheckpoint(run))
    if (checkpoint) assert.is(path.relative(run, checkpoint.dir), path.join('checkpoints', 'step-000003'))
  },
)

// ---- A model directory

const model = makeFakeModel()
for (const [name, keys] of Object.entries({
  'tokenizer.json': [
    'model',
    'vocab',
    'merges',
    'added_tokens',
    'pre_tokenizer',
    'decoder',
    'normalizer',
    'type',
  ],
  'tokenizer_config.json': ['eos_token', 'content', 'tokenizer_class'],
  'generation_config.json': ['eos_token_id'],
})) {
  holds(
    `a model directory: any ${name}`,
    fileOf(readFileSync(path.join(model, name), 'utf8'), keys),
    content => {
      const changed = path.join(dir, 'model')
      cpSync(model, changed, { recursive: true })
      writeFileSync(path.join(changed, name), content)
      const ids = orRapoError(() => readStopTokenIds(changed))
      if (ids) assert.ok(ids.every(Number.isSafeInteger))
      const tokenizer = orRapoError(() => loadTokenizer(changed))
      const encoded = tokenizer && orRapoError(() => tokenizer.encode('3 5=8:'))
      if (encoded) orRapoError(() => tokenizer.decode(encoded))
    },
  )
}

test.run()
