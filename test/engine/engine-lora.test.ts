/** Adapters of low rank: gradients, merging, files, exact resumption. test/golden/lora-* compare them with PEFT. */
import { cpSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { loraModules } from '../../lib/model/adapter.js'
import { predictMemory, saveGradients } from '../../lib/model/engine.js'
import type { Completions, MicroBatch, Policy } from '../../lib/model/policy.js'
import {
  completionRows,
  loadPolicy,
  maxDifference,
  newDir,
  newModel,
  objective,
  pack,
  prompts,
  readSafetensors,
  rejects,
  sampling,
  trainingBatch,
  unpack,
  writeSafetensors,
} from '../helpers/engine-util.js'

const weightsFile = 'adapter_model.safetensors'
const golden = fileURLToPath(new URL('../golden/', import.meta.url))
const [all, some] = ['lora-all', 'lora-some'].map(name => path.join(golden, name)) as [string, string]
const [allBase, someBase] = ['qwen3-62-tied', 'gqa42-untied'].map(name => path.join(golden, name)) as [
  string,
  string,
]

const model = await newModel()
const lora = { r: 4, loraAlpha: 8, seed: 3 }

/** Completions of the policy as a batch to train on. */
async function batchOf(policy: Policy, n = 2): Promise<MicroBatch> {
  return trainingBatch(prompts, await policy.generate(prompts, { ...sampling, n }), n)
}

async function gradientsOf(policy: Policy) {
  const file = path.join(newDir(), 'gradients.safetensors')
  await saveGradients(policy, file)
  return readSafetensors(file)
}

async function adapterOf(policy: Policy): Promise<string> {
  const dir = newDir()
  await policy.saveAdapter!(dir)
  return dir
}

/** A copy of an adapter with other files. */
function changed(dir: string, config: object, header?: (header: Record<string, unknown>) => object): string {
  const copy = newDir()
  cpSync(dir, copy, { recursive: true })
  const file = path.join(copy, 'adapter_config.json')
  writeFileSync(file, JSON.stringify({ ...JSON.parse(readFileSync(file, 'utf8')), ...config }))
  if (header) {
    const content = readFileSync(path.join(copy, weightsFile))
    const end = 8 + Number(content.readBigUInt64LE(0))
    const read = JSON.parse(content.toString('utf8', 8, end))
    writeSafetensors(path.join(copy, weightsFile), header(read), content.subarray(end))
  }
  return copy
}

test('a new adapter changes nothing: the policy is its reference, and B alone has a gradient', async () => {
  const policy = await loadPolicy(model, { lora, referenceDir: model })
  const plain = await loadPolicy(model, { trainable: false })
  const completions = await plain.generate(prompts, { ...sampling, n: 2 })
  assert.equal(
    unpack((await policy.generate(prompts, { ...sampling, n: 2 })).tokens),
    unpack(completions.tokens),
  )
  const metrics = await policy.accumulate(
    { ...trainingBatch(prompts, completions, 2), refWeights: undefined as never },
    { ...objective, penalty: 'reverse-k3' },
  )
  // The kernels sum the policy's and the reference's normaliser in two functions, which the compiler may round differently: with
  // AVX2, d is then some 1e-8 instead of 0, and the penalty d^2 / 2.
  assert.ok(metrics.klSum >= 0 && metrics.klSum < 1e-13 * metrics.tokens, String(metrics.klSum))
  const gradients = await gradientsOf(policy)
  // 7 matrices in each of 2 layers.
  assert.is(gradients.size, 28)
  for (const [name, { values }] of gradients) {
    assert.is(
      values.every(x => x === 0),
      name.includes('lora_A'),
      name,
    )
  }
  assert.is(policy.info.parameters, plain.info.parameters)
  const counted = [...gradients.values()].reduce((sum, { values }) => sum + values.length, 0)
  assert.is(policy.info.adapterParameters, counted)
  await Promise.all([policy.dispose(), plain.dispose()])
})

test("A begins as PEFT's: uniform in ±1 / √columns, by the seed; B is 0", async () => {
  const dirs: string[] = []
  for (const seed of [3, 3, 4]) {
    const policy = await loadPolicy(model, { lora: { r: 16, seed } })
    dirs.push(await adapterOf(policy))
    await policy.dispose()
  }
  const [first, same, other] = dirs.map(dir => readFileSync(path.join(dir, weightsFile)))
  assert.equal(first, same)
  assert.not.equal(first, other)
  for (const [name, { shape, values }] of readSafetensors(path.join(dirs[0]!, weightsFile))) {
    if (name.includes('lora_B')) assert.ok(values.every(x => x === 0))
    else {
      const bound = 1 / Math.sqrt(shape[1]!)
      const deviation = Math.sqrt(values.reduce((sum, x) => sum + x * x, 0) / values.length)
      assert.ok(values.every(x => Math.abs(x) <= bound))
      // The mean of 512 squares or more, each of variance 4/45 bound^4 around bound^2 / 3: five deviations are 18 %.
      assert.ok(Math.abs((3 * deviation ** 2) / bound ** 2 - 1) < 0.2, name)
    }
  }
})

test('the gradient is that of finite differences along itself', async () => {
  const policy = await loadPolicy(someBase, { adapterDir: some, referenceDir: someBase })
  const batch = await batchOf(policy, 4)
  // Without clipping, at whose bounds the loss has no derivative.
  const smooth = { ...objective, clipLow: 1, clipHigh: 1000 }
  await policy.accumulate(batch, smooth)
  const gradients = await gradientsOf(policy)
  await policy.dispose()
  let squares = 0
  for (const { values } of gradients.values()) for (const x of values) squares += x * x
  const lossAt = async (step: number) => {
    const moved = changed(some, {})
    const file = path.join(moved, weightsFile)
    const header: Record<string, object> = {}
    const parts: Buffer[] = []
    let offset = 0
    for (const [name, { shape, values }] of readSafetensors(file)) {
      const gradient = gradients.get(name)!.values
      const bytes = Buffer.from(values.map((x, i) => x + (step / Math.sqrt(squares)) * gradient[i]!).buffer)
      header[name] = { dtype: 'F32', shape, data_offsets: [offset, offset + bytes.length] }
      offset += bytes.length
      parts.push(bytes)
    }
    writeSafetensors(file, header, Buffer.concat(parts))
    const other = await loadPolicy(someBase, { adapterDir: moved, referenceDir: someBase })
    const { loss } = await other.accumulate(batch, smooth)
    await other.dispose()
    return loss
  }
  const h = 0.005
  const slope = ((await lossAt(h)) - (await lossAt(-h))) / (2 * h)
  // The loss, of size 1, has some 1e-6 of float32 rounding, which makes 2e-4 of a slope; the third derivative adds h^2.
  assert.ok(Math.abs(slope / Math.sqrt(squares) - 1) < 2e-3, `${slope} against ${Math.sqrt(squares)}`)
})

for (const [name, base, adapterDir] of [
  ['all matrices', allBase, all],
  ['some matrices, rank-stabilised', someBase, some],
] as const) {
  test(`${name}: the merged model gives the adapter's log-probs`, async () => {
    const policy = await loadPolicy(base, { adapterDir })
    const completions = await policy.generate(prompts, { ...sampling, n: 2 })
    const rows = completionRows(prompts, completions, 2)
    const merged = newDir()
    await policy.save(merged)
    const whole = await loadPolicy(merged, { trainable: false })
    const plain = await loadPolicy(base, { trainable: false })
    const [own, ofMerged, ofPlain] = await Promise.all(
      [policy, whole, plain].map(async p => (await p.logprobs(rows.sequences, rows, 1)).logprobs),
    )
    // Some hundred roundings of float32 numbers of size 10; the adapter itself moves log-probs by a unit and more.
    assert.ok(maxDifference(own!, ofMerged!) < 1e-4)
    assert.ok(maxDifference(own!, ofPlain!) > 0.5)
    // Sampled from what the log-probs say.
    assert.ok(maxDifference(own!, completions.logprobs) < 1e-4)
    await Promise.all([policy, whole, plain].map(p => p.dispose()))
  })

  test(`${name}: computing activations again gives the same gradients`, async () => {
    const found: Float32Array[][] = []
    for (const recompute of [false, true]) {
      const policy = await loadPolicy(base, { adapterDir, recompute, referenceDir: base })
      await policy.accumulate(await batchOf(policy), objective)
      found.push([...(await gradientsOf(policy)).values()].map(({ values }) => values))
      await policy.dispose()
    }
    assert.equal(found[0], found[1])
  })
}

/** Log-probs of a policy's own completions: as it sampled them, and as it trains on them. */
async function sampledAndTrained(base: string, options: object, given?: Completions) {
  const policy = await loadPolicy(base, { trainable: false, ...options })
  const completions = given ?? (await policy.generate(prompts, { ...sampling, n: 8 }))
  const rows = completionRows(prompts, completions, 8)
  const { logprobs } = await policy.logprobs(rows.sequences, rows, 1)
  await policy.dispose()
  return { completions, logprobs }
}

const meanDistance = (a: Float32Array, b: Float32Array) =>
  a.reduce((sum, x, i) => sum + Math.abs(x - b[i]!), 0) / a.length

test('sampling from merged weights: the same tokens in float32, the same rounding errors in bfloat16', async () => {
  for (const [base, adapterDir] of [
    [allBase, all],
    [someBase, some],
  ] as const) {
    const merged = await sampledAndTrained(base, { adapterDir })
    const apart = await sampledAndTrained(base, { adapterDir, mergeAdapter: false })
    assert.equal(merged.completions.tokens, apart.completions.tokens)
    assert.ok(maxDifference(merged.completions.logprobs, merged.logprobs) < 1e-4)

    const half = await sampledAndTrained(base, { adapterDir, dtype: 'bfloat16' })
    const exact = await sampledAndTrained(base, { adapterDir }, half.completions)
    const [sampled, trained] = [half.completions.logprobs, half.logprobs].map(logprobs =>
      meanDistance(logprobs, exact.logprobs),
    )
    assert.ok(sampled! < 3 * trained!, `${sampled} against ${trained}`)
  }
})

test('merged weights have, on average, updates that are far below the resolution of bfloat16', async () => {
  const wide = await newModel({
    ...{ hidden_size: 256, intermediate_size: 256, initializer_range: 0.1, torch_dtype: 'bfloat16' },
  })
  // Of rank 1 and all of one sign: W + 1.5e-4, where most weights lie 2^-11 or 2^-10 from their neighbours.
  const policy = await loadPolicy(wide, { lora: { r: 1, loraAlpha: 1, targetModules: ['down_proj'] } })
  const adapterDir = await adapterOf(policy)
  await policy.dispose()
  const file = path.join(adapterDir, weightsFile)
  const tensors = readSafetensors(file)
  const header: Record<string, object> = {}
  const parts: Buffer[] = []
  let offset = 0
  for (const [name, { shape, values }] of tensors) {
    const { buffer } = values.fill(name.includes('lora_A') ? 1 : 1.5e-4)
    header[name] = { dtype: 'F32', shape, data_offsets: [offset, offset + buffer.byteLength] }
    offset += buffer.byteLength
    parts.push(Buffer.from(buffer))
  }
  writeSafetensors(file, header, Buffer.concat(parts))
  // The rounded weights' logits differ from the model's by what the adapter does and by noise. Greedy, so that the tokens
  // are the same.
  const greedy = { ...sampling, temperature: 0, maxNewTokens: 1, stopTokenIds: [] }
  const many = pack(Array.from({ length: 576 }, (_, i) => [i % 24, Math.floor(i / 24), (i * i + 5) % 24]))
  const generated = async (seed: number) => {
    const one = await loadPolicy(wide, { trainable: false, dtype: 'bfloat16', adapterDir, seed })
    const { tokens, logprobs } = await one.generate(many, greedy)
    await one.dispose()
    return { rows: completionRows(many, { tokens } as Completions, 1), logprobs }
  }
  const exactLogprobs = async (rows: ReturnType<typeof completionRows>, options: object) => {
    const one = await loadPolicy(wide, { trainable: false, ...options })
    const { logprobs } = await one.logprobs(rows.sequences, rows, 1)
    await one.dispose()
    return logprobs
  }
  let [product, square] = [0, 0]
  for (let seed = 1; seed <= 8; seed++) {
    const merged = await generated(seed)
    const without = await exactLogprobs(merged.rows, {})
    const withIt = await exactLogprobs(merged.rows, { adapterDir })
    for (const [i, x] of merged.logprobs.entries()) {
      const effect = withIt[i]! - without[i]!
      product += (x - without[i]!) * effect
      square += effect * effect
    }
  }
  // Rounded to the nearest number, few weights would change.
  assert.ok(Math.abs(product / square - 1) < 0.35, `${product / square}`)
})

test("PEFT's files are read and written back with the same numbers", async () => {
  const policy = await loadPolicy(allBase, { adapterDir: all, dtype: 'bfloat16' })
  const written = newDir()
  await policy.saveAdapter!(written, { baseModel: 'owner/name' })
  await policy.dispose()
  const [own, given] = [written, all].map(dir => readSafetensors(path.join(dir, weightsFile)))
  assert.equal([...own!.keys()].sort(), [...given!.keys()].sort())
  for (const [name, { bytes, shape }] of given!) {
    assert.equal(own!.get(name)!.bytes, bytes, name)
    assert.equal(own!.get(name)!.shape, shape)
  }
  const config = JSON.parse(readFileSync(path.join(written, 'adapter_config.json'), 'utf8'))
  assert.equal(config.target_modules, loraModules)
  assert.is(config.base_model_name_or_path, 'owner/name')
  assert.equal([config.r, config.lora_alpha, config.use_rslora], [3, 5, false])
})

for (const dtype of ['float32', 'bfloat16'] as const) {
  test(`${dtype}: a run that goes on from files ends with the bits of an unbroken one; the model stays as it was`, async () => {
    const options = { dtype, referenceDir: model }
    const step = async (policy: Policy, batch: MicroBatch) => {
      await policy.accumulate(batch, objective)
      const { skipped } = await policy.step(0.01)
      assert.not(skipped)
    }
    const unbroken = await loadPolicy(model, { ...options, lora })
    const batch = await batchOf(unbroken)
    await step(unbroken, batch)
    const adapterDir = await adapterOf(unbroken)
    const state = path.join(newDir(), 'state.safetensors')
    await unbroken.saveState(state)
    await step(unbroken, batch)
    const resumed = await loadPolicy(model, { ...options, adapterDir })
    await resumed.loadState(state)
    await step(resumed, batch)
    const [a, b] = [await adapterOf(unbroken), await adapterOf(resumed)]
    assert.equal(readFileSync(path.join(a, weightsFile)), readFileSync(path.join(b, weightsFile)))
    assert.not.equal(
      readFileSync(path.join(a, weightsFile)),
      readFileSync(path.join(adapterDir, weightsFile)),
    )
    // The reference is still the model: its share in the metrics is that of a model loaded by itself.
    const own = await unbroken.accumulate(batch, objective)
    await resumed.dispose()
    const copy = newDir()
    cpSync(model, copy, { recursive: true })
    const apart = await loadPolicy(model, { ...options, referenceDir: copy, adapterDir: a })
    assert.equal(await apart.accumulate(batch, objective), own)
    await Promise.all([unbroken.dispose(), apart.dispose()])
  })
}

test('memory: masters, moments and gradients of the adapter alone, no second model', async () => {
  const shape = { promptTokens: 8, maxNewTokens: 8, sequences: 4 }
  const full = await predictMemory(model, { dtype: 'bfloat16', referenceDir: model }, shape)
  const small = await predictMemory(model, { dtype: 'bfloat16', referenceDir: model, lora }, shape)
  const { adapterParameters = 0 } = await loadPolicy(model, { lora }).then(async policy => {
    await policy.dispose()
    return policy.info
  })
  // Every matrix begins at a multiple of 32 numbers.
  const padded = small.gradients / 4
  assert.ok(padded >= adapterParameters && padded < adapterParameters + 28 * 32)
  assert.equal([small.masters, small.moments, small.reference], [4 * padded, 8 * padded, 0])
  // Two layers of 64 x 32 (qkv), 32 x 32, 96 x 32 and 32 x 48 numbers.
  assert.equal([full.merged, small.merged], [0, 2 * 2 * (64 + 32 + 96 + 48) * 32])
  const part = {
    dtype: 'bfloat16',
    referenceDir: model,
    lora: { ...lora, targetModules: ['v_proj'] },
  } as const
  assert.is((await predictMemory(model, part, shape)).merged, 2 * 2 * 64 * 32)
  assert.is((await predictMemory(model, { ...part, mergeAdapter: false }, shape)).merged, 0)
  const halved = await predictMemory(model, { dtype: 'bfloat16', stateDtype: 'bfloat16', lora }, shape)
  assert.is(halved.moments, 4 * padded)
  assert.is(small.weights, full.weights + 2 * padded)
  assert.ok(full.gradients > 4 * small.gradients && full.reference > 0)
})

test('the reference may have an adapter that stays', async () => {
  for (const dtype of ['float32', 'bfloat16'] as const) {
    const options = { dtype, adapterDir: some, referenceDir: someBase }
    const policy = await loadPolicy(someBase, { ...options, referenceAdapterDir: some })
    const batch = { ...(await batchOf(policy, 4)), refWeights: undefined as never }
    const k3 = { ...objective, penalty: 'reverse-k3' } as const
    // To the roundings of double sums.
    assert.ok(Math.abs((await policy.accumulate(batch, k3)).klSum) < 1e-12)
    await policy.step(1e-2)
    const moved = await policy.accumulate(batch, k3)
    assert.ok(moved.klSum > 1e-6)
    // The same policy beside the same reference, loaded anew.
    const again = await loadPolicy(someBase, {
      ...options,
      adapterDir: await adapterOf(policy),
      referenceAdapterDir: some,
    })
    assert.is((await again.accumulate(batch, k3)).klSum, moved.klSum)
    await Promise.all([policy.dispose(), again.dispose()])
  }
  for (const options of [
    { referenceDir: allBase, adapterDir: some },
    { adapterDir: some },
    { referenceDir: someBase },
  ]) {
    await rejects(
      loadPolicy(someBase, { ...options, referenceAdapterDir: some }),
      /referenceDir is .*, expected the policy's own directory, and a policy with an adapter, with referenceAdapterDir/,
    )
  }
})

test('what an adapter may not be is told before weights are read', async () => {
  const load = (dir: string) => loadPolicy(allBase, { adapterDir: dir, trainable: false })
  const unsupported: [object, RegExp][] = [
    [{ peft_type: 'IA3' }, /peft_type is "IA3", expected "LORA"/],
    [{ use_dora: true }, /use_dora is true, expected PEFT's default/],
    [{ bias: 'all' }, /bias is "all"/],
    [{ modules_to_save: ['lm_head'] }, /modules_to_save is \["lm_head"\]/],
    [{ rank_pattern: { q_proj: 2 } }, /rank_pattern is/],
    [{ init_lora_weights: 'pissa' }, /init_lora_weights is "pissa"/],
    [
      { target_modules: ['q_proj', 'embed_tokens'] },
      /target_modules is .* expected a list of some of q_proj,/,
    ],
    [{ target_modules: '.*q_proj' }, /target_modules is/],
  ]
  for (const [change, message] of unsupported)
    await rejects(load(changed(all, change)), message, 'ERR_RAPO_UNSUPPORTED')
  for (const [change, message] of [
    [{ r: 0 }, /adapter_config.json: r is 0, expected an integer in \[1, 65536\]/],
    [{ lora_alpha: 0 }, /lora_alpha is 0, expected a number > 0/],
  ] as const) {
    await rejects(load(changed(all, change)), message, 'ERR_RAPO_FORMAT')
  }
  await rejects(
    load(newDir()),
    /holds no adapter of PEFT: there is no adapter_config.json/,
    'ERR_RAPO_FORMAT',
  )
})

test('the tensors must be those that adapter_config.json and the model ask for', async () => {
  const load = (dir: string) => loadPolicy(allBase, { adapterDir: dir, trainable: false })
  const name = 'base_model.model.model.layers.1.mlp.up_proj.lora_B.weight'
  await rejects(
    load(changed(all, { r: 4 })),
    /lora_A.weight" has the shape \[3, 36\], .* ask for \[4, 36\]/,
    'ERR_RAPO_FORMAT',
  )
  await rejects(
    load(changed(all, {}, ({ [name]: moved, ...rest }) => ({ ...rest, other: moved }))),
    /layers.1.mlp.up_proj.lora_B.weight" is missing/,
    'ERR_RAPO_FORMAT',
  )
  await rejects(
    load(changed(all, { target_modules: loraModules.slice(0, 6) })),
    /tensor ".*down_proj.lora_A.weight" does not belong to the adapter/,
    'ERR_RAPO_FORMAT',
  )
})

test('options and calls that do not go together', async () => {
  const bad = (options: object, message: RegExp) => rejects(loadPolicy(model, options), message)
  await bad({ lora: { r: 0 } }, /lora.r is 0, expected an integer in \[1, 65536\]/)
  await bad({ lora: { r: 2, loraAlpha: -1 } }, /lora.loraAlpha is -1, expected a number > 0/)
  await bad(
    { lora: { r: 2, targetModules: [] } },
    /lora.targetModules is \[\], expected all-linear, or some of/,
  )
  await bad({ lora: { r: 2, targetModules: ['lm_head'] } }, /lora.targetModules is \["lm_head"\]/)
  await bad({ lora: { r: 2, loraDropout: 0.1 } }, /lora has no field loraDropout; its fields are r,/)
  await bad({ lora, mergeAdapter: 1 as never }, /mergeAdapter is 1, expected true or false/)
  await bad({ lora, adapterDir: some }, /adapterDir is .*, expected none with lora/)
  const policy = await loadPolicy(model, { lora, referenceDir: model })
  await rejects(
    policy.syncReference!(1),
    /needs a reference of its own: it is the policy's model without its adapter/,
  )
  await rejects(policy.saveReference!(newDir()), /needs a reference of its own/)
  const plain = await loadPolicy(model, { trainable: false })
  await rejects(plain.saveAdapter!(newDir()), /saveAdapter\(\) needs a policy with an adapter/)
  await Promise.all([policy.dispose(), plain.dispose()])
})

test.run()
