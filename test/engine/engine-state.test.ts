/** optimizer.stateDtype bfloat16: AdamW's moments and their stochastic rounding, against formulas in double precision. */
import { readFileSync, statSync } from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { saveGradients } from '../../lib/model/engine.js'
import type { LoadOptions, MicroBatch, Policy } from '../../lib/model/policy.js'
import {
  loadPolicy,
  newDir,
  newModel,
  objective,
  prompts,
  readSafetensors,
  rejects,
  sampling,
  testBackend,
  testDevice,
  trainingBatch,
} from '../helpers/engine-util.js'

const dir = await newModel({ hidden_size: 64, intermediate_size: 96 })
const adamw = { beta1: 0.9, beta2: 0.999, eps: 1e-6, weightDecay: 0.1 }
const learningRate = 1e-3
const options: LoadOptions = {
  ...{ referenceDir: dir, seed: 11, adamw, maxGradNorm: 1e9 },
  dtype: 'bfloat16',
  stateDtype: 'bfloat16',
}

async function batchOf(policy: Policy, seed = 1): Promise<MicroBatch> {
  return trainingBatch(prompts, await policy.generate(prompts, { ...sampling, n: 8, seed }), 8)
}

const widen = (bits: number) => new Float32Array(Uint32Array.of(bits << 16).buffer)[0]!

/** Of the state file: name -> numbers, in the order of the model's tensors. */
async function stateOf(policy: Policy) {
  const file = path.join(newDir(), 'state.safetensors')
  await policy.saveState(file)
  const tensors = readSafetensors(file)
  const of = (prefix: string) =>
    new Map(
      [...tensors]
        .filter(([name]) => name.startsWith(prefix))
        .map(([name, { dtype, bytes, values, shape }]) => {
          const halves = Array.from({ length: bytes.length / 2 }, (_, i) => bytes.readUInt16LE(2 * i))
          return [
            name.slice(prefix.length),
            { shape, values: dtype === 'F32' ? Array.from(values) : halves.map(widen) },
          ]
        }),
    )
  return { file, tensors, master: of('master.'), mean: of('exp_avg.'), square: of('exp_avg_sq.') }
}

async function gradientsOf(policy: Policy) {
  const file = path.join(newDir(), 'gradients.safetensors')
  await saveGradients(policy, file)
  return readSafetensors(file)
}

/** Philox4x32-10, written from its paper: four words of 32 bits. */
function philox(key: bigint, high: bigint, low: bigint): number[] {
  const mask = 0xffffffffn
  let [k0, k1] = [key & mask, key >> 32n]
  let c = [low & mask, low >> 32n, high & mask, high >> 32n] as [bigint, bigint, bigint, bigint]
  for (let round = 0; round < 10; round++) {
    const [a, b] = [0xd2511f53n * c[0], 0xcd9e8d57n * c[2]]
    c = [(b >> 32n) ^ c[1] ^ k0, b & mask, (a >> 32n) ^ c[3] ^ k1, a & mask]
    k0 = (k0 + 0x9e3779b9n) & mask
    k1 = (k1 + 0xbb67ae85n) & mask
  }
  return c.map(Number)
}

/** The 16 random bits with which element i is rounded. */
function randomBits(seed: number, step: number, stream: number, i: number): number {
  const [w0, w1] = philox(BigInt(seed), 1n, BigInt(step)) as [number, number]
  const part = Math.floor((i % 128) / 16)
  const words = philox(
    (BigInt(w0) << 32n) | BigInt(w1),
    BigInt(stream),
    BigInt(Math.floor(i / 128) * 16 + (i % 16)),
  )
  return (words[part >> 1]! >>> (16 * (part & 1))) & 0xffff
}

function rounded(x: number, random: number): number {
  const bits = new Uint32Array(Float32Array.of(x).buffer)[0]!
  return widen(((bits + random) & 0xffff0000) >>> 16)
}

test('the moments of the first step are rounded with the random numbers of seed, step, tensor and element', async () => {
  const policy = await loadPolicy(dir, options)
  await policy.accumulate(await batchOf(policy), objective)
  const gradients = await gradientsOf(policy)
  await policy.step(learningRate)
  const { mean, square } = await stateOf(policy)
  await policy.dispose()
  const [rest1, rest2] = [1 - adamw.beta1, 1 - adamw.beta2].map(Math.fround) as [number, number]
  let [other, all] = [0, 0]
  for (const [r, [name, { values }]] of [...gradients].entries()) {
    for (let i = 0; i < values.length; i += 7) {
      const g = values[i]!
      const m = rounded(Math.fround(rest1 * g), randomBits(11, 1, 2 * r, i))
      const v = rounded(Math.fround(Math.fround(rest2 * g) * g), randomBits(11, 1, 2 * r + 1, i))
      assert.is(mean.get(name)!.values[i], m, `${name} ${i}`)
      if (square.get(name)!.values[i] !== v) other++
      all++
    }
  }
  // libtorch multiplies in another order, so that a float32 number differs in its last bit, one of 2^16 of which decides.
  assert.ok(other <= (testBackend === 'aten' || testDevice !== 'cpu' ? all / 1000 : 0), `${other} of ${all}`)
})

test('a whole step is AdamW of the stored moments; each new moment is a neighbour, and the mean of the rounding is 0', async () => {
  const policy = await loadPolicy(dir, options)
  const batch = await batchOf(policy)
  let before = await stateOf(policy)
  const rounding = { mean: { sum: 0, variance: 0 }, square: { sum: 0, variance: 0 } }
  for (let step = 1; step <= 4; step++) {
    await policy.accumulate(batch, objective)
    const gradients = await gradientsOf(policy)
    await policy.step(learningRate)
    const after = await stateOf(policy)
    for (const [name, { values, shape }] of gradients) {
      const decay = shape.length > 1 ? learningRate * adamw.weightDecay : 0
      for (const [i, g] of values.entries()) {
        const m = adamw.beta1 * before.mean.get(name)!.values[i]! + (1 - adamw.beta1) * g
        const v = adamw.beta2 * before.square.get(name)!.values[i]! + (1 - adamw.beta2) * g * g
        const was = before.master.get(name)!.values[i]!
        const update = m / (1 - adamw.beta1 ** step) / (Math.sqrt(v / (1 - adamw.beta2 ** step)) + adamw.eps)
        const expected = was * (1 - decay) - learningRate * update
        const got = after.master.get(name)!.values[i]!
        // Roundings of the weight and of an update of a thousandth.
        assert.ok(
          Math.abs(got - expected) < 4e-7 * Math.abs(expected) + 1e-8,
          `${name} ${i}: ${got}, ${expected}`,
        )
        // Of m, whose two terms may cancel.
        const terms = Math.abs(m - (1 - adamw.beta1) * g) + Math.abs((1 - adamw.beta1) * g)
        for (const [moment, exact, size] of [
          ['mean', m, terms],
          ['square', v, v],
        ] as const) {
          const stored = after[moment].get(name)!.values[i]!
          const gap = 2 ** (Math.floor(Math.log2(Math.abs(exact))) - 7)
          const share = (stored - exact) / gap
          if (exact === 0) continue
          // 2^-16 of a gap is a float32 number's last bit.
          assert.ok(
            Math.abs(share) < 1 + 2 ** -14 * (size / Math.abs(exact)),
            `${moment} of ${name} ${i}: ${stored}, ${exact}`,
          )
          const up = exact / gap - Math.floor(exact / gap)
          rounding[moment].sum += share
          rounding[moment].variance += up * (1 - up)
        }
      }
    }
    before = after
  }
  // Of some 200,000 roundings: five standard deviations, 0.5 % of a gap.
  for (const { sum, variance } of Object.values(rounding))
    assert.ok(Math.abs(sum) < 5 * Math.sqrt(variance), `${sum} of ${Math.sqrt(variance)}`)
  await policy.dispose()
})

test('the seed decides; a run that goes on from a file ends with the same bits', async () => {
  const run = async (seed: number, stopAfter = 0) => {
    const load = () => loadPolicy(dir, { ...options, seed })
    let policy = await load()
    const batch = await batchOf(policy)
    for (let step = 1; step <= 3; step++) {
      await policy.accumulate(batch, objective)
      await policy.step(learningRate)
      if (step !== stopAfter) continue
      const { file } = await stateOf(policy)
      await policy.dispose()
      policy = await load()
      await policy.loadState(file)
    }
    const { file } = await stateOf(policy)
    await policy.dispose()
    return readFileSync(file)
  }
  const unbroken = await run(11)
  assert.equal(await run(11, 2), unbroken)
  assert.not.equal(await run(12), unbroken)
})

test('moments take two bytes each in the file, and another type of moments is refused', async () => {
  const [half, whole] = await Promise.all([
    loadPolicy(dir, options),
    loadPolicy(dir, { ...options, stateDtype: 'float32' }),
  ])
  const [a, b] = [await stateOf(half), await stateOf(whole)]
  const { parameters } = half.info
  const saved = statSync(b.file).size - statSync(a.file).size
  // The header names other types and offsets.
  assert.ok(Math.abs(saved - 4 * parameters) < 2000, `${saved} of ${4 * parameters}`)
  assert.is(a.tensors.get('exp_avg.model.norm.weight')!.dtype, 'BF16')
  assert.is(a.tensors.get('master.model.norm.weight')!.dtype, 'F32')
  const expected = (type: string, other: string) =>
    RegExp(`tensor "exp_avg.* is ${other} .*, expected ${type} .*: optimizer.stateDtype says`)
  await rejects(half.loadState(b.file), expected('BF16', 'F32'), 'ERR_RAPO_FORMAT')
  await rejects(whole.loadState(a.file), expected('F32', 'BF16'), 'ERR_RAPO_FORMAT')
  await rejects(
    loadPolicy(dir, { stateDtype: 'float16' as never }),
    /stateDtype is float16, expected one of float32, bfloat16/,
  )
  await rejects(
    loadPolicy(dir, { stateDtype: 'bfloat16', shard: 'optimizer' }),
    /shard is optimizer, expected none with stateDtype bfloat16/,
  )
  await rejects(loadPolicy(dir, { seed: -1 }), /seed is -1, expected an integer ≥ 0/)
  await Promise.all([half.dispose(), whole.dispose()])
})

test.run()
