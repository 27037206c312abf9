/** The corpus that `npm run fuzz` grew, through each target in an ordinary build of the readers. */
import { execFileSync, spawnSync } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { includes, readCorpus, readers, targets, unpackCorpus } from '../../scripts/fuzz.js'
import { makeTempDir } from '../helpers/fake-policy.js'

const root = fileURLToPath(new URL('../..', import.meta.url))
const dir = makeTempDir()
const compiler = process.env.CXX || 'c++'
const sanitizers = ['-fsanitize=address,undefined', '-fno-sanitize-recover=all']
const flags = ['-std=c++17', '-O1', '-g', '-D_GLIBCXX_ASSERTIONS', ...includes]

/** Whether programs with the sanitizers link and run here (musl has none). */
function hasSanitizers(): boolean {
  const source = path.join(dir, 'empty.cpp')
  writeFileSync(source, 'int main() {}\n')
  const binary = path.join(dir, 'empty')
  const { status } = spawnSync(compiler, [...sanitizers, source, '-o', binary])
  return status === 0 && spawnSync(binary).status === 0
}

if (hasSanitizers()) flags.push(...sanitizers)
else console.log('without sanitizers, which this machine has not')

const compile = (source: string) => {
  const object = path.join(dir, `${path.basename(path.dirname(source))}-${path.basename(source)}.o`)
  execFileSync(compiler, [...flags, '-c', source, '-o', object], { cwd: root, stdio: 'inherit' })
  return object
}
const shared = [...readers, 'test/fuzz/replay.cpp'].map(compile)

for (const target of targets) {
  const corpus = path.join(dir, 'corpus', target)
  const count = readCorpus(target).length

  test(`${target}: every input of the corpus is a value or an error`, () => {
    unpackCorpus(target, corpus)
    const binary = path.join(dir, target)
    const objects = [compile(`test/fuzz/${target}.cpp`), ...shared]
    execFileSync(compiler, [...flags, ...objects, '-o', binary], { cwd: root, stdio: 'inherit' })
    const { status, signal, stdout, stderr } = spawnSync(binary, [corpus], { encoding: 'utf8' })
    assert.is(status, 0, `${signal ?? status}: ${stderr.slice(-2000)}`)
    assert.is(stdout, `${count} inputs\n`)
    assert.ok(count > 10)
  })
}

test('the corpus is small', () => {
  const sizes = targets.flatMap(target => readCorpus(target).map(input => input.length))
  const bytes = sizes.reduce((sum, size) => sum + size, 0)
  assert.ok(bytes < 200_000, `${bytes} bytes`)
})

test.run()
