/** Log-probs over the whole vocabulary, loss and every gradient against transformers (scripts/make-golden.py). */
import { copyFileSync, readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { saveGradients } from '../../lib/model/engine.js'
import type { MicroBatch } from '../../lib/model/policy.js'
import { loadPolicy, maxDifference, newDir, pack, readSafetensors } from '../helpers/engine-util.js'

const root = fileURLToPath(new URL('../golden/', import.meta.url))

// transformers' own float32 run differs from float64 by `float32Error` at most. Ours sums in another order and has its
// own exp; ten times that error is still float32 rounding, and any mistake in the maths is thousands of times it.
const slack = 10
const withinRounding = (difference: number, float32Error: number, what: string) =>
  assert.ok(
    difference <= slack * float32Error,
    `${what}: off by ${difference}, transformers' float32 by ${float32Error}`,
  )

for (const name of readdirSync(root).filter(entry => entry.startsWith('gqa'))) {
  const dir = path.join(root, name)
  const golden = JSON.parse(readFileSync(path.join(dir, 'golden.json'), 'utf8'))
  const expected = readSafetensors(path.join(dir, 'expected.safetensors'))
  const { batch } = golden
  const micro: MicroBatch = {
    sequences: pack(batch.sequences),
    rowPositions: Int32Array.from(batch.rowPositions),
    tokenIds: Int32Array.from(batch.tokenIds),
    tokenWeights: Float32Array.from(batch.tokenWeights),
    advantages: Float32Array.from(batch.advantages),
    ...(batch.refWeights ? { refWeights: Float32Array.from(batch.refWeights) } : {}),
    oldLogprobs: Float32Array.from(batch.oldLogprobs),
  }
  const rows = micro.rowPositions.length

  for (const headRows of [0, 7]) {
    test(`${name}: loss and gradients equal autograd's, ${headRows || 'all'} head rows at a time`, async () => {
      const policy = await loadPolicy(dir, { referenceDir: path.join(root, golden.reference), headRows })
      const metrics = await policy.accumulate(micro, golden.objective)
      const file = path.join(newDir(), 'gradients.safetensors')
      await saveGradients(policy, file)
      await policy.dispose()

      withinRounding(Math.abs(metrics.loss - golden.loss), golden.float32Error.loss, 'loss')
      assert.is(metrics.tokens, batch.tokenWeights.filter((w: number) => w > 0).length)
      const gradients = readSafetensors(file)
      const names = [...expected.keys()].filter(key => key !== 'logp')
      assert.equal([...gradients.keys()].sort(), names.sort())
      for (const key of names) {
        assert.equal(gradients.get(key)!.shape, expected.get(key)!.shape)
        const difference = maxDifference(gradients.get(key)!.values, expected.get(key)!.values)
        withinRounding(difference, golden.float32Error.gradients[key], key)
      }
    })
  }

  test(`${name}: log-probs of the whole vocabulary equal transformers'`, async () => {
    const policy = await loadPolicy(dir, { trainable: false })
    const { values, shape } = expected.get('logp')!
    const vocab = shape[1]!
    const everyWord = {
      rowPositions: Int32Array.from(
        { length: rows * vocab },
        (_, i) => micro.rowPositions[Math.floor(i / vocab)]!,
      ),
      tokenIds: Int32Array.from({ length: rows * vocab }, (_, i) => i % vocab),
    }
    const { logprobs, entropy } = await policy.logprobs(micro.sequences, everyWord, 1)
    await policy.dispose()
    withinRounding(maxDifference(logprobs, values), golden.float32Error.logp, 'log-probs')
    for (let row = 0; row < rows; row++) {
      const logp = values.subarray(row * vocab, (row + 1) * vocab)
      const exact = -logp.reduce((sum, l) => sum + Math.exp(l) * l, 0)
      // An entropy is a mean of log-probs: it errs no more than they do.
      withinRounding(Math.abs(entropy[row * vocab]! - exact), golden.float32Error.logp, 'entropy')
    }
  })

  test(`${name}: the configuration in transformers 4's spelling gives the same bits`, async () => {
    const old = newDir()
    copyFileSync(path.join(dir, 'old-spelling.json'), path.join(old, 'config.json'))
    copyFileSync(path.join(dir, 'model.safetensors'), path.join(old, 'model.safetensors'))
    const both = await Promise.all(
      [dir, old].map(async model => {
        const policy = await loadPolicy(model, { trainable: false })
        const out = await policy.logprobs(micro.sequences, micro, 1)
        await policy.dispose()
        return out.logprobs
      }),
    )
    assert.equal(both[0], both[1])
  })
}

test.run()
