/**
 * The golden, gradient and generation tests on every instruction set that the machine has, and in ATen's operations,
 * which are the engine's on other devices.
 */
import { spawnSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { test } from 'uvu'
import * as assert from 'uvu/assert'

const files = [
  ...['engine-golden.test.ts', 'engine-generate.test.ts', 'engine.test.ts'],
  ...['engine-reference.test.ts', 'engine-lora.test.ts', 'engine-state.test.ts'],
]

function runFile(file: string, settings: NodeJS.ProcessEnv) {
  const script = fileURLToPath(new URL(file, import.meta.url))
  const env = { ...process.env, ...settings }
  return spawnSync(process.execPath, ['--import', 'tsx', script], { encoding: 'utf8', env })
}

for (const isa of ['avx512', 'avx2', 'baseline']) {
  test(isa, () => {
    for (const file of files) {
      const run = runFile(file, { RAPO_ENGINE_ISA: isa })
      if (
        (run.stdout + run.stderr).includes(`RAPO_ENGINE_ISA is "${isa}", expected one that this machine has`)
      ) {
        console.log(`SKIPPED ${isa}: not on this machine`)
        return
      }
      assert.is(run.status, 0, `${file}\n${run.stdout}\n${run.stderr}`)
    }
  })
}

test("ATen's operations", () => {
  for (const file of files) {
    const run = runFile(file, { RAPO_TEST_BACKEND: 'aten' })
    assert.is(run.status, 0, `${file}\n${run.stdout}\n${run.stderr}`)
  }
})

test('an unknown one is an error', () => {
  for (const isa of ['mmx', 'aten']) {
    const run = runFile('engine-golden.test.ts', { RAPO_ENGINE_ISA: isa })
    assert.is.not(run.status, 0)
    assert.match(
      run.stdout + run.stderr,
      new RegExp(`RAPO_ENGINE_ISA is "${isa}", expected one that this machine has: .*baseline`),
    )
  }
})

test.run()
