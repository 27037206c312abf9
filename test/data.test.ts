import { writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { createCursor, type Problem, readProblems } from '../lib/data.js'
import { RapoError } from '../lib/errors.js'
import { exact } from '../lib/reward/exact.js'
import { makeTempDir } from './fake-policy.js'

const file = path.join(makeTempDir(), 'problems.jsonl')

function read(content: string | Buffer): Problem[] {
  writeFileSync(file, content)
  return readProblems(file, exact)
}

function messageOf(content: string | Buffer): string {
  try {
    read(content)
  } catch (error) {
    assert.instance(error, RapoError)
    assert.is((error as RapoError).code, 'ERR_RAPO_DATA')
    return (error as RapoError).message
  }
  return assert.unreachable('nothing was thrown') as never
}

const good = '{"id":"a","prompt":"1+1=","answer":"2","difficulty":"easy","source":"ignored"}'

test('reads problems; ids default to the line number; blank lines and a byte order mark are skipped', () => {
  assert.equal(read(`\ufeff${good}\r\n\n{"prompt":"p","answer":"x"}`), [
    { id: 'a', prompt: '1+1=', answer: '2', difficulty: 'easy' },
    { id: '3', prompt: 'p', answer: 'x' },
  ])
})

test('a broken line: file, line number, why', () => {
  assert.match(messageOf(`${good}\n{"prompt": "p", \n`), `${file}:2: line 2 is not JSON: `)
  assert.match(messageOf(`${good}\n[1]\n`), `${file}:2: line 2 must be a JSON object, not [1]`)
  assert.match(messageOf(`${good}\n"text"\n`), 'line 2 must be a JSON object')
  assert.match(messageOf(`${good}\nnull\n`), 'line 2 must be a JSON object')
  assert.match(messageOf(Buffer.from([0x7b, 0xff, 0x7d])), `${file}:1: line 1 is not UTF-8 text`)
})

test('a problem with a wrong field', () => {
  assert.match(messageOf('{"answer":"x"}'), 'line 1 prompt must be a text that is not empty')
  assert.match(messageOf('{"prompt":"","answer":"x"}'), 'line 1 prompt must be a text that is not empty')
  assert.match(messageOf('{"prompt":"p"}'), 'line 1 answer is missing')
  assert.match(messageOf('{"prompt":"p","answer":3}'), 'line 1 answer must be a text that is not empty')
  assert.match(messageOf('{"prompt":"p","answer":"x","id":[]}'), 'line 1 id must be a text or a number')
  assert.match(messageOf('{"prompt":"p","answer":"x","difficulty":2}'), 'line 1 difficulty must be a text')
  assert.match(
    messageOf('{"prompt":"p","answer":"x","difficulty":"all"}'),
    '"all" is the name of the whole set',
  )
})

test('two problems with one id, also when one is a line number', () => {
  assert.match(messageOf(`${good}\n\n${good}\n`), `${file}:3: line 3 has the id "a" that line 1 has already`)
  assert.match(
    messageOf('{"prompt":"p","answer":"x","id":2}\n{"prompt":"p","answer":"x"}'),
    'line 2 has the id "2"',
  )
})

test('a file that is empty or missing', () => {
  for (const content of ['', '\n \n']) assert.match(messageOf(content), `${file} holds no problem`)
  assert.throws(() => readProblems(`${file}.none`, exact), /cannot read .*none/)
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
})

test.run()
