/** Training: gradients, optimizer, saving and resuming, bad input. What transformers says is in engine-golden.test.ts. */
import { readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import type { ObjectiveMetrics } from '../../lib/loss/objective.js'
import { grpo, gspo } from '../../lib/loss/objective.js'
import { initializeModel, libtorchHasCuda, saveGradients } from '../../lib/model/engine.js'
import type { MicroBatch, ModelDType, Policy, PolicyOptions } from '../../lib/model/policy.js'
import {
  loadPolicy,
  maxDifference,
  newDir,
  newModel,
  objective,
  pack,
  poison,
  prompts,
  readSafetensors,
  rejects,
  sampling,
  tinyConfig,
  trainingBatch,
  unpack,
} from '../helpers/engine-util.js'

const dir = await newModel()
const referenceDir = await newModel({}, 2)
const n = 4

const open = (options: PolicyOptions = {}) => loadPolicy(dir, { referenceDir, ...options })

async function rollout(policy: Policy, seed = 7): Promise<MicroBatch> {
  return trainingBatch(prompts, await policy.generate(prompts, { ...sampling, n, seed }), n)
}

async function gradients(policy: Policy): Promise<Map<string, Float32Array>> {
  const file = path.join(newDir(), 'gradients.safetensors')
  await saveGradients(policy, file)
  return new Map([...readSafetensors(file)].map(([name, tensor]) => [name, tensor.values]))
}

/** The largest difference of any gradient, relative to the largest gradient of its tensor. */
function relativeDifference(a: Map<string, Float32Array>, b: Map<string, Float32Array>): number {
  assert.equal([...a.keys()], [...b.keys()])
  return Math.max(
    ...[...a].map(([name, values]) => {
      const largest = Math.max(...values.map(Math.abs))
      assert.ok(largest > 0, name)
      return maxDifference(values, b.get(name)!) / largest
    }),
  )
}

/** The part of a batch that belongs to some of its sequences. */
function part(batch: MicroBatch, wanted: (sequence: number) => boolean): MicroBatch {
  const { offsets } = batch.sequences
  const kept = unpack(batch.sequences)
    .map((_, i) => i)
    .filter(wanted)
  const newOffset = new Map<number, number>()
  let offset = 0
  for (const i of kept) {
    newOffset.set(i, offset)
    offset += offsets[i + 1]! - offsets[i]!
  }
  const sequenceOf = (position: number) => offsets.findIndex((_, i) => position < offsets[i + 1]!)
  const rows = [...batch.rowPositions.keys()].filter(row =>
    newOffset.has(sequenceOf(batch.rowPositions[row]!)),
  )
  return {
    ...selectRows(batch, rows),
    sequences: pack(kept.map(i => unpack(batch.sequences)[i]!)),
    rowPositions: Int32Array.from(rows, row => {
      const i = sequenceOf(batch.rowPositions[row]!)
      return batch.rowPositions[row]! - offsets[i]! + newOffset.get(i)!
    }),
  }
}

function selectRows(batch: MicroBatch, rows: number[]): MicroBatch {
  const take = (values: Float32Array) => Float32Array.from(rows, row => values[row]!)
  return {
    sequences: batch.sequences,
    rowPositions: Int32Array.from(rows, row => batch.rowPositions[row]!),
    tokenIds: Int32Array.from(rows, row => batch.tokenIds[row]!),
    tokenWeights: take(batch.tokenWeights),
    advantages: take(batch.advantages),
    refWeights: take(batch.refWeights!),
    oldLogprobs: take(batch.oldLogprobs!),
  }
}

for (const dtype of ['float32', 'bfloat16'] as const) {
  test(`${dtype}: gradients do not depend on micro-batches, shared prompts, order of rows, or head chunks`, async () => {
    const policy = await open({ dtype })
    const batch = await rollout(policy)
    const whole = await policy.accumulate(batch, objective)
    const expected = await gradients(policy)
    const rows = [...batch.rowPositions.keys()]
    const ways: Record<string, MicroBatch[]> = {
      'one sequence at a time': unpack(batch.sequences).map((_, wanted) => part(batch, i => i === wanted)),
      // Neighbours then differ in their prompts: no prefix is shared.
      'two interleaved halves': [0, 1].map(rest => part(batch, i => i % 2 === rest)),
      'rows reversed': [selectRows(batch, rows.reverse())],
      'two calls on the same sequences': [0, 1].map(rest =>
        selectRows(
          batch,
          rows.filter(row => row % 2 === rest),
        ),
      ),
    }
    // float32: sums in another order. bfloat16: each product of a micro-batch is rounded to 8 bits, as are activations'
    // gradients, and errors of single terms do not cancel.
    const tolerance = dtype === 'float32' ? 1e-5 : 0.05
    for (const [way, batches] of Object.entries(ways)) {
      await policy.zeroGrad()
      const metrics: ObjectiveMetrics[] = []
      for (const micro of batches) metrics.push(await policy.accumulate(micro, objective))
      const difference = relativeDifference(expected, await gradients(policy))
      assert.ok(difference < tolerance, `${way}: ${difference}`)
      const sum = (field: keyof ObjectiveMetrics) => metrics.reduce((total, m) => total + m[field], 0)
      assert.is(sum('tokens'), whole.tokens)
      assert.ok(Math.abs(sum('loss') - whole.loss) < tolerance * Math.max(1, Math.abs(whole.loss)), way)
    }
    await policy.dispose()

    const chunked = await open({ dtype, headRows: 5 })
    await chunked.accumulate(batch, objective)
    assert.ok(relativeDifference(expected, await gradients(chunked)) < tolerance)
    await chunked.dispose()
  })
}

test('gspo: the gradient of the ratio of each sequence; policy weights scale the policy term', async () => {
  const policy = await open({ headRows: 5 })
  const { refWeights: _, ...rollouts } = await rollout(policy)
  const { offsets } = rollouts.sequences
  const sequenceOf = (row: number) =>
    offsets.findIndex((_, b) => rollouts.rowPositions[row]! < offsets[b + 1]!)
  const perSequence = (f: (sequence: number) => number) =>
    Float32Array.from(rollouts.tokenIds, (_, row) => f(sequenceOf(row)))
  const batch = {
    ...rollouts,
    advantages: perSequence(b => Math.sin(3 * b + 1)),
    policyWeights: perSequence(b => 0.5 + (b % 3)),
    // As if sampled by another policy: some sequences' ratios are beyond the bounds.
    oldLogprobs: rollouts.oldLogprobs!.map(
      (lp, row) => lp + 0.3 * Math.sin(sequenceOf(row)) + 0.1 * Math.cos(row),
    ),
  }
  const bounds = { clipLow: 0.15, clipHigh: 0.2 }
  const metrics = await policy.accumulate(batch, gspo(bounds))
  const got = await gradients(policy)
  assert.ok(metrics.clippedLow > 0 && metrics.clippedHigh > 0, JSON.stringify(metrics))

  const { logprobs } = await policy.logprobs(batch.sequences, batch, 1)
  const ratios = Array.from(offsets.subarray(1), (_, b) => {
    const rows = [...batch.tokenIds.keys()].filter(row => sequenceOf(row) === b)
    const sum = rows.reduce((total, row) => total + logprobs[row]! - batch.oldLogprobs[row]!, 0)
    return Math.exp(sum / rows.length)
  })
  assert.ok(Math.abs(metrics.ratioMax - Math.max(...ratios)) < 1e-5)
  // Where nothing is cut off, d s / d lp = s / length: the plain policy gradient with advantage w s A.
  const active = (b: number) =>
    Math.sin(3 * b + 1) > 0 ? ratios[b]! <= 1 + bounds.clipHigh : ratios[b]! >= 1 - bounds.clipLow
  const { oldLogprobs: _o, policyWeights: _p, ...onPolicy } = batch
  const advantages = perSequence(b => (active(b) ? (0.5 + (b % 3)) * ratios[b]! * Math.sin(3 * b + 1) : 0))
  await policy.zeroGrad()
  await policy.accumulate({ ...onPolicy, advantages }, grpo({ penalty: 'none', klCoef: 0 }))
  // float32, the advantages rounded once more.
  assert.ok(relativeDifference(await gradients(policy), got) < 1e-5)

  const reversed = { ...batch, rowPositions: batch.rowPositions.slice().reverse() }
  await rejects(policy.accumulate(reversed, gspo(bounds)), /gspo needs them in the order of the sequences/)
  const uneven = { ...batch, advantages: batch.advantages.map((a, row) => a + row) }
  await rejects(policy.accumulate(uneven, gspo(bounds)), /advantages\[1\] .* gspo needs one value/)
  await policy.dispose()
})

for (const dtype of ['float32', 'bfloat16'] as ModelDType[]) {
  test(`${dtype}: computing activations again gives the same bits`, async () => {
    const [kept, again] = [await open({ dtype }), await open({ dtype, recompute: true })]
    const batch = await rollout(kept)
    const metrics = await kept.accumulate(batch, objective)
    assert.equal(await again.accumulate(batch, objective), metrics)
    assert.equal(await gradients(again), await gradients(kept))
    await kept.dispose()
    await again.dispose()
  })
}

test('gradients add up over calls, and zeroGrad drops them', async () => {
  const policy = await open()
  const batch = await rollout(policy)
  await policy.accumulate(batch, objective)
  const once = await gradients(policy)
  await policy.accumulate(batch, objective)
  const twice = await gradients(policy)
  for (const [name, values] of once) {
    // x + x is exact; the second pass adds its terms one by one, hence roundings.
    assert.ok(
      maxDifference(
        twice.get(name)!,
        values.map(x => 2 * x),
      ) <=
        1e-5 * Math.max(...values.map(Math.abs)),
    )
  }
  await policy.zeroGrad()
  for (const values of (await gradients(policy)).values()) assert.ok(values.every(x => x === 0))
  await policy.dispose()
})

test('a micro-batch without trained tokens changes nothing; masked rows may hold anything', async () => {
  const policy = await open()
  const batch = await rollout(policy)
  const masked = { ...batch, tokenWeights: new Float32Array(batch.tokenWeights.length) }
  const metrics = await policy.accumulate(masked, objective)
  assert.is(metrics.tokens, 0)
  assert.is(metrics.loss, 0)
  for (const values of (await gradients(policy)).values()) assert.ok(values.every(x => x === 0))

  const every = batch.tokenWeights.map((w, i) => (i % 3 ? w : 0))
  await policy.accumulate({ ...batch, tokenWeights: every }, objective)
  const expected = await gradients(policy)
  await policy.zeroGrad()
  const junk = (values: Float32Array) => values.map((x, i) => (i % 3 ? x : Number.NaN))
  await policy.accumulate(
    {
      ...batch,
      tokenWeights: every,
      tokenIds: batch.tokenIds.map((x, i) => (i % 3 ? x : -5)),
      advantages: junk(batch.advantages),
      refWeights: junk(batch.refWeights!),
      oldLogprobs: junk(batch.oldLogprobs!),
    },
    objective,
  )
  assert.is(relativeDifference(expected, await gradients(policy)), 0)
  await policy.dispose()
})

test('the reference stays as loaded while the policy moves', async () => {
  const policy = await open({ referenceDir: dir })
  const batch = await rollout(policy)
  const plain = { ...batch, refWeights: new Float32Array(batch.advantages.length).fill(1) }
  const before = await policy.accumulate(plain, objective)
  assert.ok(before.klSum < 1e-9, `${before.klSum}`) // the two models are one: d is a rounding error, D its square
  assert.ok(Math.abs(before.ratioSum / before.tokens - 1) < 1e-5)
  await policy.step(1e-2)
  const after = await policy.accumulate(plain, objective)
  assert.ok(after.klSum > 1e-3, `${after.klSum}`)
  await policy.dispose()
})

test('step is AdamW with a clipped norm, decay on matrices only', async () => {
  const adamw = { beta1: 0.8, beta2: 0.95, eps: 1e-6, weightDecay: 0.1 }
  const learningRate = 0.01
  const maxGradNorm = 0.05
  const policy = await open({ adamw, maxGradNorm })
  const batch = await rollout(policy)
  const weights = new Map(
    [...readSafetensors(path.join(dir, 'model.safetensors'))].map(([name, t]) => [
      name,
      {
        shape: t.shape,
        values: Float64Array.from(t.values),
        m: new Float64Array(t.values.length),
        v: new Float64Array(t.values.length),
      },
    ]),
  )
  for (let t = 1; t <= 3; t++) {
    await policy.accumulate(batch, objective)
    const grads = await gradients(policy)
    const { gradNorm, skipped } = await policy.step(learningRate)
    assert.is(skipped, false)
    let squares = 0
    for (const g of grads.values()) for (const x of g) squares += x * x
    assert.ok(Math.abs(gradNorm / Math.sqrt(squares) - 1) < 1e-12) // both sum in double
    assert.ok(gradNorm > maxGradNorm)
    const scale = maxGradNorm / gradNorm
    for (const [name, w] of weights) {
      const g = grads.get(name)!
      const decay = w.shape.length > 1 ? 1 - learningRate * adamw.weightDecay : 1
      for (let i = 0; i < g.length; i++) {
        const x = g[i]! * scale
        w.m[i] = adamw.beta1 * w.m[i]! + (1 - adamw.beta1) * x
        w.v[i] = adamw.beta2 * w.v[i]! + (1 - adamw.beta2) * x * x
        const mean = w.m[i]! / (1 - adamw.beta1 ** t)
        const root = Math.sqrt(w.v[i]! / (1 - adamw.beta2 ** t))
        w.values[i] = w.values[i]! * decay - (learningRate * mean) / (root + adamw.eps)
      }
    }
    for (const values of (await gradients(policy)).values()) assert.ok(values.every(x => x === 0))
  }
  const out = newDir()
  await policy.save(out)
  await policy.dispose()
  for (const [name, tensor] of readSafetensors(path.join(out, 'model.safetensors'))) {
    // Weights below 2: a rounding is 1.2e-7; three steps of a few operations each.
    const difference = maxDifference(tensor.values, weights.get(name)!.values)
    assert.ok(difference < 1e-6, `${name}: ${difference}`)
  }
})

test('a norm that is not finite is reported and skips the step', async () => {
  const policy = await open()
  const batch = await rollout(policy)
  const before = newDir()
  const after = newDir()
  await policy.save(before)
  await policy.saveState(path.join(before, 'state'))
  const huge = batch.advantages.map(() => 3e38)
  const weights = batch.tokenWeights.map(() => 10)
  await policy.accumulate({ ...batch, advantages: huge, tokenWeights: weights }, objective)
  const result = await policy.step(1e-3)
  assert.is(result.skipped, true)
  assert.not.ok(Number.isFinite(result.gradNorm))
  await policy.save(after)
  await policy.saveState(path.join(after, 'state'))
  for (const file of ['model.safetensors', 'state']) {
    assert.equal(readFileSync(path.join(after, file)), readFileSync(path.join(before, file)))
  }
  await policy.accumulate(batch, objective)
  assert.is((await policy.step(1e-3)).skipped, false)
  await policy.dispose()
})

for (const dtype of ['float32', 'bfloat16'] as const) {
  test(`${dtype}: N steps, save, load, N more are 2N steps, bit for bit`, async () => {
    const options = { dtype, adamw: { weightDecay: 0.01 } }
    const run = async (policy: Policy, from: number, to: number) => {
      for (let step = from; step < to; step++) {
        await policy.accumulate(await rollout(policy, step), objective)
        await policy.step(2e-3)
      }
    }
    const through = await open(options)
    await run(through, 0, 4)

    const half = await open(options)
    await run(half, 0, 2)
    const saved = newDir()
    await half.save(saved)
    await half.saveState(path.join(saved, 'state.safetensors'))
    await half.dispose()
    const resumed = await loadPolicy(saved, { referenceDir, ...options })
    await resumed.loadState(path.join(saved, 'state.safetensors'))
    await run(resumed, 2, 4)

    const [a, b] = [newDir(), newDir()]
    for (const [policy, out] of [
      [through, a],
      [resumed, b],
    ] as const) {
      await policy.save(out)
      await policy.saveState(path.join(out, 'state.safetensors'))
      await policy.dispose()
    }
    for (const file of ['model.safetensors', 'config.json', 'state.safetensors']) {
      assert.equal(readFileSync(path.join(a, file)), readFileSync(path.join(b, file)), file)
    }
    // The steps did something.
    assert.not.equal(
      readFileSync(path.join(a, 'model.safetensors')),
      readFileSync(path.join(saved, 'model.safetensors')),
    )
  })
}

test('saving gives back names, shapes and values; the dtype is the policy’s', async () => {
  for (const changes of [{}, { tie_word_embeddings: false, num_key_value_heads: 1 }]) {
    const from = await newModel(changes)
    const original = readSafetensors(path.join(from, 'model.safetensors'))
    const asDtype = async (dtype: ModelDType, source: string) => {
      const policy = await loadPolicy(source, { dtype, trainable: false })
      const out = newDir()
      await policy.save(out)
      await policy.dispose()
      const config = JSON.parse(readFileSync(path.join(out, 'config.json'), 'utf8'))
      assert.equal(config, { ...tinyConfig, ...changes, torch_dtype: dtype })
      return out
    }
    const same = readSafetensors(path.join(await asDtype('float32', from), 'model.safetensors'))
    assert.equal(same, original)

    const half = await asDtype('bfloat16', from)
    const narrow = readSafetensors(path.join(half, 'model.safetensors'))
    const back = readSafetensors(path.join(await asDtype('float32', half), 'model.safetensors'))
    for (const [name, { shape, values }] of original) {
      assert.is(narrow.get(name)!.dtype, 'BF16')
      assert.equal(narrow.get(name)!.shape, shape)
      // Nearest of 8 significant bits.
      back.get(name)!.values.forEach((x, i) => {
        assert.ok(Math.abs(x - values[i]!) <= Math.abs(values[i]!) / 256)
      })
    }
  }
})

test('bfloat16 training keeps float32 masters: steps below its resolution add up', async () => {
  const policy = await open({ dtype: 'bfloat16' })
  const batch = await rollout(policy)
  const out = newDir()
  const state = path.join(out, 'state')
  await policy.saveState(state)
  const masters = readSafetensors(state).get('master.model.embed_tokens.weight')!.values
  for (let i = 0; i < 3; i++) {
    await policy.accumulate(batch, objective)
    await policy.step(1e-5)
  }
  await policy.saveState(state)
  const moved = readSafetensors(state).get('master.model.embed_tokens.weight')!.values
  await policy.dispose()
  const steps = moved.map((x, i) => Math.abs(x - masters[i]!))
  assert.ok(steps.filter(x => x > 1e-5 && x < 4e-5).length > steps.length / 2)
})

test('initializeModel is seeded, normal, with norms 1 and biases 0', async () => {
  const twin = newDir()
  writeFileSync(path.join(twin, 'config.json'), readFileSync(path.join(dir, 'config.json')))
  await initializeModel(twin, 1)
  assert.equal(
    readFileSync(path.join(twin, 'model.safetensors')),
    readFileSync(path.join(dir, 'model.safetensors')),
  )
  assert.not.equal(
    readFileSync(path.join(referenceDir, 'model.safetensors')),
    readFileSync(path.join(dir, 'model.safetensors')),
  )
  for (const [name, { values, shape }] of readSafetensors(path.join(dir, 'model.safetensors'))) {
    if (name.endsWith('norm.weight')) assert.ok(values.every(x => x === 1))
    else if (shape.length === 1) assert.ok(values.every(x => x === 0))
    else {
      const mean = values.reduce((a, b) => a + b) / values.length
      const deviation = Math.sqrt(values.reduce((a, b) => a + b * b, 0) / values.length)
      // Five standard errors.
      assert.ok(Math.abs(mean) < (5 * 0.3) / Math.sqrt(values.length), name)
      assert.ok(Math.abs(deviation / 0.3 - 1) < 5 / Math.sqrt(2 * values.length), name)
    }
  }
})

test('info tells the architecture', async () => {
  const policy = await open({ trainable: false })
  const { parameters, ...info } = policy.info
  await policy.dispose()
  assert.equal(info, {
    vocabSize: 24,
    hiddenSize: 32,
    layers: 2,
    heads: 4,
    kvHeads: 2,
    headDim: 8,
    maxPositionEmbeddings: 64,
    tiedEmbeddings: true,
    dtype: 'float32',
  })
  let stored = 0
  for (const { shape } of readSafetensors(path.join(dir, 'model.safetensors')).values()) {
    stored += shape.reduce((a, b) => a * b)
  }
  assert.is(parameters, stored)
})

test('NaN in the model is reported, and incomplete gradients cannot be used', async () => {
  const policy = await loadPolicy(poison(await newModel()), { referenceDir })
  const batch = trainingBatch(
    pack([[1, 2]]),
    { tokens: pack([[3, 4]]), logprobs: new Float32Array(2), finishReasons: [] },
    1,
  )
  await rejects(policy.accumulate(batch, objective), /logits|NaN/, 'ERR_RAPO_NON_FINITE')
  await rejects(policy.step(1e-3), /call zeroGrad/)
  await rejects(policy.accumulate(batch, objective), /call zeroGrad/)
  await policy.zeroGrad()
  assert.is((await policy.step(1e-3)).skipped, false)
  await policy.dispose()
})

test('a row without a finite logit is named by its place in the micro-batch, whatever is computed at once', async () => {
  const model = await newModel({ tie_word_embeddings: false })
  const file = path.join(model, 'model.safetensors')
  const content = readFileSync(file)
  const headerLength = Number(content.readBigUInt64LE(0))
  const header = JSON.parse(content.toString('utf8', 8, 8 + headerLength))
  const [begin] = header['model.embed_tokens.weight'].data_offsets
  const poisoned = 9
  content.writeFloatLE(Number.NaN, 8 + headerLength + begin + 4 * poisoned * tinyConfig.hidden_size)
  writeFileSync(file, content)

  const made = {
    tokens: pack([
      [3, 4, 5, 6],
      [3, poisoned, 5, 6],
    ]),
    logprobs: new Float32Array(8).fill(-3),
    finishReasons: [],
  }
  const batch = trainingBatch(pack([[1, 2]]), made, 2)
  batch.tokenWeights[1] = 0
  for (const headRows of [0, 2]) {
    const policy = await loadPolicy(model, { referenceDir, headRows })
    // NaN in a key or value reaches all that is computed together: the second completion behind the shared prompt.
    await rejects(
      policy.accumulate(batch, objective),
      /^row 5: logits\[5, 0\] is NaN$/,
      'ERR_RAPO_NON_FINITE',
    )
    const { sequences, rowPositions, tokenIds } = batch
    const measuring = policy.logprobs(sequences, { rowPositions, tokenIds }, 1)
    await rejects(measuring, /^row 5: logits\[5, 0\] is NaN$/, 'ERR_RAPO_NON_FINITE')
    await policy.dispose()
  }
})

test('bad arguments name the field, the value and the range', async () => {
  const policy = await open()
  const batch = await rollout(policy)
  const accumulate = (changes: object) => policy.accumulate({ ...batch, ...changes }, objective)
  const generate = (changes: object) => policy.generate(prompts, { ...sampling, ...changes })
  const tokens = batch.sequences.tokenIds
  const changed = <A extends Int32Array | Float32Array>(array: A, index: number, value: number) => {
    const copy = array.slice() as A
    copy[index] = value
    return copy
  }
  const cases: [() => Promise<unknown>, RegExp][] = [
    [() => loadPolicy(''), /dir is /],
    [
      () => loadPolicy(dir, { dtype: 'float16' as ModelDType }),
      /dtype is float16, expected one of float32, bfloat16/,
    ],
    [() => loadPolicy(dir, { backend: 'avx2' as 'cpu' }), /backend is avx2, expected one of cpu, aten/],
    [() => loadPolicy(dir, { device: 'cuda', backend: 'cpu' }), /backend is cpu, expected one of aten/],
    [() => loadPolicy(dir, { maxGradNorm: 0 }), /maxGradNorm is 0, expected > 0/],
    [() => loadPolicy(dir, { referenceDir: '' }), /^referenceDir is /],
    [() => loadPolicy(dir, { headRows: -1 }), /headRows is -1/],
    [() => loadPolicy(dir, { cacheBytes: 0 }), /cacheBytes is 0, expected an integer ≥ 1/],
    [() => loadPolicy(dir, { adamw: { beta1: 1 } }), /adamw.beta1 is 1, expected in \[0, 1\)/],
    [() => loadPolicy(dir, { refrenceDir: dir } as PolicyOptions), /options has no field refrenceDir/],
    [() => initializeModel(dir, -1), /seed is -1/],
    [() => generate({ n: 0 }), /n is 0, expected an integer ≥ 1/],
    [() => generate({ n: 1.5 }), /n is 1.5/],
    [() => generate({ maxNewTokens: 0 }), /maxNewTokens is 0/],
    [() => generate({ temperature: -1 }), /temperature is -1/],
    [() => generate({ topP: 0 }), /topP is 0, expected in \(0, 1\]/],
    [() => generate({ topP: 1.5 }), /topP is 1.5, expected in \(0, 1\]/],
    [() => generate({ topK: -1 }), /topK is -1/],
    [() => generate({ minP: 1 }), /minP is 1, expected in \[0, 1\)/],
    [() => generate({ seed: 2 ** 53 }), /seed is 9007199254740992/],
    [() => generate({ stopTokenIds: [24] }), /stopTokenIds contains 24, the vocabulary has 24/],
    [() => generate({ stopTokenIds: [2 ** 31] }), /stopTokenIds is 2147483648/],
    [() => generate({ temperature: 1e6 + 0.5 }), /temperature is 1000000.5/],
    [() => generate({ topp: 1 }), /sampling has no field topp/],
    [() => policy.generate(pack([[], [1]]), sampling), /prompts\[0\] must hold at least one token/],
    [() => policy.generate(pack([[1], []]), sampling), /prompts\[1\] must hold at least one token/],
    [() => policy.generate(pack([[1, 24]]), sampling), /prompts.tokenIds\[1\] is 24, the vocabulary has 24/],
    [() => policy.generate(pack([[-1]]), sampling), /prompts.tokenIds\[0\] is -1/],
    [() => policy.generate(pack([]), sampling), /at least one sequence/],
    [
      () => policy.generate({ tokenIds: tokens, offsets: Int32Array.of(0, 1) }, sampling),
      /offsets must go from 0 to/,
    ],
    [
      () => policy.generate({ tokenIds: [1] as never, offsets: Int32Array.of(0, 1) }, sampling),
      /prompts.tokenIds is .*Int32Array/,
    ],
    [
      () => policy.generate(pack([new Array(65).fill(1)]), sampling),
      /prompts\[0\] has 65 tokens, the model's context is 64/,
    ],
    [() => policy.generate(null as never, sampling), /prompts is null, expected packed tokens/],
    [() => policy.generate(5 as never, sampling), /prompts is 5, expected packed tokens/],
    [() => accumulate({ oldLogprobs: [] }), /oldLogprobs is .*Float32Array/],
    [() => accumulate({ advantages: undefined }), /advantages is .*Float32Array/],
    [() => policy.syncReference!(0), /share is 0, expected in \(0, 1\]/],
    [() => accumulate({ tokenWeights: new Float32Array(3) }), /tokenWeights is of length 3/],
    [
      () => accumulate({ rowPositions: changed(batch.rowPositions, 2, tokens.length) }),
      /rowPositions\[2\] is \d+, there are/,
    ],
    [() => accumulate({ tokenIds: changed(batch.tokenIds, 3, 24) }), /tokenIds\[3\] is 24/],
    [() => accumulate({ advantages: changed(batch.advantages, 4, Number.NaN) }), /advantages\[4\] is nan/],
    [() => accumulate({ refWeights: changed(batch.refWeights!, 5, 1.5) }), /refWeights\[5\] is 1.5/],
    [() => accumulate({ oldLogprobs: changed(batch.oldLogprobs!, 6, Infinity) }), /oldLogprobs\[6\] is inf/],
    [
      () => accumulate({ tokenWeights: changed(batch.tokenWeights, 7, Number.NaN) }),
      /tokenWeights\[7\] is nan/,
    ],
    [() => accumulate({ tokenIds: new Float32Array(tokens.length) }), /tokenIds is .*Int32Array/],
    [() => accumulate({ tokenIds: batch.tokenIds.slice(1) }), /^tokenIds is of length \d+/],
    [() => accumulate({ weights: 1 }), /batch has no field weights/],
    [() => policy.accumulate(batch, { ...objective, clipLow: 2 }), /clipLow is 2/],
    [() => policy.step(-1), /learningRate is -1/],
    [() => policy.step(Number.NaN), /learningRate is NaN/],
    [() => policy.saveState(''), /^file is /],
    [
      () => policy.logprobs(batch.sequences, { ...batch, tokenIds: batch.tokenIds.slice(1) }, 1),
      /^tokenIds is of length \d+/,
    ],
    [() => policy.logprobs(batch.sequences, batch, 0), /temperature is 0/],
    [
      () =>
        policy.logprobs(batch.sequences, { rowPositions: Int32Array.of(0), tokenIds: Int32Array.of(99) }, 1),
      /tokenIds\[0\] is 99/,
    ],
  ]
  for (const [call, message] of cases) await rejects(call(), message)
  // Nothing of this touched the gradients.
  for (const values of (await gradients(policy)).values()) assert.ok(values.every(x => x === 0))
  await policy.dispose()

  await rejects(
    loadPolicy(dir, { device: 'cuda:x' as 'cuda' }),
    /device is cuda:x, expected cpu, cuda or cuda:1 and so on/,
  )
  if (!libtorchHasCuda()) {
    await rejects(
      loadPolicy(dir, { device: 'cuda' }),
      /device is "cuda", but .* without CUDA: let RAPO_LIBTORCH name one with CUDA and run `rapo setup`/,
      'ERR_RAPO_DEVICE',
    )
  }
  const other = await newModel({ vocab_size: 25 })
  await rejects(
    loadPolicy(dir, { referenceDir: other }),
    /the reference's vocabulary has 25 words, the policy's 24/,
  )
  const alone = await loadPolicy(dir)
  await rejects(alone.accumulate(batch, objective), /penalty needs a policy loaded with a referenceDir/)
  await alone.dispose()
  const frozen = await open({ trainable: false })
  await rejects(
    frozen.accumulate(batch, objective),
    /accumulate\(\) needs a policy loaded with trainable: true/,
  )
  await rejects(frozen.step(1), /step\(\) needs/)
  await rejects(frozen.saveState(path.join(newDir(), 'x')), /saveState\(\) needs/)
  await frozen.dispose()
})

test.run()
