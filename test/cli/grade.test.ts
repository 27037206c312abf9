import { spawnSync } from 'node:child_process'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { parquetWriteBuffer } from 'hyparquet-writer'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { gradeLines } from '../../lib/cli/grade.js'
import { makeTempDir } from '../helpers/fake-policy.js'

const dir = makeTempDir()
const input = path.join(dir, 'in.jsonl')
const output = path.join(dir, 'out.jsonl')

const write = (lines: readonly object[]) =>
  writeFileSync(input, lines.map(line => `${JSON.stringify(line)}\n`).join(''))
const read = () =>
  readFileSync(output, 'utf8')
    .trim()
    .split('\n')
    .map(line => JSON.parse(line))

test('math: completions and bare answers; other fields are carried along', async () => {
  write([
    { id: 1, completion: 'so \\boxed{0.5}', reference: '\\frac12' },
    { id: 2, completion: 'so 0.5', reference: '\\frac12' },
    { id: 3, answer: '0.5', reference: '\\frac12' },
    { id: 4, answer: '0.333', reference: '1/3' },
  ])
  assert.equal(await gradeLines({ task: 'math', input, output }), { correct: 2, total: 4 })
  assert.equal(read(), [
    {
      id: 1,
      completion: 'so \\boxed{0.5}',
      reference: '\\frac12',
      correct: true,
      reason: 'correct: the same value',
    },
    { id: 2, completion: 'so 0.5', reference: '\\frac12', correct: false, reason: 'no boxed answer' },
    { id: 3, answer: '0.5', reference: '\\frac12', correct: true, reason: 'correct: the same value' },
    { id: 4, answer: '0.333', reference: '1/3', correct: false, reason: 'not the same value' },
  ])
})

test('the other verifiers, and a module', async () => {
  write([{ completion: '3*5+7', reference: { numbers: [3, 5, 7], target: 22 } }])
  assert.is((await gradeLines({ task: 'countdown', input, output })).correct, 1)
  write([{ answer: ' yes ', reference: 'yes' }])
  assert.is((await gradeLines({ task: 'exact', input, output })).correct, 1)
  const module = path.join(dir, 'half.mjs')
  writeFileSync(
    module,
    "export default { checkAnswer() {}, verify: () => ({ reward: 0.5, reason: 'half' }) }",
  )
  assert.is((await gradeLines({ task: module, input, output })).correct, 0)
  assert.is(read()[0].reason, 'half')
  // A row's name, prompt and other columns are the context.
  const pathname = path.join(dir, 'context.mjs')
  writeFileSync(
    pathname,
    `export default (completion, answer, context) => ({ reward: 1, reason: JSON.stringify(context) })`,
  )
  write([{ id: 7, prompt: 'p', completion: 'c', reference: 'r', difficulty: 'easy' }])
  await gradeLines({ task: pathname, input, output })
  assert.is(read()[0].reason, '{"id":"7","prompt":"p","columns":{"difficulty":"easy"}}')
})

test('a verifier that gives no verdict: its line is named', async () => {
  write([{ answer: '1', reference: '1' }])
  for (const [verdict, why] of [
    ['undefined', 'its reward is undefined'],
    ['{ reward: NaN }', 'its reward is NaN'],
    ["(() => { throw 'a text' })()", 'a text'],
  ] as const) {
    const module = path.join(dir, `${why.replaceAll(' ', '-')}.mjs`)
    writeFileSync(module, `export default { checkAnswer() {}, verify: () => (${verdict}) }`)
    await gradeLines({ task: module, input, output }).then(assert.unreachable as never, error => {
      assert.is(error.code, 'ERR_RAPO_INTERNAL')
      assert.ok(error.message.startsWith(`the verifier failed on ${input}:1: ${why}`), error.message)
    })
  }
})

test('a line that cannot be judged: named, and nothing is written', async () => {
  const target = path.join(dir, 'none.jsonl')
  const messageOf = async (line: object, task = 'math') => {
    write([{ answer: '1', reference: '1' }, line])
    return gradeLines({ task, input, output: target }).then(
      () => assert.unreachable() as never,
      error => {
        assert.is(error.code, 'ERR_RAPO_DATA')
        return error.message as string
      },
    )
  }
  assert.match(await messageOf({ reference: '1' }), `${input}:2: must have completion or answer, a text`)
  assert.match(await messageOf({ answer: '1' }), 'line 2 has no reference')
  assert.match(
    await messageOf({ answer: '1', reference: '' }),
    'line 2 reference: answer must be a number or a text',
  )
  assert.match(
    await messageOf({ completion: '\\boxed{1}', Reference: '1' }),
    'line 2 has no reference; it has completion, Reference',
  )
  assert.not(existsSync(target))
})

test('files that cannot be graded: missing, empty, broken', async () => {
  const messageOf = async (name: string, content?: string) => {
    const file = path.join(dir, name)
    if (content !== undefined) writeFileSync(file, content)
    const error = await gradeLines({ task: 'math', input: file }).catch(error => error)
    assert.is(error.code, 'ERR_RAPO_DATA')
    return error.message as string
  }
  assert.match(await messageOf('missing.jsonl'), /cannot read .*missing.jsonl/)
  assert.match(await messageOf('empty.jsonl', '\n'), 'empty.jsonl is empty')
  assert.match(await messageOf('broken.jsonl', '{"answer"'), 'broken.jsonl:1: the line is not JSON')
  assert.match(await messageOf('broken.parquet', 'PAR1 cut'), 'broken.parquet is no readable Parquet file: ')
  assert.match(await messageOf('empty.csv', 'answer,reference\n2,\n'), 'line 2 reference: answer must be')
})

test('CSV and Parquet are graded as JSON Lines are', async () => {
  const csv = path.join(dir, 'in.csv')
  writeFileSync(csv, 'answer,reference,level\n0.5,1/2,3\n"1,000",1001,4\n')
  const parquet = path.join(dir, 'in.parquet')
  const columns = { answer: ['0.5', '1,000'], reference: ['1/2', '1001'], level: ['3', '4'] }
  const columnData = Object.entries(columns).map(([name, data]) => ({ name, data }))
  writeFileSync(parquet, Buffer.from(parquetWriteBuffer({ columnData })))
  for (const input of [csv, parquet]) {
    assert.equal(await gradeLines({ task: 'math', input, output }), { correct: 1, total: 2 })
    assert.equal(
      read().map(({ level, correct }) => [level, correct]),
      [
        ['3', true],
        ['4', false],
      ],
    )
  }
})

test('the command', () => {
  write([{ answer: '2', reference: '2' }])
  const run = (...args: string[]) =>
    spawnSync(process.execPath, ['--import', 'tsx', 'lib/cli/cli.ts', 'grade', ...args], { encoding: 'utf8' })
  const { stdout, stderr, status } = run('--task', 'math', '-i', input)
  assert.equal(
    [stdout, stderr, status],
    [
      '{"answer":"2","reference":"2","correct":true,"reason":"correct: the same text"}\n',
      '1 of 1 correct\n',
      0,
    ],
  )
  const unknown = run('--task', 'maths', '-i', input)
  assert.match(unknown.stderr, 'did you mean "math"')
  assert.is(unknown.status, 1)
})

test('a verifier that fails late: the verdicts before it are kept', async () => {
  const target = path.join(dir, 'late.jsonl')
  const module = path.join(dir, 'late.mjs')
  writeFileSync(
    module,
    `export default { checkAnswer() {}, async verify(text) {
      if (text === '3') throw new Error('no connection')
      return { reward: 1, reason: 'r' }
    } }`,
  )
  write(['1', '2', '3', '4'].map(answer => ({ answer, reference: '1' })))
  const error = await gradeLines({ task: module, input, output: target }).catch(error => error)
  assert.is(
    error.message,
    `the verifier failed on ${input}:3: no connection\nkept: 2 lines in ${target}.partial`,
  )
  assert.not(existsSync(target))
  const kept = readFileSync(`${target}.partial`, 'utf8').trim().split('\n')
  assert.equal(
    kept.map(line => JSON.parse(line).answer),
    ['1', '2'],
  )
})

test('what a model wrote cannot steer the terminal that its verdict is printed on', () => {
  write([{ answer: '\u009b2J', reference: 'x', '\u202e': 1 }])
  const args = ['--import', 'tsx', 'lib/cli/cli.ts', 'grade', '--task', 'exact', '-i', input]
  const { stdout } = spawnSync(process.execPath, args, { encoding: 'utf8' })
  assert.match(stdout, '"answer":"\\u009b2J"')
  assert.not.match(stdout, /[\u009b\u202e]/)
  assert.is(JSON.parse(stdout).answer, '\u009b2J')
})

test.run()
