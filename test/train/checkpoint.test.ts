import { execFile, spawn, spawnSync } from 'node:child_process'
import {
  chmodSync,
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import path from 'node:path'
import { promisify } from 'node:util'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { RapoError } from '../../lib/base/errors.js'
import { checkWritable, writeWhole } from '../../lib/base/files.js'
import { appendJsonLines, truncateJsonLines } from '../../lib/base/jsonl.js'
import { readLatestCheckpoint, removeStaleCheckpoints, writeCheckpoint } from '../../lib/train/checkpoint.js'
import { clearRun, createRunDir, describeForeign, lockRun } from '../../lib/train/run.js'
import { makeFakeModel, makeTempDir } from '../helpers/fake-policy.js'

const model = makeFakeModel()
const cursor = { epoch: 1, position: 2, fingerprint: 'f' }
const policy = {
  save: async (dir: string) => writeFileSync(path.join(dir, 'model.safetensors'), 'weights'),
  saveState: async (file: string) => writeFileSync(file, 'state'),
}
const list = (run: string) => readdirSync(path.join(run, 'checkpoints')).sort()
const write = (run: string, step: number, keep = 9, from = policy) =>
  writeCheckpoint(run, model, from, { step, cursor }, { keep })

async function messageOf(work: Promise<unknown>): Promise<string> {
  try {
    await work
  } catch (error) {
    assert.instance(error, RapoError)
    assert.is((error as RapoError).code, 'ERR_RAPO_IO')
    return (error as RapoError).message
  }
  return assert.unreachable('nothing was thrown') as never
}

test('a checkpoint is a model directory with state and tokenizer, and becomes the newest by commit alone', async () => {
  const run = makeTempDir()
  assert.is(readLatestCheckpoint(run), undefined)
  ;(await write(run, 3)).commit()
  const next = await write(run, 6)
  const before = readLatestCheckpoint(run)!
  assert.equal(before.trainer, { step: 3, cursor })
  next.commit()
  const latest = readLatestCheckpoint(run)!
  assert.equal(latest.trainer, { step: 6, cursor })
  assert.is(readFileSync(latest.stateFile, 'utf8'), 'state')
  assert.equal(readdirSync(latest.dir).sort(), [
    'generation_config.json',
    'model.safetensors',
    'rapo',
    'tokenizer.json',
    'tokenizer_config.json',
  ])
  assert.is(readFileSync(path.join(run, 'checkpoints', 'latest'), 'utf8'), 'step-000006\n')
})

test('the newest few are kept, also past a million steps', async () => {
  const run = makeTempDir()
  for (const step of [1, 2, 999_999, 1_000_000]) (await write(run, step, 2)).commit()
  assert.equal(list(run), ['latest', 'step-1000000', 'step-999999'])
})

test('a step that was written before is replaced', async () => {
  const run = makeTempDir()
  ;(await write(run, 1)).commit()
  ;(await write(run, 1, 9, { ...policy, saveState: async file => writeFileSync(file, 'new') })).commit()
  assert.is(readFileSync(readLatestCheckpoint(run)!.stateFile, 'utf8'), 'new')
})

test('what a killed process left is removed, the newest whole one stays', async () => {
  const run = makeTempDir()
  for (const step of [1, 2]) (await write(run, step)).commit()
  mkdirSync(path.join(run, 'checkpoints', 'step-000004.tmp', 'rapo'), { recursive: true })
  // Killed between the rename and the new `latest`.
  mkdirSync(path.join(run, 'checkpoints', 'step-000003'))
  removeStaleCheckpoints(run)
  assert.equal(list(run), ['latest', 'step-000001', 'step-000002'])
  assert.is(readLatestCheckpoint(run)!.trainer.step, 2)
})

test('what a killed process left of the same step is no part of the checkpoint', async () => {
  const run = makeTempDir()
  const left = path.join(run, 'checkpoints', 'step-000001.tmp')
  mkdirSync(left, { recursive: true })
  writeFileSync(path.join(left, 'model-00001-of-00002.safetensors'), 'half')
  ;(await write(run, 1)).commit()
  const { dir } = readLatestCheckpoint(run)!
  assert.not(existsSync(path.join(dir, 'model-00001-of-00002.safetensors')))
})

test('a write that fails leaves nothing, and names the whole one before it', async () => {
  const run = makeTempDir()
  const failing = {
    ...policy,
    saveState: async (file: string) => {
      writeFileSync(file, 'half')
      // What the operating system says of a full disk, for real.
      writeFileSync('/dev/full', 'x')
    },
  }
  if (!existsSync('/dev/full')) return
  assert.match(
    await messageOf(write(run, 1, 9, failing)),
    /step 1 could not be written to .*: the disk is full$/,
  )
  assert.equal(list(run), [])
  ;(await write(run, 1)).commit()
  const message = await messageOf(write(run, 2, 9, failing))
  assert.match(message, 'the disk is full; the previous one, step-000001, is whole')
  assert.equal(list(run), ['latest', 'step-000001'])
  assert.is(readLatestCheckpoint(run)!.trainer.step, 1)
})

test('a checkpoint that is damaged is named', async () => {
  const run = makeTempDir()
  ;(await write(run, 1)).commit()
  writeFileSync(path.join(run, 'checkpoints', 'step-000001', 'rapo', 'trainer.json'), '{}')
  assert.throws(
    () => readLatestCheckpoint(run),
    /the checkpoint .*step-000001 is damaged: step or cursor is missing/,
  )
  writeFileSync(path.join(run, 'checkpoints', 'latest'), 'step-000009\n')
  assert.throws(() => readLatestCheckpoint(run), /the checkpoint .*step-000009 is damaged/)
})

test('what a checkpoint copies from a read-only model can be written', async () => {
  const [run, readOnly] = [makeTempDir(), makeFakeModel()]
  for (const name of readdirSync(readOnly)) chmodSync(path.join(readOnly, name), 0o444)
  ;(await writeCheckpoint(run, readOnly, policy, { step: 1, cursor }, { keep: 9 })).commit()
  const { mode } = statSync(path.join(readLatestCheckpoint(run)!.dir, 'tokenizer.json'))
  assert.is(mode & 0o200, 0o200)
})

test('lines after the checkpoint, and half a line, are dropped', () => {
  const file = path.join(makeTempDir(), 'metrics.jsonl')
  appendJsonLines(file, [{ step: 1 }, { step: 2 }, { step: 2, again: true }, { step: 3 }])
  writeFileSync(file, `${readFileSync(file, 'utf8')}{"step":1,"rew`)
  truncateJsonLines(file, 2)
  assert.is(readFileSync(file, 'utf8'), '{"step":1}\n{"step":2}\n{"step":2,"again":true}\n')
  truncateJsonLines(`${file}.none`, 2)
  assert.not(existsSync(`${file}.none`))
})

test('a file is replaced whole or not at all', () => {
  const dir = makeTempDir()
  const file = path.join(dir, 'f')
  writeWhole(file, 'old')
  // A directory in the way of the temporary file: the write fails before the old content is touched.
  mkdirSync(`${file}.tmp`)
  assert.throws(
    () => writeWhole(file, 'new'),
    (error: unknown) => (error as RapoError).code === 'ERR_RAPO_IO',
  )
  assert.is(readFileSync(file, 'utf8'), 'old')
})

test('a directory that is missing: the error says what could not be opened', () => {
  const file = path.join(makeTempDir(), 'none', 'x.json')
  assert.throws(
    () => writeWhole(file, ''),
    (error: RapoError) =>
      error.code === 'ERR_RAPO_IO' && (error.cause as NodeJS.ErrnoException).syscall === 'open',
  )
})

test('through a link, and straight into what is no file', () => {
  const dir = makeTempDir()
  const [file, link] = [path.join(dir, 'f'), path.join(dir, 'link')]
  writeWhole(file, 'old')
  symlinkSync('f', link)
  writeWhole(link, ['new ', 'text'])
  assert.is(readFileSync(file, 'utf8'), 'new text')
  assert.ok(lstatSync(link).isSymbolicLink())
  if (process.platform !== 'win32') {
    symlinkSync('/dev/null', `${link}-null`)
    writeWhole(`${link}-null`, 'text')
    assert.ok(statSync('/dev/null').isCharacterDevice())
  }
})

test('whether a file can be written is known before', () => {
  const dir = makeTempDir()
  checkWritable(path.join(dir, 'f'))
  assert.equal(readdirSync(dir), [])
  for (const file of [dir, path.join(dir, 'none', 'f')]) {
    assert.throws(
      () => checkWritable(file),
      (error: unknown) => (error as RapoError).code === 'ERR_RAPO_IO' && `${error}`.includes(file),
    )
  }
})

test('a run directory: never two runs in one, replaced only when asked, and nothing else with it', () => {
  const dir = path.join(makeTempDir(), 'a', 'b')
  createRunDir(dir, false)
  writeFileSync(path.join(dir, 'notes.txt'), 'mine')
  createRunDir(dir, false)
  appendJsonLines(path.join(dir, 'metrics.jsonl'), [{ step: 1 }])
  assert.throws(() => createRunDir(dir, false), /holds a run already: continue it with `rapo train --resume /)
  createRunDir(dir, true)
  assert.equal(readdirSync(dir).sort(), ['metrics.jsonl', 'notes.txt'])
  clearRun(dir)
  assert.equal(readdirSync(dir), ['notes.txt'])
  writeFileSync(path.join(dir, 'eval.json'), '{}')
  assert.throws(() => createRunDir(dir, false), /holds a measurement already: choose another --run.output/)
  writeFileSync(path.join(dir, 'file'), '')
  for (const place of [path.join(dir, 'file'), path.join(dir, 'file', 'run')]) {
    assert.is(describeForeign(place), undefined)
    assert.throws(() => createRunDir(place, false), /cannot make the directory .*: .*file is a file$/)
  }
})

test('a lock keeps a second trainer out', async () => {
  const dir = makeTempDir()
  const lock = await lockRun(dir, 'train')
  const held = JSON.parse(readFileSync(path.join(dir, 'run.lock'), 'utf8'))
  assert.is(held.pid, process.pid)
  const refused = async (pid: number) => {
    const error = await lockRun(dir, 'train').then(assert.unreachable as never, error => error)
    assert.is(error.code, 'ERR_RAPO_CONFIG')
    assert.is(
      error.message,
      `${dir} is in use by process ${pid}; if that is no \`rapo train\`, remove ${path.join(dir, 'run.lock')}`,
    )
  }
  await refused(process.pid)
  // A measurement in a run's directory has a lock of its own.
  await (await lockRun(dir, 'eval')).release()
  await lock.release()
  assert.equal(readdirSync(dir), [])
  // Of a version that wrote the process's number alone.
  writeFileSync(path.join(dir, 'run.lock'), String(process.ppid))
  await refused(process.ppid)
  const { stdout: dead } = spawnSync(process.execPath, ['-p', 'process.pid'])
  writeFileSync(path.join(dir, 'run.lock'), dead)
  await (await lockRun(dir, 'train')).release()
  assert.equal(readdirSync(dir), [])
})

test('of many processes that find the lock of a dead one, one alone takes it over', async () => {
  const dir = makeTempDir()
  const run = new URL('../../lib/train/run.ts', import.meta.url).href
  const killed = `import { lockRun } from ${JSON.stringify(run)}
    await lockRun(${JSON.stringify(dir)}, 'train')
    process.kill(process.pid, 'SIGKILL')`
  spawnSync(process.execPath, ['--import', 'tsx', '--input-type=module', '-e', killed])
  assert.equal(readdirSync(dir), ['run.lock'])
  const script = `
    import { lockRun } from ${JSON.stringify(run)}
    process.stdin.once('data', async () => {
      try {
        await lockRun(${JSON.stringify(dir)}, 'train')
        console.log('held')
      } catch (error) {
        console.log(error.code)
      }
    })
    process.stdin.once('end', () => process.exit())
    console.log('ready')`
  const args = ['--import', 'tsx', '--input-type=module', '-e', script]
  const children = Array.from({ length: 6 }, () =>
    spawn(process.execPath, args, { stdio: ['pipe', 'pipe', 'inherit'] }),
  )
  const heard = (child: (typeof children)[number]) =>
    new Promise<string>(resolve => child.stdout.once('data', data => resolve(String(data).trim())))
  await Promise.all(children.map(heard))
  const verdicts = children.map(heard)
  for (const child of children) child.stdin.write('go')
  const said = (await Promise.all(verdicts)).sort()
  for (const child of children) child.stdin.end()
  assert.equal(said, [...Array(5).fill('ERR_RAPO_CONFIG'), 'held'])
})

// A disk that fills up while a checkpoint is written: a small file system of its own where the machine allows one, else
// a limit on the size of a file. test/helpers/train-child.ts says what it found.
const isMountable = spawnSync('unshare', ['-rm', 'mount', '-t', 'tmpfs', 'tmpfs', '/mnt']).status === 0
for (const kind of isMountable ? ['disk', 'file'] : ['file']) {
  test(`training on a ${kind} that is too small: the error says so, the checkpoint before stays whole`, async () => {
    const dir = makeTempDir()
    const node = `exec "${process.execPath}" --import tsx test/helpers/train-child.ts grow "${dir}" "${model}"`
    // Units of ulimit -f: 512 bytes, of some shells 1024.
    const script =
      kind === 'disk' ? `mount -t tmpfs -o size=600k tmpfs "${dir}" && ${node}` : `ulimit -f 600; ${node}`
    const [command, args] =
      kind === 'disk' ? ['unshare', ['-rm', 'sh', '-c', script]] : ['sh', ['-c', script]]
    const { stdout } = await promisify(execFile)(command as string, args as string[])
    const { message, names, step, state } = JSON.parse(stdout)
    assert.match(message, kind === 'disk' ? ': the disk is full; ' : 'EFBIG')
    assert.match(message, 'the previous one, step-000002, is whole')
    assert.equal(names, ['latest', 'step-000001', 'step-000002'])
    assert.is(step, 2)
    assert.is(state, 200_000)
  })
}

test.run()
