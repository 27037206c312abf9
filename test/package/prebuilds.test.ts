/** The prebuilt addons' files. Looks at those that there are, this machine's among them; at all with RAPO_PREBUILDS=all. */
import { existsSync, readFileSync, statSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { describeFile } from '../../lib/setup/addons.js'
// @ts-expect-error: no types
import { hostTarget, prebuild, prebuildPath, recordPath, targets } from '../../scripts/prebuilds.mjs'
import { readBinary } from '../helpers/binary.js'

const root = fileURLToPath(new URL('../..', import.meta.url))
const fileOf = (target: string): string => path.join(root, prebuildPath(target))

test.before(() => prebuild([hostTarget()]))

test('every platform is there', () => {
  const wanted: string[] = process.env.RAPO_PREBUILDS === 'all' ? Object.keys(targets) : [hostTarget()]
  for (const target of wanted) assert.ok(existsSync(fileOf(target)), target)
})

/** Libraries that are part of the system, by format and libc. */
const system = {
  glibc: /^(lib(c|m|dl|pthread)\.so\.\d|ld-linux-[\w-]+\.so\.\d)$/,
  musl: /^libc\.so$/,
  'mach-o': /^\/usr\/lib\/libSystem\.B\.dylib$/,
  // Its own host, the kernel, and the C runtime that is part of Windows 10.
  pe: /^(NODE\.EXE|KERNEL32\.dll|ntdll\.dll|api-ms-win-crt-[\w-]+\.dll)$/i,
}

const formats = { linux: 'elf', darwin: 'mach-o', win32: 'pe' } as const

for (const target of Object.keys(targets)) {
  test(`${target}: format, system libraries alone, least version`, () => {
    if (!existsSync(fileOf(target))) return
    const [platform, arch, libc] = target.split('-') as [
      keyof typeof formats,
      string,
      'glibc' | 'musl' | undefined,
    ]
    const bytes = readFileSync(fileOf(target))
    const binary = readBinary(bytes)
    assert.is(binary.format, formats[platform])
    assert.is(binary.arch, arch)
    assert.ok(binary.libraries.length > 0)
    const allowed = system[libc ?? (binary.format as 'mach-o' | 'pe')]
    for (const library of binary.libraries) assert.match(library, allowed)
    if (libc) {
      for (const version of binary.versions) {
        const [, major, minor] = /^GLIBC_(\d+)\.(\d+)/.exec(version) ?? assert.unreachable(version) ?? []
        assert.ok(Number(major) === 2 && Number(minor) <= 28, version)
      }
    }
    if (platform === 'darwin') assert.equal(binary.versions, ['macOS 11'])
    if (libc === 'glibc') assert.ok(binary.versions.length > 0)
    if (platform === 'linux') {
      assert.equal([...binary.exported].sort(), [
        'napi_register_module_v1',
        'node_api_module_get_api_version_v1',
      ])
    }
    if (libc === 'glibc') {
      // Node unloads an addon with the last worker thread that loaded it: what is registered to run at exit must run then.
      assert.ok(binary.hasDestructors, 'no code runs when it is unloaded')
      assert.ok(binary.imported.includes('__cxa_finalize'), 'its static destructors stay registered')
    }
    const record = JSON.parse(readFileSync(path.join(root, recordPath(target)), 'utf8'))
    assert.equal(record, describeFile(fileOf(target)))
    const isas = arch === 'x64' ? ['avx512bf16', 'avx512', 'avx2', 'portable'] : ['neon', 'portable']
    for (const isa of isas) assert.ok(bytes.includes(`${isa}\0`), isa)
    // Stripped: the x64 ones, with four instruction sets, are the largest.
    assert.ok(statSync(fileOf(target)).size < 2e6)
  })
}

test('a binary that needs more is told', () => {
  const node = readBinary(readFileSync(process.execPath))
  assert.is(node.format, formats[process.platform as keyof typeof formats])
  if (process.platform === 'linux') assert.ok(node.exported.includes('napi_create_object'))
})

test.run()
