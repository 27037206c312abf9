import { type ChildProcess, fork, spawn } from 'node:child_process'
import { once } from 'node:events'
import { Writable } from 'node:stream'
import { fileURLToPath } from 'node:url'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { createMultiProgress, createProgress, type ProgressMessage } from '../../lib/cli/progress.js'

/** A stream that keeps what is written, and says whether it is a terminal. */
function fakeStream(isTTY: boolean, columns = 80) {
  const chunks: string[] = []
  const stream = new Writable({
    write(chunk, _encoding, done) {
      chunks.push(String(chunk))
      done()
    },
  })
  return Object.assign(stream, {
    isTTY,
    columns,
    text: () => chunks.join(''),
    lines: () => chunks.join('').split('\n').slice(0, -1),
  })
}

// biome-ignore lint/suspicious/noControlCharactersInRegex: escape sequences are what is looked for
const ANSI = /\x1b\[([?0-9;]*)([A-Za-z])|([\s\S])/g

/** What a terminal of that many columns shows after the text: cursor moves and clears are carried out. */
function screen(text: string, columns = 80) {
  const rows: string[][] = [[]]
  let x = 0
  let y = 0
  for (const [, argument, command, character] of text.matchAll(ANSI)) {
    if (character === '\n') {
      x = 0
      y++
    } else if (character === '\r') x = 0
    else if (character !== undefined) {
      assert.ok(x < columns, `a line is longer than ${columns} columns`)
      const row = rows[y]!
      while (row.length < x) row.push(' ')
      row[x++] = character
    } else if (command === 'G') x = Number(argument || 1) - 1
    else if (command === 'A') y -= Number(argument || 1)
    else if (command === 'K') rows[y] = argument === '2' ? [] : rows[y]!.slice(0, x)
    else if (command === 'J') {
      rows[y] = rows[y]!.slice(0, x)
      rows.length = y + 1
    } else
      throw new Error(`an escape sequence that changes the terminal: ${JSON.stringify(argument + command!)}`)
    while (rows.length <= y) rows.push([])
  }
  return rows.map(row => row.join('').trimEnd())
}

const sleep = (milliseconds: number) => new Promise(resolve => setTimeout(resolve, milliseconds))

test('labels, fields and lines cannot steer the terminal', () => {
  const evil = '\u001b[2J\u009b31m\n\r\b\u202e'
  for (const isTTY of [true, false]) {
    const stream = fakeStream(isTTY, 400)
    const progress = createProgress({ label: `train ${evil}`, total: 2, stream, env: {} })
    progress.update(1, { note: evil })
    progress.log(`a line ${evil}`)
    progress.stop()
    const many = createMultiProgress({ stream, env: {} })
    many.receive(evil, { type: 'progress', label: evil, done: 1, total: 2, fields: { note: evil } })
    many.receive(evil, { type: 'log', line: evil })
    many.stop()
    // The bar's own sequences move the cursor and clear; screen() throws at others.
    const shown = isTTY ? screen(stream.text(), 400).join('\n') : stream.text()
    assert.not.match(shown.replaceAll(/[^\P{C}\n]/gu, '\0'), '\0')
    assert.match(shown, 'train \\u001b[2J\\u009b31m \\u000d\\u0008\\u202e')
    assert.match(shown, 'a line \\u001b[2J')
  }
})

test('plain lines come at tenths of the way, not at every update', () => {
  const stream = fakeStream(false)
  let now = 0
  const progress = createProgress({
    label: 'train',
    total: 100,
    unit: 'steps',
    stream,
    clock: () => now,
    env: {},
  })
  for (let step = 1; step <= 100; step++) {
    now += 500
    progress.update(step, { reward: step / 300 })
  }
  progress.stop()
  assert.equal(stream.lines().length, 11, stream.text())
  assert.is(stream.lines()[0], 'train 0/100 steps (0 %), elapsed 0:00, ETA –')
  assert.is(stream.lines()[3], 'train 30/100 steps (30 %), elapsed 0:15, ETA 0:35, reward 0.100')
  assert.is(stream.lines()[10], 'train 100/100 steps (100 %), elapsed 0:50, reward 0.333')
})

test('plain lines of a slow run come every 15 seconds, those of a fast one at least 2 seconds apart', () => {
  const slow = fakeStream(false)
  let now = 0
  const clock = () => now
  const first = createProgress({ label: 'slow', total: 1000, stream: slow, clock, env: {} })
  for (let step = 1; step <= 60; step++) {
    now += 1000
    first.update(step)
  }
  assert.equal(slow.lines().slice(1), [
    'slow 15/1000 (1 %), elapsed 0:15, ETA 16:25',
    'slow 30/1000 (3 %), elapsed 0:30, ETA 16:10',
    'slow 45/1000 (4 %), elapsed 0:45, ETA 15:55',
    'slow 60/1000 (6 %), elapsed 1:00, ETA 15:40',
  ])

  const fast = fakeStream(false)
  const second = createProgress({ label: 'fast', total: 100, stream: fast, clock, env: {} })
  for (let step = 1; step <= 100; step++) {
    now += 10
    second.update(step)
  }
  second.stop()
  assert.equal(fast.lines(), ['fast 0/100 (0 %), elapsed 0:00, ETA –', 'fast 100/100 (100 %), elapsed 0:01'])
})

test('stop() prints where an interrupted run got to, once, and silences what follows', () => {
  const stream = fakeStream(false)
  let now = 0
  const progress = createProgress({ label: 'eval', total: 10, stream, clock: () => now, env: {} })
  now = 1000
  progress.update(4)
  progress.log('stopping')
  progress.stop()
  progress.stop()
  progress.update(10)
  progress.log('too late')
  assert.equal(stream.lines(), [
    'eval 0/10 (0 %), elapsed 0:00, ETA –',
    'stopping',
    'eval 4/10 (40 %), elapsed 0:01, ETA 0:02',
  ])
})

test('the ETA of a resumed run counts only what this process did, and follows a changed pace', () => {
  const stream = fakeStream(false)
  let now = 0
  const progress = createProgress({ label: 'x', total: 1000, done: 500, stream, clock: () => now, env: {} })
  for (let step = 501; step <= 515; step++) {
    now += 1000
    progress.update(step)
  }
  assert.match(stream.lines().at(-1)!, /515\/1000 .* ETA 8:05/)
  for (let step = 516; step <= 600; step++) {
    now += 4000
    progress.update(step)
  }
  // 400 left at 4 s each; the fast start has left the window.
  assert.match(stream.lines().at(-1)!, /600\/1000 .* ETA 26:40/)
})

test('between two updates the ETA counts down; what else is done is named, and does not change the rate', () => {
  const stream = fakeStream(false)
  let now = 0
  const lines: string[] = []
  const progress = createProgress({ label: 'x', total: 10, stream, clock: () => now, env: {} })
  const show = () => lines.push(stream.lines().at(-1)!)
  now = 20_000
  progress.update(1)
  show()
  now = 35_000
  progress.update(1, {}, { activity: 'saving' })
  show()
  // Longer than was thought.
  now = 300_000
  progress.update(1, {}, { activity: 'saving' })
  show()
  now = 320_000
  progress.update(2, {}, { left: 90_000 })
  show()
  now = 340_000
  progress.update(2)
  show()
  assert.equal(lines, [
    'x 1/10 (10 %), elapsed 0:20, ETA 3:00',
    'x 1/10 (10 %), elapsed 0:35, ETA 2:45, saving',
    'x 1/10 (10 %), elapsed 5:00, ETA 0:00, saving',
    'x 2/10 (20 %), elapsed 5:20, ETA 1:30',
    'x 2/10 (20 %), elapsed 5:40, ETA 1:10',
  ])
})

test('no total: done at once; a total that is no number is refused', () => {
  const stream = fakeStream(false)
  createProgress({ label: 'none', total: 0, stream, env: {}, clock: () => 0 })
  assert.equal(stream.lines(), ['none 0/0 (100 %), elapsed 0:00'])
  for (const total of [-1, Number.NaN, Infinity]) {
    assert.throws(
      () => createProgress({ label: 'x', total, stream, env: {} }),
      /progress total must be a number ≥ 0/,
    )
  }
})

test('a terminal gets one bar, drawn over itself, with log lines above it and its modes untouched', async () => {
  const stream = fakeStream(true)
  let now = 0
  const progress = createProgress({
    label: 'train',
    total: 40,
    unit: 'steps',
    stream,
    clock: () => now,
    env: {},
  })
  now = 10_000
  progress.update(10, { reward: 0.31, kl: 0.0123 })
  await sleep(150)
  assert.equal(screen(stream.text()), [
    'train  ███░░░░░░░░   25 %  10/40 steps  0:10  ETA 0:30  reward 0.310  kl 0.0123',
  ])
  progress.log('saved')
  progress.log('two\nlines')
  await sleep(150)
  assert.equal(screen(stream.text()).slice(0, 3), ['saved', 'two', 'lines'])
  assert.match(screen(stream.text())[3]!, /^train .* 25 %/)
  progress.update(40, { reward: 0.5 })
  progress.log('last')
  progress.stop()
  const written = stream.text()
  assert.equal(screen(written), [
    'saved',
    'two',
    'lines',
    'last',
    'train  ████████████  100 %  40/40 steps  0:10  reward 0.500  kl 0.0123',
    '',
  ])
  progress.stop()
  progress.update(1)
  progress.log('no')
  await sleep(150)
  assert.is(stream.text(), written)
})

test('a narrow terminal loses the fields first, then the bar, and never wraps', async () => {
  const fields = { reward: 0.31, kl: 0.0123, entropy: 1.5 }
  const expected = {
    60: 'train  ████████████  100 %  40/40 steps  0:00  reward 0.310',
    40: 'train  ██████  100 %  40/40 steps  0:00',
    20: 'train  █████  100 %',
    8: 'train',
  }
  for (const [columns, line] of Object.entries(expected)) {
    const stream = fakeStream(true, Number(columns))
    const progress = createProgress({
      label: 'train',
      total: 40,
      unit: 'steps',
      stream,
      clock: () => 0,
      env: {},
    })
    progress.update(40, fields)
    progress.stop()
    assert.is(screen(stream.text(), Number(columns))[0], line)
  }
})

test('TERM=dumb is no terminal', () => {
  const stream = fakeStream(true)
  createProgress({ label: 'x', total: 2, stream, env: { TERM: 'dumb' }, clock: () => 0 }).stop()
  assert.is(stream.text(), 'x 0/2 (0 %), elapsed 0:00, ETA –\n')
})

test('signal handlers come and go with the bar', () => {
  const before = process.listenerCount('SIGINT')
  const progress = createProgress({ label: 'x', total: 2, stream: fakeStream(true), env: {} })
  assert.is(process.listenerCount('SIGINT'), before + 1)
  progress.stop()
  assert.is(process.listenerCount('SIGINT'), before)
  assert.is(
    process.listenerCount('exit', () => {}),
    0,
  )
})

test('alone, a bar ends its line and lets the signal end the process', async () => {
  const bar = `import { Writable } from 'node:stream'
    import { createProgress } from './lib/cli/progress.ts'
    const stream = Object.assign(new Writable({ write: (chunk, _, done) => done() }), { isTTY: true, columns: 80 })
    createProgress({ label: 'x', total: 2, stream, env: {} })
    setTimeout(() => process.exit(7), 20_000)
    process.kill(process.pid, 'SIGTERM')`
  const child = spawn(process.execPath, ['--import', 'tsx', '--input-type=module', '-e', bar], {
    cwd: fileURLToPath(new URL('../..', import.meta.url)),
  })
  const [code, signal] = await once(child, 'close')
  assert.equal([code, signal], [null, 'SIGTERM'])
})

test('a bar is there before its first update, empty', () => {
  const stream = fakeStream(true, 60)
  createProgress({ label: 'x', total: 2, stream, clock: () => 0, env: {} }).stop()
  assert.is(screen(stream.text(), 60)[0], 'x  ░░░░░░░░░░░░    0 %  0/2  0:00  ETA –')
  const single = fakeStream(true, 60)
  createProgress({ label: 'x', total: 1, stream: single, clock: () => 0, env: {} }).stop()
  assert.is(screen(single.text(), 60)[0], 'x  ░░░░░░░░░░░░    0 %  0/1  0:00  ETA –')
  const narrow = fakeStream(true, 12)
  createProgress({ label: 'x', total: 2, stream: narrow, clock: () => 0, env: {} }).stop()
  assert.is(screen(narrow.text(), 12)[0], 'x  ░    0 %')
})

test('with RAPO_PROGRESS=ipc messages go to the parent, not too many, the last one always', () => {
  const sent: ProgressMessage[] = []
  let now = 0
  const stream = fakeStream(false)
  const progress = createProgress({
    label: 'train',
    total: 100,
    unit: 'steps',
    stream,
    clock: () => now,
    env: { RAPO_PROGRESS: 'ipc' },
    send: message => sent.push(message),
  })
  for (let step = 1; step <= 45; step++) {
    progress.update(step, step === 1 ? { reward: 0.5 } : { kl: step })
    now += 10
  }
  progress.log('hello')
  progress.stop()
  progress.update(46)
  progress.log('no')
  const numbers = sent.map(message => (message.type === 'progress' ? message.done : message.line))
  assert.equal(numbers, [1, 11, 21, 31, 41, 'hello', 45])
  assert.equal(sent.at(-1), {
    type: 'progress',
    label: 'train',
    done: 45,
    total: 100,
    unit: 'steps',
    fields: { reward: 0.5, kl: 45 },
  })
  assert.is(stream.text(), '')
})

test('a parent shows several children at once, each in its own line', async () => {
  const stream = fakeStream(true)
  let now = 0
  const board = createMultiProgress({ stream, clock: () => now, env: {} })
  const say = (name: string, label: string, done: number, fields = {}) =>
    board.receive(name, { type: 'progress', label, done, total: 10, fields })
  say('grpo', 'train', 0)
  say('rapo', 'train', 0)
  now = 5000
  say('rapo', 'train', 5, { reward: 0.25 })
  await sleep(150)
  board.receive('rapo', { type: 'log', line: 'saved' })
  board.receive('rapo', 'something else')
  board.receive('rapo', null)
  say('grpo', 'train', 10)
  now = 6000
  say('grpo', 'eval', 1)
  now = 7000
  say('grpo', 'eval', 2)
  board.log('from the parent')
  board.stop()
  assert.equal(screen(stream.text()), [
    'rapo: saved',
    'from the parent',
    'grpo: eval  ██░░░░░░░░░░   20 %  2/10  0:01  ETA 0:08',
    'rapo: train  ██████░░░░░░   50 %  5/10  0:07  ETA 0:03  reward 0.250',
    '',
  ])
})

test('a parent without a terminal prints prefixed lines', () => {
  const stream = fakeStream(false)
  let now = 0
  const board = createMultiProgress({ stream, clock: () => now, env: {} })
  board.receive('grpo', { type: 'progress', label: 'train', done: 0, total: 4, unit: 'steps', fields: {} })
  board.receive('rapo', { type: 'progress', label: 'train', done: 0, total: 4, unit: 'steps', fields: {} })
  now = 3000
  board.receive('rapo', {
    type: 'progress',
    label: 'train',
    done: 3,
    total: 4,
    unit: 'steps',
    fields: { reward: 1 },
  })
  board.receive('grpo', { type: 'log', line: 'saved' })
  board.stop()
  assert.equal(stream.lines(), [
    'grpo: train 0/4 steps (0 %), elapsed 0:00, ETA –',
    'rapo: train 0/4 steps (0 %), elapsed 0:00, ETA –',
    'rapo: train 3/4 steps (75 %), elapsed 0:03, ETA 0:01, reward 1',
    'grpo: saved',
  ])
})

const self = fileURLToPath(import.meta.url)

test('a forked child reports over its channel, and outlives a parent that hangs up', async () => {
  const stream = fakeStream(false)
  const board = createMultiProgress({ stream, env: {} })
  const child: ChildProcess = fork(self, ['--child'], { env: { ...process.env, RAPO_PROGRESS: 'ipc' } })
  board.attach('child', child)
  child.on('message', message => {
    if ((message as ProgressMessage).type === 'log') child.disconnect()
  })
  const [code] = await once(child, 'exit')
  board.stop()
  assert.is(code, 0)
  assert.equal(stream.lines(), ['child: work 1/3 parts (33 %), elapsed 0:00, ETA –', 'child: hang up'])
})

async function childMain() {
  const progress = createProgress({ label: 'work', total: 3, unit: 'parts' })
  progress.update(1)
  progress.log('hang up')
  await once(process, 'disconnect')
  progress.update(3)
  progress.stop()
}

if (process.argv.includes('--child')) await childMain()
else test.run()
