/**
 * The golden, gradient and generation tests on every instruction set that the machine has, and in ATen's operations,
 * which are the engine's on other devices.
 */
import { spawnSync } from 'node:child_process'
import { fileURLToPath } from 'node:url'
import { test } from 'uvu'
import * as assert from 'uvu/assert'

for (const isa of ['avx512', 'avx2', 'baseline', 'aten']) {
  test(isa, () => {
    for (const file of ['engine-golden.test.ts', 'engine-generate.test.ts', 'engine.test.ts']) {
      const script = fileURLToPath(new URL(file, import.meta.url))
      const env = { ...process.env, RAPO_ENGINE_ISA: isa }
      const run = spawnSync(process.execPath, ['--import', 'tsx', script], { encoding: 'utf8', env })
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

test('an unknown one is an error', () => {
  const script = fileURLToPath(new URL('engine-golden.test.ts', import.meta.url))
  const env = { ...process.env, RAPO_ENGINE_ISA: 'mmx' }
  const run = spawnSync(process.execPath, ['--import', 'tsx', script], { encoding: 'utf8', env })
  assert.is.not(run.status, 0)
  assert.match(
    run.stdout + run.stderr,
    /RAPO_ENGINE_ISA is "mmx", expected one that this machine has: .*baseline/,
  )
})

test.run()
