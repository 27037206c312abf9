/** What a person is told of an addon that does not load. The complaints are the real ones: of damaged copies of an addon. */
import { execFile } from 'node:child_process'
import { mkdirSync, mkdtempSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { packageVersion } from '../../lib/base/package.js'
import { doctor, formatDoctor } from '../../lib/cli/doctor.js'
import {
  describeFile,
  explainLoadFailure,
  explainMissingKernels,
  findFault,
  locateKernels,
} from '../../lib/setup/addons.js'

const isLinux = process.platform === 'linux'
const addon = readFileSync(locateKernels())
let dir: string

test.before(() => {
  dir = mkdtempSync(path.join(tmpdir(), 'rapo-native-'))
})
test.after(() => rmSync(dir, { recursive: true }))

/** The message of loading a file as the kernels addon, in a process of its own. */
async function complaint(bytes: Buffer): Promise<string> {
  const file = path.join(dir, 'addon.node')
  writeFileSync(file, bytes)
  const entry = fileURLToPath(new URL('../../lib/index.ts', import.meta.url))
  const program = `import { kernelsInfo } from ${JSON.stringify(entry)}
    try { kernelsInfo() } catch (error) { console.log(error.code + ' ' + error.message) }`
  const args = ['--import', 'tsx', '--input-type=module', '-e', program]
  // Bound at once, as the prebuilt addons are: a missing function shows when the file is loaded.
  const env = { ...process.env, RAPO_KERNELS_ADDON: file, LD_BIND_NOW: '1' }
  return (await promisify(execFile)(process.execPath, args, { env })).stdout
}

function replaced(from: string, to: string): Buffer {
  const bytes = Buffer.from(addon)
  const at = bytes.indexOf(`${from}\0`)
  assert.ok(at > 0, from)
  bytes.write(to, at, 'latin1')
  return bytes
}

test('an older glibc', async () => {
  if (!isLinux) return
  const message = await complaint(replaced('GLIBC_2.2.5', 'GLIBC_9.9.9'))
  assert.match(
    message,
    /^ERR_RAPO_SETUP .*it needs glibc 9\.9\.9, this machine has 2\.\d+: a newer system is needed/,
  )
  assert.match(message, 'npm run build:kernels')
})

test('a Node.js without the functions', async () => {
  if (!isLinux) return
  const message = await complaint(replaced('napi_create_promise', 'napi_create_promisf'))
  assert.match(
    message,
    /undefined symbol: napi_create_promisf; this Node\.js \(v\d+.*\) lacks a function of Node-API 8/,
  )
})

test('a damaged file, and one that is none', async () => {
  for (const bytes of [addon.subarray(0, 50), Buffer.alloc(5000), Buffer.alloc(0)]) {
    const message = await complaint(bytes)
    assert.match(message, /^ERR_RAPO_SETUP .*the file is damaged, or for another platform than /)
    assert.match(message, 'npm run build:kernels')
  }
})

test('a file that was cut off ends no process: the dynamic linker is not asked', async () => {
  if (!isLinux) return
  for (const share of [0.1, 0.5, 0.9]) {
    const message = await complaint(addon.subarray(0, Math.floor(addon.length * share)))
    assert.match(message, /^ERR_RAPO_SETUP .*addon\.node is damaged: it has \d+ bytes of \d+; /)
    assert.match(message, 'npm run build:kernels')
  }
})

test('a file is compared with what was built', () => {
  const file = path.join(dir, 'built.node')
  writeFileSync(file, addon)
  const record = describeFile(file)
  assert.is(record.bytes, addon.length)
  assert.is(findFault(file, record), undefined)
  const changed = Buffer.from(addon)
  changed[addon.length >> 1]! ^= 1
  writeFileSync(file, changed)
  assert.is(findFault(file), undefined) // a guess from its headers
  assert.is(findFault(file, record), 'its content is not what was built')
  writeFileSync(file, addon.subarray(0, 5000))
  assert.is(findFault(file, record), `it has 5000 bytes of ${addon.length}`)
})

test('the record beside an addon counts when the addon is loaded', async () => {
  const record = path.join(dir, 'addon.json')
  writeFileSync(record, JSON.stringify({ bytes: addon.length, sha256: '0'.repeat(64) }))
  const message = await complaint(addon)
  rmSync(record)
  assert.match(message, /^ERR_RAPO_SETUP .*addon\.node is damaged: its content is not what was built; /)
  assert.is(await complaint(addon), '')
})

test('a platform without a prebuilt addon', () => {
  assert.match(
    explainMissingKernels(undefined, 'sunos-x64'),
    /prebuilt for linux-x64, .*, not for sunos-x64; `npm run build:kernels` in /,
  )
  const missing = explainMissingKernels(new Error('No native build was found for libc=musl'), 'linux-x64')
  assert.match(missing, 'the kernels addon for linux-x64 is missing from')
  assert.match(missing, '(No native build was found for libc=musl)')
})

test('a Node.js that may not load addons, or not look for them', async () => {
  const entry = fileURLToPath(new URL('../../lib/index.ts', import.meta.url))
  const program = `import { kernelsInfo } from ${JSON.stringify(entry)}
    try { kernelsInfo() } catch (error) { console.log(error.code + ' ' + error.message) }`
  const args = ['--no-addons', '--import', 'tsx', '--input-type=module', '-e', program]
  const { stdout } = await promisify(execFile)(process.execPath, args)
  assert.match(stdout, /^ERR_RAPO_SETUP .*start Node\.js without --no-addons, and under --permission with/)
  const denied = Object.assign(new Error('Access to this API has been restricted'), {
    code: 'ERR_ACCESS_DENIED',
  })
  assert.match(
    explainMissingKernels(denied),
    /not permitted to look .*--allow-addons, and --allow-fs-read for .* and \/etc\/alpine-release/,
  )
  const noexec = 'addon.node: failed to map segment from shared object'
  assert.match(explainLoadFailure('kernels', noexec), 'may be mounted noexec')
})

test('a libtorch that was replaced or removed; musl', () => {
  const explain = (text: string) => explainLoadFailure('engine', text, { glibc: '2.36' })
  const gone = explain('libtorch_cpu.so: cannot open shared object file: No such file or directory')
  assert.is(gone, 'libtorch_cpu.so of its libtorch is gone: run `npx rapo setup`')
  const replacedBy = explain('rapo_engine.node: undefined symbol: _ZN2at6TensorE')
  assert.match(replacedBy, 'its libtorch was replaced by another version since it was built')
  assert.match(replacedBy, '`npx rapo setup --force`')
  const musl = 'Error loading shared library ld-linux-x86-64.so.2: No such file or directory'
  assert.match(explainLoadFailure('kernels', musl, { glibc: undefined }), 'set LIBC=musl')
})

test('the doctor says why builds in the cache will not do, and why this instruction set', async () => {
  const cache = path.join(dir, 'cache')
  const old = path.join(cache, 'engine', 'old')
  mkdirSync(old, { recursive: true })
  mkdirSync(path.join(cache, 'engine', 'broken'))
  writeFileSync(path.join(old, 'rapo_engine.node'), 'addon')
  const marker = { version: '0.0.1', sources: '', libtorch: { dir: '/nowhere', version: '2.4.0' }, bytes: 5 }
  writeFileSync(path.join(old, 'done.json'), JSON.stringify(marker))
  const report = await doctor({ ...process.env, RAPO_CACHE: cache, RAPO_KERNELS_ISA: 'portable' })
  assert.is(report.engine.builds[0]!.mismatch, `built for rapo 0.0.1, this is ${packageVersion}`)
  assert.equal(report.engine.broken, [path.join(cache, 'engine', 'broken')])
  const text = formatDoctor(report)
  assert.match(text, `not used: built for rapo 0.0.1`)
  assert.match(text, 'an unfinished or damaged build')
  assert.match(text, 'portable: RAPO_KERNELS_ISA chose it')
  const usual = formatDoctor(await doctor({ ...process.env, RAPO_CACHE: cache, RAPO_KERNELS_ISA: '' }))
  assert.match(usual, 'the fastest that this processor has')
})

test.run()
