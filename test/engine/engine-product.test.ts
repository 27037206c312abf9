/**
 * Weights too large for the engine's small product: its large one (AVX-512, AVX2) against libtorch's, which the portable
 * instruction set uses.
 */
import { spawnSync } from 'node:child_process'
import { readFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { loadPolicy, saveGradients, saveLogits } from '../../lib/model/engine.js'
import type { ModelDType } from '../../lib/model/policy.js'
import { newDir, newModel, objective, pack, readSafetensors } from '../helpers/engine-util.js'

/** Sizes that are no multiples of the product's blocks (6, 12, 16, 96, 256), and one row alone. */
const sizes = {
  vocab_size: 1003,
  hidden_size: 392,
  num_attention_heads: 4,
  num_key_value_heads: 2,
  intermediate_size: 701,
  initializer_range: 0.05,
  tie_word_embeddings: false,
}

async function measure(model: string, out: string): Promise<void> {
  for (const dtype of ['float32', 'bfloat16'] as ModelDType[]) {
    const policy = await loadPolicy(model, { dtype, referenceDir: model })
    const lengths = [1, 37, 60, 60, 60, 60, 17]
    const sequences = pack(
      lengths.map((n, b) => Array.from({ length: n }, (_, t) => (b * 131 + t * t * 7) % 1003)),
    )
    const positions = Int32Array.from({ length: sequences.tokenIds.length }, (_, i) => i)
    await saveLogits(policy, sequences, positions, path.join(out, `${dtype}-logits`))
    await saveLogits(policy, pack([[5]]), Int32Array.of(0), path.join(out, `${dtype}-one`))
    await policy.accumulate(
      {
        sequences,
        rowPositions: positions,
        tokenIds: positions.map(i => (i * 31) % 1003),
        tokenWeights: new Float32Array(positions.length).fill(1 / positions.length),
        advantages: Float32Array.from(positions, i => Math.sin(i)),
        refWeights: new Float32Array(positions.length).fill(0.5),
      },
      objective,
    )
    await saveGradients(policy, path.join(out, `${dtype}-gradients`))
    await policy.dispose()
  }
}

function numbers(file: string): Map<string, Float32Array> {
  return new Map([...readSafetensors(file)].map(([name, { values }]) => [name, values]))
}

/** ‖a − b‖ / ‖b‖ */
function distance(a: Float32Array, b: Float32Array): number {
  let difference = 0
  let size = 0
  for (const [i, x] of b.entries()) {
    difference += (a[i]! - x) ** 2
    size += x ** 2
  }
  return Math.sqrt(difference / size)
}

if (process.argv[2] === 'measure') {
  await measure(process.argv[3]!, process.argv[4]!)
} else {
  const model = await newModel(sizes)
  /** Where a child with that instruction set put what it computed; undefined where this machine has no such set. */
  const measureWith = (isa: string): string | undefined => {
    const out = newDir()
    const child = spawnSync(
      process.execPath,
      ['--import', 'tsx', fileURLToPath(import.meta.url), 'measure', model, out],
      { env: { ...process.env, RAPO_ENGINE_ISA: isa }, encoding: 'utf8' },
    )
    if (child.stderr.includes(`RAPO_ENGINE_ISA is "${isa}"`)) return undefined
    assert.is(child.status, 0, child.stderr)
    return out
  }
  const portable = measureWith('baseline')!
  for (const isa of ['avx512', 'avx2']) {
    const ours = measureWith(isa)
    for (const kind of ['logits', 'one', 'gradients']) {
      test(`${isa}, ${kind}: float32 equal to rounding, bfloat16 as close as two orders of rounding are`, () => {
        if (!ours) return console.log(`SKIPPED ${isa}: not on this machine`)
        const file = (dir: string, dtype: string) => numbers(path.join(dir, `${dtype}-${kind}`))
        const bits = (dir: string) => readFileSync(path.join(dir, `float32-${kind}`))
        assert.not(bits(ours).equals(bits(portable)), 'the same bits, so the same product')
        const exact = file(portable, 'float32')
        const half = file(portable, 'bfloat16')
        const halfOurs = file(ours, 'bfloat16')
        for (const [name, values] of file(ours, 'float32')) {
          // A sum of k ≤ 1003 products is off by about √k · 2⁻²⁴ = 2e-6 of its size, a few times over in four layers' depth.
          assert.ok(distance(values, exact.get(name)!) < 3e-5, name)
          const lost = distance(half.get(name)!, exact.get(name)!)
          assert.ok(distance(halfOurs.get(name)!, exact.get(name)!) < 1.5 * lost, name)
          assert.ok(lost < 0.3, `${name}: bfloat16 itself is off by ${lost}`)
        }
      })
    }
  }
  test.run()
}
