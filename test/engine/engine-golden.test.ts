/** Log-probs over the whole vocabulary, loss and every gradient against transformers and PEFT (scripts/make-golden.py). */
import { copyFileSync, existsSync, readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import type { Objective } from '../../lib/loss/objective.js'
import { saveGradients } from '../../lib/model/engine.js'
import type { MicroBatch, ModelDType } from '../../lib/model/policy.js'
import {
  loadPolicy,
  maxDifference,
  newDir,
  pack,
  readSafetensors,
  type StoredTensor,
  sampling,
  unpack,
} from '../helpers/engine-util.js'

interface GoldenError {
  readonly loss: number
  readonly logp: number
  readonly logpNorm?: number
  readonly gradients: Readonly<Record<string, number>>
  readonly gradientNorm?: number
}

const root = fileURLToPath(new URL('../golden/', import.meta.url))

// transformers' own float32 run differs from float64 by `float32Error` at most. Ours sums in another order and has its
// own exp; ten times that error is still float32 rounding, and any mistake in the maths is thousands of times it. In
// bfloat16 both round after each operation, though not after the same ones: single numbers may be off by more, and the
// norms of all log-probs' and of all gradients' errors are compared.
const slack = { float32: 10, bfloat16: 2 }

for (const name of readdirSync(root)) {
  const dir = path.join(root, name)
  if (!existsSync(path.join(dir, 'golden.json'))) continue
  const golden = JSON.parse(readFileSync(path.join(dir, 'golden.json'), 'utf8'))
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
  // A case is a model, or an adapter for the model `base`, which without the adapter is then the reference.
  const isAdapter = golden.base !== undefined
  const model = isAdapter ? path.join(root, golden.base) : dir
  const adapter = isAdapter ? { adapterDir: dir } : {}
  const referenceDir = path.join(root, golden.reference ?? golden.base)

  /** Loss, gradients and log-probs in a dtype: `error` is how far transformers is off in the same dtype. */
  const compare = (
    dtype: ModelDType,
    { objective, loss, error }: { objective: Objective; loss: number; error: GoldenError },
    expected: Map<string, StoredTensor>,
  ) => {
    const withinRounding = (difference: number, most: number, what: string) =>
      assert.ok(
        difference <= slack[dtype] * most,
        `${what}: off by ${difference}, transformers' ${dtype} by ${most}`,
      )
    for (const headRows of [0, 7]) {
      test(`${name}, ${dtype}: loss and gradients equal autograd's, ${headRows || 'all'} head rows at a time`, async () => {
        const policy = await loadPolicy(model, { ...adapter, dtype, referenceDir, headRows })
        const metrics = await policy.accumulate(micro, objective)
        const file = path.join(newDir(), 'gradients.safetensors')
        await saveGradients(policy, file)
        await policy.dispose()

        withinRounding(Math.abs(metrics.loss - loss), error.loss, 'loss')
        assert.is(metrics.tokens, batch.tokenWeights.filter((w: number) => w > 0).length)
        const gradients = readSafetensors(file)
        const names = [...expected.keys()].filter(key => key !== 'logp')
        assert.equal([...gradients.keys()].sort(), names.sort())
        let squares = 0
        for (const key of names) {
          const [got, want] = [gradients.get(key)!, expected.get(key)!]
          assert.equal(got.shape, want.shape)
          if (dtype === 'float32')
            withinRounding(maxDifference(got.values, want.values), error.gradients[key]!, key)
          squares += got.values.reduce((sum, x, i) => sum + (x - want.values[i]!) ** 2, 0)
        }
        if (dtype === 'bfloat16') withinRounding(Math.sqrt(squares), error.gradientNorm!, 'gradients')
      })
    }

    test(`${name}, ${dtype}: log-probs of the whole vocabulary equal transformers'`, async () => {
      const policy = await loadPolicy(model, { ...adapter, dtype, trainable: false })
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
      if (dtype === 'float32') {
        withinRounding(maxDifference(logprobs, values), error.logp, 'log-probs')
      } else {
        const squares = logprobs.reduce((sum, x, i) => sum + (x - values[i]!) ** 2, 0)
        withinRounding(Math.sqrt(squares), error.logpNorm!, 'log-probs')
      }
      for (let row = 0; row < rows; row++) {
        const logp = values.subarray(row * vocab, (row + 1) * vocab)
        const exact = -logp.reduce((sum, l) => sum + Math.exp(l) * l, 0)
        // An entropy is a mean of log-probs: it errs no more than they do.
        withinRounding(Math.abs(entropy[row * vocab]! - exact), error.logp, 'entropy')
      }
    })
  }
  const read = (file: string) => readSafetensors(path.join(dir, file))
  compare('float32', { ...golden, error: golden.float32Error }, read('expected.safetensors'))
  if (golden.bfloat16) compare('bfloat16', golden.bfloat16, read('expected-bfloat16.safetensors'))

  test(`${name}: a greedy completion is transformers'`, async () => {
    const { prompt, completion } = golden.greedy
    const policy = await loadPolicy(model, { ...adapter, trainable: false })
    const params = { ...sampling, temperature: 0, maxNewTokens: completion.length, stopTokenIds: [] }
    // The other prompts share a batch and a cache with the one that is compared.
    const { tokens } = await policy.generate(pack([[7], prompt, [9, 2, 9]]), params)
    await policy.dispose()
    assert.equal(unpack(tokens)[1], completion)
  })

  if (isAdapter) continue
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
