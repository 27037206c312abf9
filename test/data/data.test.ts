import { once } from 'node:events'
import { readdirSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { gzipSync } from 'node:zlib'
import { parquetWriteBuffer } from 'hyparquet-writer'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { RapoError } from '../../lib/base/errors.js'
import { createCursor } from '../../lib/data/cursor.js'
import type { DataOptions } from '../../lib/data/fields.js'
import { type Problem, readProblems } from '../../lib/data/problems.js'
import { readRows } from '../../lib/data/rows.js'
import { exact } from '../../lib/reward/exact.js'
import { loadVerifier } from '../../lib/reward/load.js'
import { judge } from '../../lib/reward/verifier.js'
import { makeTempDir } from '../helpers/fake-policy.js'

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

test('an onUnusable that throws ends the reading; one that rejects later is a warning, not the end of the process', async () => {
  const content = '{"prompt":"p","answer":""}\n{"prompt":"q","answer":"1"}'
  const boom = new Error('boom')
  const onUnusable = () => {
    throw boom
  }
  const options = { dropUnusable: true }
  assert.is(await read(content, { ...options, onUnusable }).catch(error => error), boom)
  const warned = once(process, 'warning')
  const later = () => Promise.reject(boom)
  assert.is((await read(content, { ...options, onUnusable: later as never })).length, 1)
  const [warning] = await warned
  assert.is(warning.name, 'RapoWarning')
  assert.match(warning.message, /onUnusable failed.*boom/)
})

test('a checkAnswer that throws, or gives no text, is an error that names the row', async () => {
  const wrong = {
    throws: [() => assert.unreachable('mine'), 'mine'],
    'gives a promise': [async () => Promise.reject(new Error('mine')), 'returned a promise'],
    'gives no text': [() => false, 'returned false'],
  } as const
  writeFileSync(file, '{"prompt":"p","answer":"1"}')
  for (const [how, [checkAnswer, why]] of Object.entries(wrong)) {
    const error = await readProblems(file, { checkAnswer: checkAnswer as never }).catch(error => error)
    assert.is(error.code, 'ERR_RAPO_INTERNAL', how)
    assert.match(error.message, `checkAnswer failed on ${file}:1: `, how)
    assert.match(error.message, why, how)
  }
})

const good = '{"id":"a","prompt":"1+1=","answer":"2","difficulty":"easy","source":"a book"}'

test('reads problems; ids default to the line number; blank lines and a byte order mark are skipped', async () => {
  assert.equal(await read(`\ufeff${good}\r\n\n{"prompt":"p","answer":"x"}`), [
    { id: 'a', prompt: '1+1=', answer: '2', difficulty: 'easy', columns: { source: 'a book' } },
    { id: '3', prompt: 'p', answer: 'x' },
  ])
})

test('a broken line: file, line number, why', async () => {
  assert.match(await messageOf(`${good}\n{"prompt": "p", \n`), `${file}:2: the line is not JSON: `)
  assert.match(await messageOf(`${good}\n[1]\n`), `${file}:2: the line must be a JSON object, not [1]`)
  assert.match(await messageOf(`${good}\n"text"\n`), 'the line must be a JSON object')
  assert.match(await messageOf(`${good}\nnull\n`), 'the line must be a JSON object')
  assert.match(await messageOf(Buffer.from([0x7b, 0xff, 0x7d])), `${file}:1: the line is not UTF-8 text`)
})

test('a line that is no object is shown, a long one by its beginning', async () => {
  writeFileSync(named('lines.jsonl'), `"${'0123456789'.repeat(5)}"\n`)
  const error = await readRows(named('lines.jsonl')).catch(error => error)
  assert.match(error.message, 'the line must be a JSON object, not "012345678901234567890123456789012345678…')
  writeFileSync(named('lines.jsonl'), '[1]\n')
  const short = await readRows(named('lines.jsonl')).catch(error => error)
  assert.ok(short.message.endsWith('must be a JSON object, not [1]'))
})

test('a problem with a wrong field', async () => {
  assert.match(await messageOf(`{"answer":"x"}\n${good}`), 'prompt must be a text that is not empty')
  assert.match(await messageOf('{"prompt":"","answer":"x"}'), 'prompt must be a text that is not empty')
  assert.match(await messageOf(`{"prompt":"p"}\n${good}`), 'answer is missing')
  assert.match(await messageOf('{"prompt":"p","answer":3}'), 'answer must be a text that is not empty')
  assert.match(await messageOf('{"prompt":"p","answer":"x","id":[]}'), 'id must be a text or a number')
  assert.match(
    await messageOf('{"prompt":"p","answer":"x","difficulty":[2]}'),
    'difficulty must be a text or a number',
  )
  assert.match(
    await messageOf('{"prompt":"p","answer":"x","difficulty":"all"}'),
    '"all" is the name of the whole set',
  )
})

test('two problems with one id, also when one is a line number', async () => {
  assert.match(await messageOf(`${good}\n\n${good}\n`), `${file}:3: has the id "a" that line 1 has already`)
  assert.match(
    await messageOf('{"prompt":"p","answer":"x","id":2}\n{"prompt":"p","answer":"x"}'),
    'problems.jsonl:2: has the id "2"',
  )
})

test('a file that is empty or missing', async () => {
  for (const content of ['', '\n \n']) assert.match(await messageOf(content), `${file} is empty`)
  const missing = await readProblems(`${file}.none`, exact).catch(error => error.message)
  assert.is(missing, `there is no file ${file}.none`)
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
    `${file}:2: answer must be a text that is not empty`,
    `${file}:3: has the problem that line 1 has already`,
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
    /answer must be a text that is not empty\n1 of 1 cannot be used$/,
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
  // Written down: a run that another version of rapo began goes on with the same problems.
  assert.is(ids(createCursor(problems, 1).next(14)).join(''), '64531023051462')
})

test('a cursor resumed from a state goes on as if it had never stopped, at any position', () => {
  for (let taken = 0; taken <= 15; taken++) {
    const cursor = createCursor(problems, 3)
    cursor.next(taken)
    const state = JSON.parse(JSON.stringify(cursor.state()))
    const fork = cursor.fork()
    const next = ids(cursor.next(10))
    assert.equal(ids(createCursor(problems, 3, state).next(10)), next, `after ${taken}`)
    assert.equal(ids(fork.next(10)), next, `forked after ${taken}`)
  }
})

test('a cursor notices that the problems changed', () => {
  const state = createCursor(problems, 1).state()
  const changed = [...problems.slice(0, 6), { ...problems[6]!, answer: 'y' }]
  assert.throws(() => createCursor(changed, 1, state), /not those that the checkpoint was made with/)
  assert.throws(() => createCursor(problems, 2, state), /not those that the checkpoint was made with/)
})

const named = (name: string) => path.join(dir, name)

test('digits are kept: integers and decimals that a double would round stay texts', async () => {
  const content =
    '{"prompt":"a","answer":"x","id":9007199254740995}\n{"prompt":"b","answer":"x","id":9007199254740996}'
  assert.equal(ids(await read(content)), ['9007199254740995', '9007199254740996'])
  const answers = async (texts: string[]) => {
    const lines = texts.map((text, i) => `{"prompt":"p${i}","answer":${text}}`)
    writeFileSync(file, lines.join('\n'))
    const anything = { checkAnswer: () => undefined }
    return (await readProblems(file, anything)).map(({ answer }) => answer)
  }
  assert.equal(
    await answers([
      '12157665459056928802',
      '0.12345678901234567890',
      '1e400',
      '1.50',
      '-0.1',
      '100000000000000000',
    ]),
    ['12157665459056928802', '0.12345678901234567890', '1e400', 1.5, -0.1, '100000000000000000'],
  )
  assert.equal(await answers(['{"deep":[9007199254740995,"9007199254740995"]}']), [
    { deep: ['9007199254740995', '9007199254740995'] },
  ])
})

test('digits are kept in Parquet: 64-bit integers, decimals, float32', async () => {
  const parquet = parquetWriteBuffer({
    columnData: [
      { name: 'id', data: [9007199254740995n, 9007199254740996n] },
      { name: 'prompt', data: ['a', 'b'] },
      { name: 'answer', data: [0.1, 16777216], type: 'FLOAT' },
    ],
  })
  writeFileSync(named('digits.parquet'), Buffer.from(parquet))
  const anything = { checkAnswer: () => undefined }
  const read = await readProblems(named('digits.parquet'), anything)
  assert.equal(
    read.map(({ id, answer }) => [id, answer]),
    [
      ['9007199254740995', 0.1],
      ['9007199254740996', 16777216],
    ],
  )
  for (const type of ['INT32', 'FIXED_LEN_BYTE_ARRAY'] as const) {
    writeFileSync(named('decimals.parquet'), decimalFile(3, [-1250, 7, 123456], type))
    const rows = await readRows(named('decimals.parquet'))
    assert.equal(
      rows.map(({ value }) => value.answer),
      ['-1.250', '0.007', '123.456'],
    )
    writeFileSync(named('tenths.parquet'), decimalFile(1, [-125, 7], type))
    const tenths = await readRows(named('tenths.parquet'))
    assert.equal(
      tenths.map(({ value }) => value.answer),
      ['-12.5', '0.7'],
    )
  }
})

test('Parquet: a group that is null, within a list, or repeated, keeps their digits', async () => {
  const schema = [
    { name: 'root', num_children: 4 },
    { name: 'flat', type: 'DOUBLE', repetition_type: 'OPTIONAL' },
    { name: 'group', repetition_type: 'OPTIONAL', num_children: 1 },
    { name: 'x', type: 'INT64', repetition_type: 'OPTIONAL' },
    { name: 'many', repetition_type: 'REPEATED', num_children: 1 },
    { name: 'z', type: 'FLOAT', repetition_type: 'OPTIONAL' },
    { name: 'list', repetition_type: 'OPTIONAL', converted_type: 'LIST', num_children: 1 },
    { name: 'list', repetition_type: 'REPEATED', num_children: 1 },
    { name: 'element', repetition_type: 'OPTIONAL', num_children: 1 },
    { name: 'y', type: 'FLOAT', repetition_type: 'OPTIONAL' },
  ]
  const columnData = [
    { name: 'flat', data: [0.5, null] },
    { name: 'group', data: [{ x: 9007199254740995n }, null] },
    { name: 'many', data: [[0.1, 0.2], []] },
    { name: 'list', data: [[{ y: 0.1 }, null], []] },
  ]
  writeFileSync(named('groups.parquet'), Buffer.from(parquetWriteBuffer({ columnData, schema } as never)))
  assert.equal(
    (await readRows(named('groups.parquet'))).map(({ value }) => ({ ...value })),
    [
      {
        flat: 0.5,
        group: { x: '9007199254740995' },
        many: [{ z: 0.1 }, { z: 0.2 }],
        list: [{ y: 0.1 }, undefined],
      },
      { flat: null, group: undefined, many: [], list: [] },
    ],
  )
})

/** A Parquet file with one column `answer` of decimals with that scale, stored as that type. */
function decimalFile(scale: number, data: readonly number[], type: 'INT32' | 'FIXED_LEN_BYTE_ARRAY'): Buffer {
  const column = {
    name: 'answer',
    // The writer scales the numbers.
    data: data.map(value => value / 10 ** scale),
  }
  const schema = [
    { name: 'root', num_children: 1 },
    {
      ...{ name: 'answer', type, repetition_type: 'REQUIRED' as const },
      ...(type === 'FIXED_LEN_BYTE_ARRAY' && { type_length: 4 }),
      ...{ converted_type: 'DECIMAL' as const, scale, precision: 9 },
    },
  ]
  return Buffer.from(parquetWriteBuffer({ columnData: [column], schema } as never))
}

test('a column named twice is refused; an empty id is none', async () => {
  const csv = 'problem,answer,answer\np,21,wrong\n'
  assert.match(
    await messageOf(csv, {}, named('double.csv')),
    'double.csv is no readable CSV file: two columns are named "answer"',
  )
  assert.equal(ids(await read('id,problem,answer\n,p,21\n,q,22\n', {}, named('ids.csv'))), ['2', '3'])
})

test('columns by their usual names; where there is none, the columns there are', async () => {
  assert.equal(await read('ID,Question,Answer\nx-1,Add 8 and 13.,021\n', {}, named('usual.csv')), [
    { id: 'x-1', prompt: 'Add 8 and 13.', answer: '021' },
  ])
  for (const name of ['prompt', 'problem', 'question', 'query']) {
    assert.equal(await read(`${name},answer\np,1\n`, {}, named('usual.csv')), [
      { id: '2', prompt: 'p', answer: '1' },
    ])
  }
  for (const name of ['answer', 'final_answer', 'expected_answer', 'ground_truth', 'target', 'solution']) {
    assert.equal(await read(`prompt,${name}\np,1\n`, {}, named('usual.csv')), [
      { id: '2', prompt: 'p', answer: '1' },
    ])
  }
  assert.match(
    await messageOf('Aufgabe,answer\np,1\n', {}, named('other.csv')),
    /no row has a column prompt, problem, .*; it has Aufgabe, answer: data\.problemField names the column with the problem/,
  )
  assert.match(
    await messageOf('prompt,Loesung\np,1\n', {}, named('other.csv')),
    /it has prompt, Loesung: data\.answerField names the column with the answer/,
  )
})

test('dots lead into nested objects, unless a column has that very name', async () => {
  const line = '{"prompt":"p","extra":{"value":"deep"},"flat.value":"flat"}'
  assert.equal((await read(line, { answerField: 'extra.value' }))[0]!.answer, 'deep')
  assert.equal((await read(line, { answerField: 'flat.value' }))[0]!.answer, 'flat')
  assert.match(
    await messageOf(line, { answerField: 'extra.other' }),
    'has no field "extra.other" (data.answerField)',
  )
})

test('JSON arrays, tables with tabs, compressed files, globs and lists of files', async () => {
  const rows = [
    { id: 'a', prompt: 'p', answer: 'x' },
    { id: 'b', prompt: 'q', answer: 'y' },
  ]
  const lines = rows.map(row => JSON.stringify(row)).join('\n')
  assert.equal(await read(JSON.stringify(rows, null, 2), {}, named('array.json')), rows)
  assert.equal(await read(lines, {}, named('lines.json')), rows)
  assert.equal(await read('id\tprompt\tanswer\na\tp\tx\nb\tq\ty\n', {}, named('table.tsv')), rows)
  assert.equal(await read(gzipSync(lines), {}, named('lines.jsonl.gz')), rows)
  assert.equal(await read(Buffer.from(ZSTD_OF_TWO_ROWS, 'base64'), {}, named('lines.jsonl.zst')), rows)
  assert.match(await messageOf('no gzip', {}, named('broken.jsonl.gz')), 'is no readable gzip file: ')
  assert.match(await messageOf('no zstd', {}, named('broken.jsonl.zst')), 'is no readable Zstandard file: ')
  assert.match(
    await messageOf('[{"prompt":"p"}, 3]', {}, named('broken.json')),
    'is no readable JSON array of objects: entry 2 is not an object',
  )
  assert.match(
    await messageOf('[{"prompt":"p"}', {}, named('broken.json')),
    'is no readable JSON array of objects: ',
  )

  for (const [i, row] of rows.entries()) writeFileSync(named(`part-${i}.jsonl`), JSON.stringify(row))
  assert.equal(await readProblems(named('part-*.jsonl'), exact), rows)
  assert.equal(await readProblems([named('part-1.jsonl'), named('part-0.jsonl')], exact), [...rows].reverse())
  assert.match(
    await readProblems(named('none-*.jsonl'), exact).catch(error => error.message),
    'no file matches ',
  )
  const twice = await readProblems([named('part-0.jsonl'), named('array.json')], exact).catch(
    error => error.message,
  )
  assert.match(
    twice,
    `${named('array.json')} row 1: has the id "a" that ${named('part-0.jsonl')}:1 has already`,
  )
  // Without ids of their own, rows of several files are told apart by file and line.
  for (const name of ['one', 'two'])
    writeFileSync(named(`${name}.jsonl`), `{"prompt":"${name}","answer":"x"}`)
  assert.equal(ids(await readProblems([named('one.jsonl'), named('two.jsonl')], exact)), [
    `${named('one.jsonl')}:1`,
    `${named('two.jsonl')}:1`,
  ])
})

const ZSTD_OF_TWO_ROWS =
  'KLUv/QRYrQEApAJ7ImlkIjoiYSIsInByb21wdCI6InAiLCJhbnN3ZXIiOiJ4In0KYnF5In0DAIATwG9Rpp7O7pqH'

test('an answer whose LaTeX lost a backslash is named', async () => {
  for (const [answer, command] of [
    ['\frac{3}{4}', '\\frac'],
    ['\text{even}', '\\text'],
    ['\boxed{8}', '\\boxed'],
    ['x \neq 2', '\\neq'],
    ['\right)', '\\right'],
  ] as const) {
    const message = await messageOf(JSON.stringify({ prompt: 'p', answer }))
    assert.ok(
      message.includes(`answer holds a control character where ${command} lost its backslash`),
      message,
    )
  }
  for (const answer of ['two\nlines', 'a\ttab', 'windows\r\nline', '\\frac{1}{2}']) {
    assert.is((await read(JSON.stringify({ prompt: 'p', answer })))[0]!.answer, answer)
  }
})

test('prompts as lists of messages', async () => {
  const messages = [
    { role: 'system', content: 'Be brief.' },
    { role: 'user', content: 'Add 8 and 13.' },
  ]
  assert.equal(await read(JSON.stringify({ prompt: messages, answer: '21' })), [
    { id: '1', prompt: 'Add 8 and 13.', messages, answer: '21' },
  ])
  const wrong: unknown[] = [[], [{ role: 'user' }], [{ role: 'system', content: 's' }], ['text']]
  wrong.push([...messages, { role: 'assistant', content: 'a' }])
  for (const prompt of wrong) {
    assert.match(
      await messageOf(JSON.stringify({ prompt, answer: '21' })),
      'prompt must be a text, or a list of messages',
    )
  }
})

test('a list of one answer is that answer', async () => {
  assert.is((await read('{"prompt":"p","answer":["21"]}'))[0]!.answer, '21')
})

test('many rows that cannot be used: the first few, then how many of each kind', async () => {
  const line = (i: number) => `{"prompt":"p","answer":"x","id":"${i}"}`
  const content = [...Array.from({ length: 30 }, (_, i) => line(i)), '{"prompt":"","answer":"x"}'].join('\n')
  const lines = (await messageOf(content)).split('\n')
  assert.is(lines.length, 8)
  assert.match(lines[0]!, 'problems.jsonl:2: has the problem that line 1 has already')
  assert.equal(lines.slice(5), [
    'and 24 more: has the problem that line … has already',
    'and 1 more: prompt must be a text that is not empty',
    '30 of 31 cannot be used; data.dropUnusable: true leaves them out',
  ])
  // Nothing would be left.
  assert.match(await messageOf('{"prompt":"p","answer":""}'), /\n1 of 1 cannot be used$/)
})

test('several answers: the built-in verifiers take any of them', async () => {
  for (const name of ['exact', 'math']) {
    const verifier = await loadVerifier(name)
    assert.is(verifier.checkAnswer(['2', '7']), undefined)
    assert.match(
      verifier.checkAnswer(['2', '']) ?? '',
      'answer has several entries, of which number 2: answer must be',
    )
    assert.match(verifier.checkAnswer([]) ?? '', 'answer is an empty list')
    const text = (value: string) => (name === 'math' ? `\\boxed{${value}}` : value)
    const context = { id: 'p', prompt: '', columns: {} }
    const verdicts = await Promise.all(
      ['7', '2', '3'].map(value => judge(() => verifier.verify(text(value), ['2', '7'], context), value)),
    )
    assert.equal(
      verdicts.map(({ reward }) => reward),
      [1, 1, 0],
    )
  }
})

test('layouts of public datasets are read as they are', async () => {
  const layouts = fileURLToPath(new URL('./layouts', import.meta.url))
  const math = await loadVerifier('math')
  const names = readdirSync(layouts)
  assert.ok(names.length >= 9)
  for (const name of names) {
    const problems = await readProblems(path.join(layouts, name), math)
    assert.ok(problems.length > 0, name)
    for (const { id, prompt, answer } of problems) {
      assert.ok(prompt.length > 5, name)
      const expected = name === 'olympiad-bench.jsonl' ? '7' : prompt.includes('14') ? '22' : '21'
      const context = { id, prompt, columns: {} }
      const reward = async (given: string) =>
        (await judge(() => math.verify(`So \\boxed{${given}}.`, answer, context), given)).reward
      assert.is(await reward(expected), 1, `${name}: ${JSON.stringify(answer)}`)
      assert.is(await reward('10'), 0, `${name}: ${JSON.stringify(answer)}`)
    }
  }
})

test('many kinds of faults: the most frequent ones, and how many others', async () => {
  const { summarizeRows } = await import('../../lib/data/problems.js')
  const rows = [...'abcdef'].flatMap((fault, i) =>
    Array.from({ length: i + 2 }, (_, k) => `f:${k}: ${fault}`),
  )
  assert.equal(summarizeRows(rows), [
    ...['f:0: a', 'f:1: a', 'f:0: b', 'f:1: b', 'f:2: b'],
    ...['and 7 more: f', 'and 6 more: e', 'and 5 more: d', 'and 4 more: c'],
  ])
  const many = [...rows, 'f:1: g', 'f:1: h', 'f:1: i']
  assert.equal(summarizeRows(many).slice(-2), ['and 1 more: g', 'and 2 others'])
  // Nothing is gained by counting a single one.
  assert.equal(summarizeRows(rows.slice(0, 6)), rows.slice(0, 6))
})

test('a file that is missing: the field, the name, the absolute path', async () => {
  const messageOf = (name: string) =>
    readProblems(name, exact, { field: 'data.train' }).then(
      () => '',
      error => error.message,
    )
  const place = path.resolve('none')
  assert.is(await messageOf('none/x.jsonl'), `data.train: there is no file none/x.jsonl (${place}/x.jsonl)`)
  assert.is(await messageOf('none/*.jsonl'), `data.train: no file matches none/*.jsonl (${place}/*.jsonl)`)
  assert.is(await messageOf(dir), `data.train: cannot read ${dir}: it is a directory`)
  assert.is(await messageOf(`${file}.none`), `data.train: there is no file ${file}.none`)
})

test('verifiers by name: a near one is suggested; what looks like a path is a file', async () => {
  const messageOf = async (name: string) =>
    loadVerifier(name).then(
      () => '',
      error => error.message,
    )
  assert.match(
    await messageOf('maths'),
    'task.verifier is "maths"; it must be one of countdown, exact, math, or the path of a module: did you mean "math"?',
  )
  assert.match(await messageOf('Math'), 'did you mean "math"?')
  assert.not.match(await messageOf('reward'), 'did you mean')
  assert.is(
    await messageOf('maths.mjs'),
    `task.verifier: there is no file maths.mjs (${path.resolve('maths.mjs')})`,
  )
  assert.match(await messageOf('./maths'), 'task.verifier: there is no file ./maths')
})

test.run()
