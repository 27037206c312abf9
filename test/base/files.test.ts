import { existsSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { asIoError, checkWritable, makeDirectories, withPlace, writeDirectory } from '../../lib/base/files.js'
import { makeTempDir } from '../helpers/fake-policy.js'

const dir = makeTempDir()

function failureOf(body: () => unknown): unknown {
  try {
    body()
  } catch (error) {
    return error
  }
  return assert.unreachable('nothing was thrown')
}

test('why a file failed: the path once, and no code, where the message names it; else as Node.js says it', () => {
  const missing = path.join(dir, 'none')
  const error = failureOf(() => readFileSync(missing))
  assert.is(
    asIoError(`cannot read ${missing}`, error).message,
    `cannot read ${missing}: no such file or directory`,
  )
  assert.is(
    asIoError('cannot go on', error).message,
    `cannot go on: ENOENT: no such file or directory, open '${missing}'`,
  )
  assert.is(
    asIoError(
      `cannot read ${dir}`,
      failureOf(() => readFileSync(dir)),
    ).message,
    `cannot read ${dir}: it is a directory`,
  )
  const temporary = failureOf(() => writeFileSync(path.join(missing, 'f.tmp'), ''))
  assert.is(
    asIoError(`cannot write ${missing}/f`, temporary).message,
    `cannot write ${missing}/f: no such file or directory`,
  )
  assert.is(asIoError('cannot write f', new Error('boom')).message, 'cannot write f: boom')
  assert.is(asIoError('cannot write f', undefined).message, 'cannot write f: undefined')
})

test('a relative name is shown with its absolute path', () => {
  assert.is(withPlace('a/b'), `a/b (${path.resolve('a/b')})`)
  assert.is(withPlace('/a/b'), '/a/b')
})

test('directories are made with those above them; what cannot be made fails at once, under /proc too', () => {
  const deep = path.join(dir, 'one', 'two')
  makeDirectories(deep)
  makeDirectories(deep)
  assert.ok(statSync(deep).isDirectory())
  const file = path.join(dir, 'file')
  writeFileSync(file, '')
  const messageOf = (body: () => void) => (failureOf(body) as Error).message
  for (const place of [file, path.join(file, 'below'), path.join(file, 'below', 'it')]) {
    const expected = `cannot make the directory ${place}: ${file} is a file`
    assert.is(
      messageOf(() => makeDirectories(place)),
      expected,
    )
  }
  const below = path.join(file, 'below')
  assert.is(
    messageOf(() => checkWritable(below)),
    `cannot write ${below}: ${file} is a file`,
  )
  if (!existsSync('/proc/self')) return
  assert.match(
    messageOf(() => makeDirectories('/proc/none/below')),
    'cannot make the directory /proc/none/below: no such file or directory',
  )
})

test('a directory appears complete or not at all, and replaces another one whole', async () => {
  const place = path.join(dir, 'written')
  const filled = (name: string) => (temporary: string) => {
    assert.not.ok(existsSync(path.join(place, name)))
    makeDirectories(path.join(temporary, 'inner'))
    writeFileSync(path.join(temporary, 'inner', name), name)
    return Promise.resolve()
  }
  await writeDirectory(place, filled('a'))
  assert.is(readFileSync(path.join(place, 'inner', 'a'), 'utf8'), 'a')
  const fault = new Error('the disk is gone')
  try {
    await writeDirectory(place, async temporary => {
      await filled('b')(temporary)
      throw fault
    })
    assert.unreachable()
  } catch (error) {
    assert.is(error, fault)
  }
  assert.equal(readdirSync(path.join(place, 'inner')), ['a'])
  assert.not.ok(existsSync(`${place}.tmp`))
  await writeDirectory(place, filled('c'))
  assert.equal(readdirSync(path.join(place, 'inner')), ['c'])
})

test.run()
