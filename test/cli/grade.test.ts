import { spawnSync } from 'node:child_process'
import { existsSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { parquetWriteBuffer } from 'hyparquet-writer'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { gradeLines } from '../../lib/cli/grade.js'
import { cli } from '../helpers/cli.js'
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
  assert.equal(await gradeLines({ task: 'math', input, output }), { correct: 2, total: 4, unusable: [] })
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

test('rows that cannot be judged: named with the reason, in the order of the rows; the others are judged', async () => {
  const lines = [
    { answer: '1', reference: '1' },
    { reference: '1' },
    { answer: '1' },
    { answer: '1', reference: '' },
    { completion: '\\boxed{1}', Reference: '1' },
    { completion: 3, reference: '1' },
    { completions: [], reference: '1' },
    { completions: ['1', 2], reference: '1' },
    { answer: '2', reference: '2' },
    { completion: '\\boxed{1}', answer: { target: 1 } },
  ]
  const text = lines.map(line => `${JSON.stringify(line)}\n`)
  writeFileSync(input, [...text, '{"answer"\n', '[1]\n'].join(''))
  const { correct, total, unusable } = await gradeLines({ task: 'math', input, output })
  assert.equal([correct, total], [2, 2])
  const faults = [
    'must have completion, completions or answer, a text; it has reference',
    'has no reference; it has answer',
    'reference: answer must be a number or a text that is not empty, for the verifier math',
    'has no reference; it has completion, Reference',
    'completion must be a text, or a list of texts; it has completion, reference',
    'completions must be a text, or a list of texts; it has completions, reference',
    'completions must be a text, or a list of texts; it has completions, reference',
    'answer must be a number or a text that is not empty, for the verifier math',
    'the line is not JSON: ',
    'the line must be a JSON object, not [1]',
  ]
  const places = [2, 3, 4, 5, 6, 7, 8, 10, 11, 12]
  assert.is(unusable.length, faults.length)
  for (const [i, fault] of faults.entries()) {
    assert.ok(unusable[i]!.startsWith(`${input}:${places[i]}: ${fault}`), unusable[i])
  }
  const verdicts = read()
  assert.is(verdicts.length, 12)
  assert.equal(
    verdicts.map(({ correct }) => correct),
    [true, null, null, null, null, null, null, null, true, null, null, null],
  )
  assert.equal(verdicts[2], { answer: '1', correct: null, reason: 'has no reference; it has answer' })
})

test('columns by name, also of what a problem file calls the right answer', async () => {
  const reward_model = { ground_truth: '1/2' }
  write([{ response: '\\boxed{0.5}', gold: '0.5', reward_model }])
  const grade = async (fields: object) => {
    const { correct, total, unusable } = await gradeLines({ task: 'math', input, output, ...fields })
    return unusable[0] ?? `${correct} of ${total}`
  }
  assert.is(await grade({ completionField: 'response', referenceField: 'gold' }), '1 of 1')
  assert.is(await grade({ completionField: 'response' }), '1 of 1')
  assert.is(
    await grade({ completionField: 'response', referenceField: 'reward_model.ground_truth' }),
    '1 of 1',
  )
  assert.is(await grade({ answerField: 'gold', referenceField: 'reward_model.ground_truth' }), '1 of 1')
  // A final answer alone could be its own reference.
  assert.match(await grade({ answerField: 'gold' }), ':1: has no reference; it has response, gold')
  write([
    { completion: '\\boxed{0.5}', answer: '1/2' },
    { completion: '\\boxed{3}', answer: '1/2' },
  ])
  assert.is(await grade({}), '1 of 2')
  const refused = (fields: object) =>
    gradeLines({ task: 'math', input, output, ...fields }).then(
      assert.unreachable as never,
      error => error.message,
    )
  assert.is(
    await refused({ completionField: 'respons' }),
    `${input} has no field "respons" (--completion-field); it has completion, answer`,
  )
  assert.match(await refused({ referenceField: 'gold' }), '(--reference-field)')
  assert.match(await refused({ completionField: 'a', answerField: 'b' }), 'exclude each other')
})

test('what rapo generate writes: every completion is judged, in its place', async () => {
  const verifier = path.join(dir, 'told.mjs')
  writeFileSync(
    verifier,
    `export default (text, answer, { id, prompt, messages, columns, tokens, finishReason }) =>
      ({ reward: Number(text === answer), reason: JSON.stringify({ id, prompt, messages, columns, tokens, finishReason }) })`,
  )
  const generated = (text: string, finishReason: string) => ({
    tokenIds: [5, 1],
    logprobs: [-1, -2],
    text,
    finishReason,
  })
  const messages = [{ role: 'user', content: 'p' }]
  write([
    {
      id: 'a',
      prompt: 'p',
      answer: 'x',
      source: 's',
      completions: [generated('x', 'stop'), generated('y', 'length')],
    },
    { id: 'b', prompt: messages, answer: 'y', completions: ['y'] },
  ])
  assert.equal(await gradeLines({ task: verifier, input, output }), { correct: 2, total: 3, unusable: [] })
  const [first, second] = read()
  assert.equal(Object.keys(first), ['id', 'prompt', 'answer', 'source', 'completions'])
  assert.equal(
    first.completions.map(({ text, logprobs, correct, reason }: never) => [
      text,
      logprobs,
      correct,
      JSON.parse(reason),
    ]),
    [
      [
        'x',
        [-1, -2],
        true,
        { id: 'a', prompt: 'p', columns: { source: 's' }, tokens: 2, finishReason: 'stop' },
      ],
      [
        'y',
        [-1, -2],
        false,
        { id: 'a', prompt: 'p', columns: { source: 's' }, tokens: 2, finishReason: 'length' },
      ],
    ],
  )
  const { text, correct, reason } = second.completions[0]
  assert.equal(
    [text, correct, JSON.parse(reason)],
    ['y', true, { id: 'b', prompt: 'p', messages, columns: {} }],
  )
})

test('files that cannot be graded: missing, empty, broken', async () => {
  const messageOf = async (name: string, content?: string) => {
    const file = path.join(dir, name)
    if (content !== undefined) writeFileSync(file, content)
    const error = await gradeLines({ task: 'math', input: file }).catch(error => error)
    assert.is(error.code, 'ERR_RAPO_DATA')
    return error.message as string
  }
  assert.is(await messageOf('missing.jsonl'), `--input: there is no file ${dir}/missing.jsonl`)
  assert.match(await messageOf('empty.jsonl', '\n'), 'empty.jsonl is empty')
  assert.match(await messageOf('broken.parquet', 'PAR1 cut'), 'broken.parquet is no readable Parquet file: ')
  assert.match(await messageOf('empty.csv', 'answer,reference\n'), 'empty.csv is empty')
})

test('CSV and Parquet are graded as JSON Lines are', async () => {
  const csv = path.join(dir, 'in.csv')
  writeFileSync(csv, 'answer,reference,level\n0.5,1/2,3\n"1,000",1001,4\n')
  const parquet = path.join(dir, 'in.parquet')
  const columns = { answer: ['0.5', '1,000'], reference: ['1/2', '1001'], level: ['3', '4'] }
  const columnData = Object.entries(columns).map(([name, data]) => ({ name, data }))
  writeFileSync(parquet, Buffer.from(parquetWriteBuffer({ columnData })))
  for (const input of [csv, parquet]) {
    assert.equal(await gradeLines({ task: 'math', input, output }), { correct: 1, total: 2, unusable: [] })
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
  const run = (...args: string[]) => spawnSync(cli[0], [cli[1], 'grade', ...args], { encoding: 'utf8' })
  const { stdout, stderr, status } = run('--task', 'math', '-i', input)
  assert.equal(
    [stdout, stderr, status],
    [
      '{"answer":"2","reference":"2","correct":true,"reason":"correct: the same text"}\n',
      '1 of 1 correct\n',
      0,
    ],
  )
  write([{ answer: '2', reference: '2' }, { answer: '2' }])
  const bad = run('--task', 'math', '-i', input)
  assert.is(bad.stdout.trim().split('\n').length, 2)
  assert.is(bad.stderr, `1 of 1 correct\n1 row not judged:\n  ${input}:2: has no reference; it has answer\n`)
  assert.is(bad.status, 1)
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
    `the verifier failed on ${input}:3: no connection (${module}:2:31)\nkept: 2 lines in ${target}.partial`,
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
  const args = [cli[1], 'grade', '--task', 'exact', '-i', input]
  const { stdout } = spawnSync(cli[0], args, { encoding: 'utf8' })
  assert.match(stdout, '"answer":"\\u009b2J"')
  assert.not.match(stdout, /[\u009b\u202e]/)
  assert.is(JSON.parse(stdout).answer, '\u009b2J')
})

test.run()
