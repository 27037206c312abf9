/** syncReference and saveReference of a real policy. */
import { readFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import type { Policy } from '../../lib/model/policy.js'
import {
  loadPolicy,
  newDir,
  newModel,
  objective,
  prompts,
  readSafetensors,
  rejects,
  sampling,
  trainingBatch,
} from '../helpers/engine-util.js'

const dir = await newModel()
const referenceDir = await newModel({}, 2)

async function batchOf(policy: Policy, seed = 1) {
  return trainingBatch(prompts, await policy.generate(prompts, { ...sampling, n: 2, seed }), 2)
}

async function stepped(policy: Policy, seed = 1) {
  await policy.accumulate(await batchOf(policy, seed), objective)
  await policy.step(1e-2)
}

/** The policy's weights (as float32: the masters), or the reference's as they are. */
async function weightsOf(policy: Policy, which: 'policy' | 'reference') {
  const out = newDir()
  await (which === 'policy' ? policy.save(out, { dtype: 'float32' }) : policy.saveReference!(out))
  return readSafetensors(path.join(out, 'model.safetensors'))
}

test('share 1 copies the policy: the penalty is 0 again', async () => {
  const policy = await loadPolicy(dir, { referenceDir })
  const batch = await batchOf(policy)
  const plain = { ...batch, refWeights: new Float32Array(batch.advantages.length).fill(1) }
  assert.ok((await policy.accumulate(plain, objective)).klSum > 1e-3)
  await policy.zeroGrad()
  await policy.syncReference!(1)
  const { klSum } = await policy.accumulate(plain, objective)
  assert.ok(klSum < 1e-9, `${klSum}`)
  const [own, reference] = [await weightsOf(policy, 'policy'), await weightsOf(policy, 'reference')]
  assert.equal([...reference.keys()], [...own.keys()])
  for (const [name, tensor] of own) assert.equal(reference.get(name)!.bytes, tensor.bytes, name)
  await policy.dispose()
})

test('a share below 1 mixes, in float32; of bfloat16 the masters are mixed in and rounded once', async () => {
  for (const dtype of ['float32', 'bfloat16'] as const) {
    const policy = await loadPolicy(dir, { referenceDir, dtype })
    await stepped(policy)
    const before = await weightsOf(policy, 'reference')
    const own = await weightsOf(policy, 'policy')
    await policy.syncReference!(0.3)
    const after = await weightsOf(policy, 'reference')
    const numbers = ({ bytes }: { bytes: Buffer }) =>
      dtype === 'float32'
        ? Float32Array.from({ length: bytes.length / 4 }, (_, i) => bytes.readFloatLE(4 * i))
        : Float32Array.from({ length: bytes.length / 2 }, (_, i) => {
            return new Float32Array(Uint32Array.of(bytes.readUInt16LE(2 * i) << 16).buffer)[0]!
          })
    let moved = 0
    for (const [name, tensor] of after) {
      const [mixed, old, now] = [numbers(tensor), numbers(before.get(name)!), own.get(name)!.values]
      for (let i = 0; i < mixed.length; i++) {
        const exact = 0.3 * now[i]! + 0.7 * old[i]!
        // Three roundings in float32 of numbers as large as the operands, and one to bfloat16, to half a step of 8 bits.
        const size = Math.abs(now[i]!) + Math.abs(old[i]!)
        const bound = 3 * 2 ** -24 * size + (dtype === 'bfloat16' ? 2 ** -8 * Math.abs(exact) : 0)
        assert.ok(Math.abs(mixed[i]! - exact) <= bound * 1.01, `${dtype} ${name}[${i}]: ${mixed[i]} ${exact}`)
        if (mixed[i] !== old[i]) moved++
      }
    }
    assert.ok(moved > 1000, `${moved}`)
    await policy.dispose()
  }
})

for (const dtype of ['float32', 'bfloat16'] as const) {
  test(`${dtype}: a run that goes on from a saved reference gives the same bits`, async () => {
    const run = async (policy: Policy, from: number, to: number) => {
      for (let step = from; step < to; step++) {
        await stepped(policy, step)
        if (step % 2 === 0) await policy.syncReference!(0.6)
      }
    }
    const through = await loadPolicy(dir, { referenceDir, dtype })
    await run(through, 1, 6)
    const half = await loadPolicy(dir, { referenceDir, dtype })
    await run(half, 1, 4)
    const [saved, reference] = [newDir(), newDir()]
    await half.save(saved)
    await half.saveState(path.join(saved, 'state.safetensors'))
    await half.saveReference!(reference)
    await half.dispose()
    const resumed = await loadPolicy(saved, { referenceDir: reference, dtype })
    await resumed.loadState(path.join(saved, 'state.safetensors'))
    await run(resumed, 4, 6)
    const files = []
    for (const policy of [through, resumed]) {
      const [own, other] = [newDir(), newDir()]
      await policy.save(own)
      await policy.saveReference!(other)
      files.push([own, other].map(out => readFileSync(path.join(out, 'model.safetensors'))))
      await policy.dispose()
    }
    assert.equal(files[0], files[1])
    assert.not.equal(files[0]![1], readFileSync(path.join(reference, 'model.safetensors')))
  })
}

test('what cannot be mixed is refused, and nothing has changed', async () => {
  const policy = await loadPolicy(dir, { referenceDir })
  const before = await weightsOf(policy, 'reference')
  for (const share of [0, -1, 1.5, Number.NaN])
    await rejects(policy.syncReference!(share), /share is .*in \(0, 1\]/)
  const after = await weightsOf(policy, 'reference')
  for (const [name, { bytes }] of before) assert.equal(after.get(name)!.bytes, bytes, name)
  await policy.dispose()
  const alone = await loadPolicy(dir)
  await rejects(alone.syncReference!(1), /syncReference\(\) needs a policy loaded with a referenceDir/)
  await rejects(alone.saveReference!(newDir()), /saveReference\(\) needs a policy loaded with a referenceDir/)
  await alone.dispose()
  for (const other of [{ num_hidden_layers: 1 }, { intermediate_size: 64 }, { tie_word_embeddings: false }]) {
    const unlike = await loadPolicy(dir, { referenceDir: await newModel(other) })
    await rejects(unlike.syncReference!(1), /it is a model of another shape/)
    await unlike.dispose()
  }
})

test.run()
