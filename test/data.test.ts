import { writeFileSync } from 'node:fs'
import path from 'node:path'
import { parquetWriteBuffer } from 'hyparquet-writer'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { RapoError } from '../lib/base/errors.js'
import { createCursor } from '../lib/data/cursor.js'
import { type DataOptions, type Problem, readProblems } from '../lib/data/problems.js'
import { exact } from '../lib/reward/exact.js'
import { makeTempDir } from './fake-policy.js'

const dir = makeTempDir()
const file = path.join(dir, 'problems.jsonl')

function read(content: string | Buffer, options?: DataOptions, name = file): Promise<Problem[]> {
  writeFileSync(name, content)
  return readProblems(name, exact, options)
}

async function messageOf(content: string | Buffer, options?: DataOptions, name = file): Promise<string> {
  try {
    await read(content, options, name)
  } catch (error) {
    assert.instance(error, RapoError)
    assert.is((error as RapoError).code, 'ERR_RAPO_DATA')
    return (error as RapoError).message
  }
  return assert.unreachable('nothing was thrown') as never
}

const good = '{"id":"a","prompt":"1+1=","answer":"2","difficulty":"easy","source":"ignored"}'

test('reads problems; ids default to the line number; blank lines and a byte order mark are skipped', async () => {
  assert.equal(await read(`\ufeff${good}\r\n\n{"prompt":"p","answer":"x"}`), [
    { id: 'a', prompt: '1+1=', answer: '2', difficulty: 'easy' },
    { id: '3', prompt: 'p', answer: 'x' },
  ])
})

test('a broken line: file, line number, why', async () => {
  assert.match(await messageOf(`${good}\n{"prompt": "p", \n`), `${file}:2: line 2 is not JSON: `)
  assert.match(await messageOf(`${good}\n[1]\n`), `${file}:2: line 2 must be a JSON object, not [1]`)
  assert.match(await messageOf(`${good}\n"text"\n`), 'line 2 must be a JSON object')
  assert.match(await messageOf(`${good}\nnull\n`), 'line 2 must be a JSON object')
  assert.match(await messageOf(Buffer.from([0x7b, 0xff, 0x7d])), `${file}:1: line 1 is not UTF-8 text`)
})

test('a problem with a wrong field', async () => {
  assert.match(await messageOf('{"answer":"x"}'), 'line 1 prompt must be a text that is not empty')
  assert.match(
    await messageOf('{"prompt":"","answer":"x"}'),
    'line 1 prompt must be a text that is not empty',
  )
  assert.match(await messageOf('{"prompt":"p"}'), 'line 1 answer is missing')
  assert.match(await messageOf('{"prompt":"p","answer":3}'), 'line 1 answer must be a text that is not empty')
  assert.match(await messageOf('{"prompt":"p","answer":"x","id":[]}'), 'line 1 id must be a text or a number')
  assert.match(
    await messageOf('{"prompt":"p","answer":"x","difficulty":[2]}'),
    'line 1 difficulty must be a text or a number',
  )
  assert.match(
    await messageOf('{"prompt":"p","answer":"x","difficulty":"all"}'),
    '"all" is the name of the whole set',
  )
})

test('two problems with one id, also when one is a line number', async () => {
  assert.match(
    await messageOf(`${good}\n\n${good}\n`),
    `${file}:3: line 3 has the id "a" that line 1 has already`,
  )
  assert.match(
    await messageOf('{"prompt":"p","answer":"x","id":2}\n{"prompt":"p","answer":"x"}'),
    'line 2 has the id "2"',
  )
})

test('a file that is empty or missing', async () => {
  for (const content of ['', '\n \n']) assert.match(await messageOf(content), `${file} is empty`)
  const missing = await readProblems(`${file}.none`, exact).catch(error => error.message)
  assert.match(missing, /cannot read .*none/)
})

test('CSV and Parquet give the same problems as JSON Lines', async () => {
  const rows = [
    { problem: 'What is $1 + 1$,\n"in words"?', answer: '\\text{two}', level: 3 },
    { problem: 'π?', answer: '3,\\!141', level: 5 },
  ]
  const options = { difficultyField: 'level' }
  const lines = await read(rows.map(row => JSON.stringify(row)).join('\n'), options)
  assert.equal(
    lines.map(({ prompt, answer, difficulty }) => [prompt, answer, difficulty]),
    [
      [rows[0]!.problem, '\\text{two}', '3'],
      [rows[1]!.problem, '3,\\!141', '5'],
    ],
  )
  const ignoringId = (problems: Problem[]) => problems.map(({ id: _, ...rest }) => rest)

  const quote = (text: string | number) => `"${String(text).replaceAll('"', '""')}"`
  const csv = ['problem,answer,level', ...rows.map(row => Object.values(row).map(quote).join(','))].join(
    '\r\n',
  )
  assert.equal(ignoringId(await read(csv, options, path.join(dir, 'problems.csv'))), ignoringId(lines))

  for (const codec of ['UNCOMPRESSED', 'SNAPPY'] as const) {
    const parquet = parquetWriteBuffer({
      columnData: [
        { name: 'problem', data: rows.map(row => row.problem) },
        { name: 'answer', data: rows.map(row => row.answer) },
        { name: 'level', data: rows.map(row => BigInt(row.level)) },
      ],
      codec,
    })
    const read2 = await read(Buffer.from(parquet), options, path.join(dir, 'problems.parquet'))
    assert.equal(ignoringId(read2), ignoringId(lines))
    assert.equal(
      read2.map(({ id }) => id),
      ['1', '2'],
    )
  }
})

test('a broken Parquet or CSV file', async () => {
  const parquet = Buffer.from(
    parquetWriteBuffer({ columnData: [{ name: 'prompt', data: ['a'.repeat(999)] }] }),
  )
  const name = path.join(dir, 'broken.parquet')
  const flipped = Buffer.from(parquet)
  flipped.fill(0xff, flipped.length - 60, flipped.length - 8)
  for (const content of [parquet.subarray(0, 50), parquet.subarray(40), Buffer.from('PAR1'), flipped]) {
    assert.match(await messageOf(content, {}, name), `${name} is no readable Parquet file: `)
  }
  const csv = path.join(dir, 'broken.csv')
  assert.match(await messageOf('prompt,answer\np,x,y\n', {}, csv), `${csv} is no readable CSV file: `)
  assert.match(await messageOf('prompt,answer\n"p,x\n', {}, csv), `${csv} is no readable CSV file: `)
  assert.match(await messageOf(Buffer.from([0x70, 0xff]), {}, csv), `${csv} is no readable CSV file: `)
})

test('fields by name; one that no row has is an error that names those there are', async () => {
  const line = '{"question":"q","solution":"s","key":"k"}'
  const options = { problemField: 'question', answerField: 'solution', idField: 'key' }
  assert.equal(await read(line, options), [{ id: 'k', prompt: 'q', answer: 's' }])
  const message = await messageOf(line, { ...options, answerField: 'final' })
  assert.match(message, `${file} has no field "final" (data.answerField); it has question, solution, key`)
})

test('rows that cannot be used: all are listed; dropped on request', async () => {
  const content = [
    good,
    '{"prompt":"p","answer":""}',
    '{"prompt":"1+1=","answer":"2"}',
    '{"prompt":"r","answer":"5"}',
  ].join('\n')
  const message = await messageOf(content)
  const faults = [
    `${file}:2: line 2 answer must be a text that is not empty`,
    `${file}:3: line 3 has the problem that line 1 has already`,
  ]
  assert.is(message, [...faults, '2 of 4 cannot be used; data.dropUnusable: true leaves them out'].join('\n'))
  let told: readonly string[] = []
  const kept = await read(content, { dropUnusable: true, onUnusable: rows => (told = rows) })
  assert.equal(
    kept.map(({ prompt }) => prompt),
    ['1+1=', 'r'],
  )
  assert.equal(told, faults)
  assert.match(
    await messageOf('{"prompt":"p","answer":""}', { dropUnusable: true }),
    'holds no problem that can be used',
  )
})

test('shards part the problems', async () => {
  const content = Array.from({ length: 7 }, (_, i) => `{"prompt":"p${i}","answer":"x"}`).join('\n')
  const shards = await Promise.all([0, 1, 2].map(shard => read(content, { shards: 3, shard })))
  assert.equal(
    shards.map(shard => shard.length),
    [3, 2, 2],
  )
  const whole = await read(content)
  assert.equal(
    shards
      .flat()
      .map(({ id }) => id)
      .sort(),
    whole.map(({ id }) => id),
  )
  assert.match(await messageOf(content, { shards: 9, shard: 8 }), 'shard 8 of 9 is empty')
})

const problems: Problem[] = Array.from({ length: 7 }, (_, i) => ({ id: String(i), prompt: 'p', answer: 'x' }))
const ids = (taken: Problem[]) => taken.map(problem => problem.id)

test('the cursor takes every problem once an epoch, in a new order each, fixed by the seed', () => {
  const cursor = createCursor(problems, 1)
  const epochs = Array.from({ length: 3 }, () => ids(cursor.next(7)))
  for (const epoch of epochs) assert.equal([...epoch].sort(), ['0', '1', '2', '3', '4', '5', '6'])
  assert.is(new Set(epochs.map(String)).size, 3)
  assert.equal(ids(createCursor(problems, 1).next(21)), epochs.flat())
  assert.not.equal(ids(createCursor(problems, 2).next(21)), epochs.flat())
})

test('a cursor resumed from a state goes on as if it had never stopped, at any position', () => {
  for (let taken = 0; taken <= 15; taken++) {
    const cursor = createCursor(problems, 3)
    cursor.next(taken)
    const state = JSON.parse(JSON.stringify(cursor.state()))
    assert.equal(ids(createCursor(problems, 3, state).next(10)), ids(cursor.next(10)), `after ${taken}`)
  }
})

test('a cursor notices that the problems changed', () => {
  const state = createCursor(problems, 1).state()
  const changed = [...problems.slice(0, 6), { ...problems[6]!, answer: 'y' }]
  assert.throws(() => createCursor(changed, 1, state), /not those that the checkpoint was made with/)
  assert.throws(() => createCursor(problems, 2, state), /not those that the checkpoint was made with/)
})

test.run()
