/** Ranks on GPUs, over NCCL: one rank a GPU, so one where there is one, and two where there are two. Part of npm run test:gpu. */
import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { newDir, newModel, poison, testDevice } from '../helpers/engine-util.js'
import { runRanks } from '../helpers/ranks.js'

const listed = spawnSync('nvidia-smi', ['-L'], { encoding: 'utf8' }).stdout ?? ''
const gpus = testDevice === 'cuda' ? listed.trim().split('\n').filter(Boolean).length : 0

for (const ranks of [1, 2]) {
  const check = gpus >= ranks ? test : test.skip
  if (gpus < ranks)
    console.log(`skipped: ${ranks} ranks need as many GPUs; RAPO_TEST_DEVICE=cuda, here ${gpus}`)
  check(
    `${ranks} of them share out the optimizer and the gradients, and train as if each held all`,
    async () => {
      const [model, output] = [await newModel({ vocab_size: 33_000 }), newDir()]
      const poisoned = poison(await newModel({ vocab_size: 33_000 }))
      const { exitCode, stderr, stdout } = await runRanks('shard-child.ts', ranks, [model, output, poisoned])
      assert.is(exitCode, 0, stderr.join('\n'))
      const seen = stdout.map(text => JSON.parse(text))
      const bytes = (...file: string[]) => readFileSync(path.join(output, ...file)).toString('latin1')
      for (const dtype of ['float32', 'bfloat16']) {
        const expected: number[] = seen[0][`${dtype}-none`]
        for (const shard of ['optimizer', 'gradients']) {
          const name = `${dtype}-${shard}`
          // What another way of sharing out read of the state is what was written.
          assert.ok(bytes(name, 'loaded', 'model.safetensors') === bytes(name, 'model.safetensors'), name)
          // Sums that a GPU adds up in no fixed order, in float32; the weights of later steps differ by that.
          for (const [step, norm] of (seen[0][name] as number[]).entries())
            assert.ok(
              Math.abs(norm / expected[step]! - 1) < 1e-3,
              `${name}, step ${step + 1}: ${norm}, ${expected[step]}`,
            )
        }
      }
      for (const own of seen.slice(1)) assert.equal(own['float32-gradients'], seen[0]['float32-gradients'])
    },
  )
}

test.run()
