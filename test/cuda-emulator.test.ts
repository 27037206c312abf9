/**
 * The CUDA kernels: through the emulator of test/cuda, or on a device where RAPO_CUDA_LIBRARY names the real library
 * (npm run test:gpu, which runs this file too). Cases and tolerances are those of the CPU's kernels.
 */
import { emulated } from './cuda/library.js'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { DeviceArray } from '../lib/device.js'
import { kernelsInfo, policyLoss } from '../lib/kernels.js'
import { penalties } from '../lib/objective.js'
import { makeCase } from './kernels-cases.js'
import { check, dtypes, expectedOf, objectiveFor } from './kernels-check.js'

const device = 'cuda'

test('there is a device', () => {
  const { cuda } = kernelsInfo()
  assert.ok(cuda.available, JSON.stringify(cuda))
})

for (const dtype of dtypes) {
  test(`${dtype}: V = 1, 2, 17, 1000, every penalty`, () => {
    let seed = 1
    for (const V of [1, 2, 17, 1000]) {
      for (const penalty of penalties) {
        const objective = objectiveFor(penalty, [1, 0.7, 1.6][seed % 3]!)
        const case_ = makeCase(V, V === 1000 ? 16 : 48, dtype, objective, seed++)
        check(`V ${V} ${penalty}`, case_, objective, expectedOf(case_, objective), device)
      }
    }
  })
}
test.run()
