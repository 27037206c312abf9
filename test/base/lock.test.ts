import { spawn, spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import fs, {
  chmodSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  utimesSync,
  writeFileSync,
} from 'node:fs'
import { syncBuiltinESMExports } from 'node:module'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { Worker } from 'node:worker_threads'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { acquireLock, withLock } from '../../lib/base/lock.js'
import { makeTempDir } from '../helpers/fake-policy.js'

const refuse = (holder: string) => {
  throw new Error(`held by ${holder}`)
}
const messageOf = (work: Promise<unknown>) =>
  work.then(assert.unreachable as never, error => (error as Error).message) as Promise<string>

const source = JSON.stringify(new URL('../../lib/base/lock.ts', import.meta.url).href)
/** Takes the lock and says so; ends when its input does. Or says who has it. */
const script = (file: string, times: object = {}) => `
  import { acquireLock } from ${source}
  const refuse = holder => { throw new Error('held by ' + holder) }
  const lock = await acquireLock(${JSON.stringify(file)}, refuse, ${JSON.stringify(times)}).catch(error => error)
  console.log(lock.message ?? 'locked')
  if (!lock.message) {
    setInterval(() => {}, 1000)
    process.stdin.on('end', async () => { await lock.release(); process.exit() }).resume()
  }`

/** In a process of its own, behind `prefix` such as unshare. */
function holder(file: string, prefix: readonly string[] = [], times: object = {}) {
  const [command, ...args] = [...prefix, process.execPath, '--import', 'tsx', '--input-type=module', '-e']
  const child = spawn(command!, [...args, script(file, times)], { stdio: ['pipe', 'pipe', 'inherit'] })
  const said = once(createInterface(child.stdout), 'line').then(([line]) => line as string)
  const ended = once(child, 'exit')
  return { child, said, ended }
}

/** Each command in a pid namespace of its own, as in a container: undefined where the machine forbids it. */
const namespace = ['unshare', '-rp', '--fork', '--kill-child', '--mount-proc']
const hasNamespaces = spawnSync(namespace[0]!, [...namespace.slice(1), 'true']).status === 0
const testInNamespaces = hasNamespaces ? test : test.skip

test('one at a time: refused or waited for; what is released leaves nothing', async () => {
  const dir = makeTempDir()
  const file = path.join(dir, 'lock')
  const listeners = () => process.eventNames().map(name => [name, process.listenerCount(name)])
  const before = listeners()
  const first = await acquireLock(file, refuse)
  assert.is(await messageOf(acquireLock(file, refuse)), `held by process ${process.pid}`)
  const order: string[] = []
  const waiting = withLock(
    file,
    who => order.push(who),
    async () => order.push('second'),
  )
  await new Promise(resolve => setTimeout(resolve))
  order.push('release')
  await first.release()
  await waiting
  assert.equal(order, [`process ${process.pid}`, 'release', 'second'])
  await first.release()
  assert.equal(readdirSync(dir), [])
  assert.equal(listeners(), before)
})

test('held by a thread of the same process: refused; of a thread that was terminated: taken over', async () => {
  const file = path.join(makeTempDir(), 'lock')
  const code = `import('tsx/esm/api').then(({ tsImport }) => tsImport(${source}, ${JSON.stringify(import.meta.url)}))
    .then(({ acquireLock }) => acquireLock(${JSON.stringify(file)}, () => {}, { beat: 20 }))
    .then(() => { require('node:worker_threads').parentPort.postMessage('locked'); setInterval(() => {}, 1000) })`
  const worker = new Worker(code, { eval: true })
  await once(worker, 'message')
  // Only its renewals tell that it is alive: as many as it takes are waited for.
  assert.is(await messageOf(acquireLock(file, refuse)), `held by process ${process.pid}`)
  await worker.terminate()
  const lock = await acquireLock(file, refuse, { stale: 300 })
  assert.is(JSON.parse(readFileSync(file, 'utf8')).pid, process.pid)
  await lock.release()
})

test('a thread that is too busy to run a timer keeps its lock', async () => {
  const file = path.join(makeTempDir(), 'lock')
  const lock = await acquireLock(file, refuse, { beat: 20 })
  const renewed = new Int32Array(new SharedArrayBuffer(4))
  const watcher = new Worker(
    `const { workerData: { file, renewed } } = require('node:worker_threads')
     const { statSync } = require('node:fs')
     const first = statSync(file).mtimeMs
     while (statSync(file).mtimeMs === first);
     Atomics.store(renewed, 0, 1)
     Atomics.notify(renewed, 0)`,
    { eval: true, workerData: { file, renewed } },
  )
  // This thread does nothing else until then; a minute is for a test that has failed.
  assert.is.not(Atomics.wait(renewed, 0, 0, 60_000), 'timed-out')
  await watcher.terminate()
  await lock.release()
})

testInNamespaces(
  'two containers with a directory in common, both process 1: one alone, until it is killed',
  async () => {
    const file = path.join(makeTempDir(), 'lock')
    const first = holder(file, namespace)
    assert.is(await first.said, 'locked')
    assert.is(JSON.parse(readFileSync(file, 'utf8')).pid, 1)
    const second = holder(file, namespace)
    assert.match(await second.said, /^held by process 1 on /)
    await second.ended
    first.child.kill('SIGKILL')
    await first.ended
    assert.ok(existsSync(file))
    const third = holder(file, namespace, { stale: 300 })
    assert.is(await third.said, 'locked')
    third.child.stdin.end()
    await third.ended
    assert.not(existsSync(file))
  },
)

test('a process that was killed is seen to be gone: nothing is waited for', async () => {
  const file = path.join(makeTempDir(), 'lock')
  const killed = holder(file)
  assert.is(await killed.said, 'locked')
  assert.match(await messageOf(acquireLock(file, refuse)), `held by process ${killed.child.pid}`)
  killed.child.kill('SIGKILL')
  await killed.ended
  // Without renewals it would be held for ever.
  const lock = await acquireLock(file, refuse, { stale: Infinity })
  await lock.release()

  // Its number may be another process's by now.
  const { stdout: dead } = spawnSync(process.execPath, ['-p', 'process.pid'])
  const record = { ...(await recordOf(file)), pid: process.ppid, start: '1' }
  for (const changes of [{}, { pid: Number(dead) }]) {
    writeFileSync(file, JSON.stringify({ ...record, ...changes }))
    await (await acquireLock(file, refuse, { stale: Infinity })).release()
  }
})

/** What this process writes into a lock. */
async function recordOf(file: string) {
  const lock = await acquireLock(file, refuse)
  const record = JSON.parse(readFileSync(file, 'utf8'))
  await lock.release()
  return record
}

test("a living process of another user's keeps its lock", async () => {
  const dir = makeTempDir()
  chmodSync(dir, 0o777)
  const file = path.join(dir, 'lock')
  const isRoot = process.getuid!() === 0
  // Process 1 is root's: another user may not signal it.
  const record = { ...(await recordOf(file)), pid: 1, token: 'x' }
  if (record.start) record.start = readFileSync('/proc/1/stat', 'utf8').replace(/.*\) /s, '').split(' ')[19]
  for (const content of ['1', JSON.stringify(record)]) {
    writeFileSync(file, content)
    const code = `process.setgid(65534); process.setuid(65534)
      let code; try { process.kill(1, 0) } catch (error) { code = error.code }
      console.log(code)`
    const become = isRoot ? code : ''
    const child = spawnSync(
      process.execPath,
      [
        '--import',
        'tsx',
        '--input-type=module',
        '-e',
        script(file).replace('const refuse', `${become}\nconst refuse`),
      ],
      { encoding: 'utf8' },
    )
    const lines = child.stdout.trim().split('\n')
    if (isRoot) assert.is(lines.shift(), 'EPERM', child.stderr)
    assert.equal(lines, ['held by process 1'])
    assert.is(readFileSync(file, 'utf8'), content)
  }
})

test("a holder that cannot be seen: judged by renewals, not by anybody's clock", async () => {
  const file = path.join(makeTempDir(), 'lock')
  const record = { ...(await recordOf(file)), host: 'far', boot: 'other', token: 'x' }
  for (const seconds of [0, 4e9]) {
    writeFileSync(file, JSON.stringify(record))
    let time = seconds
    utimesSync(file, time, time)
    const renewing = setInterval(() => utimesSync(file, ++time, time), 20)
    assert.is(await messageOf(acquireLock(file, refuse)), `held by process ${process.pid} on far`)
    clearInterval(renewing)
    utimesSync(file, seconds, seconds)
    await (await acquireLock(file, refuse, { stale: 200 })).release()
  }
  // As a kill between making the file and filling it leaves it; and what nobody can read.
  for (const content of ['', '{"pid"', 'null', '[]']) {
    writeFileSync(file, content)
    await (await acquireLock(file, refuse, { stale: 200 })).release()
  }
})

test('many that find a lock of nobody: one takes it over, also where another was killed over it', async () => {
  const dir = makeTempDir()
  const file = path.join(dir, 'lock')
  const { stdout: dead } = spawnSync(process.execPath, ['-p', 'process.pid'])
  const record = { ...(await recordOf(file)), pid: Number(dead), start: '1', token: 'x' }
  const content = JSON.stringify(record)
  const guard = `${file}.${createHash('sha256').update(content).digest('hex').slice(0, 8)}`
  writeFileSync(file, content)
  writeFileSync(guard, content)
  const tries = Array.from({ length: 8 }, () =>
    acquireLock(file, refuse).catch(error => error.message as string),
  )
  const outcomes = await Promise.all(tries)
  const refused = outcomes.filter(outcome => outcome === `held by process ${process.pid}`)
  assert.is(refused.length, 7)
  const lock = outcomes.find(outcome => typeof outcome !== 'string')
  assert.equal(readdirSync(dir), ['lock'])
  await (lock as Awaited<ReturnType<typeof acquireLock>>).release()
})

test("a lock that is lost: said by check and by the signal; the new holder's file stays", async () => {
  const file = path.join(makeTempDir(), 'lock')
  for (const [theirs, why] of [
    ['{"pid":7,"host":"far"}', 'process 7 on far has taken it over'],
    [undefined, 'somebody has removed it'],
  ] as const) {
    for (const isAsked of [true, false]) {
      const lock = await acquireLock(file, refuse, { beat: 20 })
      lock.check()
      rmSync(file)
      if (theirs) writeFileSync(file, theirs)
      if (isAsked) assert.throws(() => lock.check(), why)
      else if (!lock.lost.aborted) {
        // A lock alone does not keep a process alive.
        const alive = setInterval(() => {}, 1000)
        await once(lock.lost, 'abort')
        clearInterval(alive)
      }
      const { code, message } = lock.lost.reason
      assert.is(code, 'ERR_RAPO_ABORTED')
      assert.match(message, `the lock ${file} is lost: ${why}`)
      await lock.release()
      assert.is(existsSync(file), theirs !== undefined)
      rmSync(file, { force: true })
    }
  }
})

test('a process that exits removes its locks', async () => {
  const file = path.join(makeTempDir(), 'lock')
  const code = script(file).replace('setInterval(() => {}, 1000)', 'process.exit()')
  const child = spawnSync(process.execPath, ['--import', 'tsx', '--input-type=module', '-e', code], {
    encoding: 'utf8',
  })
  assert.is(child.stdout, 'locked\n')
  assert.not(existsSync(file))
})

test('a place where no file can be made', async () => {
  const dir = makeTempDir()
  const error = await acquireLock(path.join(dir, 'none', 'lock'), refuse).catch(error => error)
  assert.is(error.code, 'ERR_RAPO_IO')
  mkdirSync(path.join(dir, 'lock'))
  assert.is((await acquireLock(path.join(dir, 'lock'), refuse).catch(error => error)).code, 'ERR_RAPO_IO')
})

test('where the start of a process cannot be read, a living one keeps its lock without a renewal', async () => {
  const file = path.join(makeTempDir(), 'lock')
  const own = await acquireLock(file, refuse)
  const holder = JSON.parse(readFileSync(file, 'utf8'))
  await own.release()
  const other = spawn(process.execPath, ['-e', 'process.stdin.resume()'])
  writeFileSync(file, JSON.stringify({ ...holder, start: undefined, token: 'theirs', pid: other.pid }))
  const message = await messageOf(acquireLock(file, refuse, { stale: 1 }))
  other.kill()
  assert.is(message, `held by process ${other.pid}`)
})

test('a full disk leaves no lock without a holder', async () => {
  const file = path.join(makeTempDir(), 'lock')
  const write = fs.writeFileSync
  fs.writeFileSync = () => {
    throw Object.assign(new Error('ENOSPC'), { code: 'ENOSPC' })
  }
  syncBuiltinESMExports()
  try {
    assert.match(await messageOf(acquireLock(file, refuse)), /^cannot write .*: the disk is full$/)
  } finally {
    fs.writeFileSync = write
    syncBuiltinESMExports()
  }
  assert.not(existsSync(file))
  await (await acquireLock(file, refuse)).release()
})

test('a lock that cannot be taken over is an error, and stays', async () => {
  const dir = makeTempDir()
  const file = path.join(dir, 'lock')
  const { stdout: dead } = spawnSync(process.execPath, ['-p', 'process.pid'])
  const content = JSON.stringify({ ...(await recordOf(file)), pid: Number(dead), start: '1', token: 'x' })
  writeFileSync(file, content)
  const { renameSync } = fs
  fs.renameSync = () => {
    throw Object.assign(new Error('EIO'), { code: 'EIO' })
  }
  syncBuiltinESMExports()
  try {
    assert.match(await messageOf(acquireLock(file, refuse)), /^cannot take over /)
  } finally {
    fs.renameSync = renameSync
    syncBuiltinESMExports()
  }
  assert.equal(readdirSync(dir), ['lock'])
  assert.is(readFileSync(file, 'utf8'), content)
  await (await acquireLock(file, refuse)).release()
})

test.run()
