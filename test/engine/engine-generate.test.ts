/** Generation: determinism, log-probs against the trainer's forward pass, filters, stopping, slots. */
import { readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { setEngineThreads } from '../../lib/model/engine.js'
import type { Completions, Policy, SamplingParams } from '../../lib/model/policy.js'
import {
  completionRows,
  loadPolicy,
  maxDifference,
  newModel,
  pack,
  poison,
  prompts,
  rejects,
  sampling,
  testBackend,
  testDevice,
  tinyConfig,
  unpack,
} from '../helpers/engine-util.js'

const dir = await newModel()
const policy = await loadPolicy(dir, { trainable: false })
const vocab = tinyConfig.vocab_size
const libraryMultiplies = testBackend === 'aten' || testDevice !== 'cpu'

/** (rows, vocab) log-probs at the given rows. */
async function allLogprobs(
  model: Policy,
  rows: { sequences: ReturnType<typeof pack>; rowPositions: Int32Array },
  temperature: number,
): Promise<Float32Array[]> {
  const count = rows.rowPositions.length
  const wanted = {
    rowPositions: Int32Array.from(
      { length: count * vocab },
      (_, i) => rows.rowPositions[Math.floor(i / vocab)]!,
    ),
    tokenIds: Int32Array.from({ length: count * vocab }, (_, i) => i % vocab),
  }
  const { logprobs } = await model.logprobs(rows.sequences, wanted, temperature)
  return Array.from({ length: count }, (_, i) => logprobs.subarray(i * vocab, (i + 1) * vocab))
}

test('the same seed gives the same bits, another seed other tokens', async () => {
  const params = { ...sampling, n: 5 }
  const first = await policy.generate(prompts, params)
  assert.equal(await policy.generate(prompts, params), first)
  const other = await policy.generate(prompts, { ...params, seed: 8 })
  assert.not.equal(other.tokens.tokenIds, first.tokens.tokenIds)
  // Samples of one prompt differ from each other.
  assert.ok(new Set(unpack(first.tokens).slice(0, 5).map(String)).size > 1)
})

test('what is left out of the sampling parameters is off', async () => {
  const { n, maxNewTokens, stopTokenIds, seed } = sampling
  const full = { temperature: 1, topP: 1, topK: 0, minP: 0, maxBatch: 0 }
  const made = await policy.generate(prompts, { n, maxNewTokens, stopTokenIds, seed })
  assert.equal(made, await policy.generate(prompts, { n, maxNewTokens, stopTokenIds, seed, ...full }))
})

test('with a seed for each prompt, its completions do not depend on the other prompts', async () => {
  const all = unpack(prompts)
  const seeds = all.map((_, p) => 40 + p)
  const params = { ...sampling, n: 3 }
  const together = unpack((await policy.generate(prompts, { ...params, seed: seeds })).tokens)
  for (const [p, prompt] of all.entries()) {
    const alone = await policy.generate(pack([prompt]), { ...params, seed: seeds[p]! })
    assert.equal(unpack(alone.tokens), together.slice(p * 3, p * 3 + 3), `prompt ${p}`)
  }
  const count = all.length
  const tooMany = Array.from({ length: count + 1 }, (_, i) => i)
  await rejects(
    policy.generate(prompts, { ...params, seed: tooMany }),
    new RegExp(`seed has ${count + 1} entries, there are ${count} prompts`),
  )
  await rejects(policy.generate(prompts, { ...params, seed: [1, -1] }), /seed.*-1/)
})

test('the prompts of a call can be shared out: firstCompletion says where a part begins', async () => {
  const all = unpack(prompts)
  const params = { ...sampling, n: 3 }
  const whole = unpack((await policy.generate(prompts, params)).tokens)
  const rest = await policy.generate(pack(all.slice(1)), { ...params, firstCompletion: 3 })
  assert.equal(unpack(rest.tokens), whole.slice(3))
  const other = await policy.generate(pack(all.slice(1)), params)
  assert.not.equal(unpack(other.tokens), whole.slice(3))
  await rejects(policy.generate(prompts, { ...params, firstCompletion: -1 }), /firstCompletion is -1/)
})

/** The same bits; where a library multiplies, whose sums depend on the number of rows, the same tokens. */
function same(actual: Completions, expected: Completions, what?: string): void {
  if (!libraryMultiplies) {
    assert.equal(actual, expected, what)
    return
  }
  assert.equal(actual.tokens, expected.tokens, what)
  assert.equal(actual.finishReasons, expected.finishReasons, what)
  // Some roundings of numbers of size 10.
  assert.ok(maxDifference(actual.logprobs, expected.logprobs) < 1e-4, what)
}

test('neither slots nor threads change the bits of a float32 model', async () => {
  const params = { ...sampling, n: 7 }
  const all = await policy.generate(prompts, params)
  for (const maxBatch of [1, 3, 10]) {
    same(await policy.generate(prompts, { ...params, maxBatch }), all, `maxBatch ${maxBatch}`)
  }
  for (const threads of [1, 2, 3]) {
    setEngineThreads(threads)
    same(await policy.generate(prompts, params), all, `${threads} threads`)
  }
  setEngineThreads(0)
})

test('sequences that outgrow the cache are stopped and started again, and come out the same', async () => {
  const { layers, kvHeads, headDim } = policy.info
  const page = 16 * 2 * layers * kvHeads * headDim * 4
  const small = await loadPolicy(dir, { trainable: false, cacheBytes: 6 * page })
  // Most end early, so that more are started than there is room for when the others become long.
  const params = { ...sampling, n: 30, maxNewTokens: 45, stopTokenIds: [3, 4, 5, 6] }
  same(await small.generate(prompts, params), await policy.generate(prompts, { ...params, maxBatch: 64 }))
  await small.dispose()
})

test('recorded log-probs are those that the forward pass computes', async () => {
  for (const [temperature, topP, topK] of [
    [1, 1, 0],
    [0.7, 0.8, 6],
    [1.7, 1, 0],
  ] as const) {
    const n = 6
    const made = await policy.generate(prompts, { ...sampling, n, temperature, topP, topK })
    const { logprobs } = await policy.logprobs(...rowsOf(made, n), temperature)
    // Logits here reach about 10; ten roundings of float32 at that size are 1e-5.
    assert.ok(maxDifference(logprobs, made.logprobs) < 1e-5, `temperature ${temperature}`)
  }
})

test('the same for heads of 16 numbers, which fill a vector', async () => {
  const wide = await loadPolicy(await newModel({ hidden_size: 64 }), { trainable: false })
  const n = 6
  const made = await wide.generate(prompts, { ...sampling, n })
  const { logprobs } = await wide.logprobs(...rowsOf(made, n), 1)
  await wide.dispose()
  // Sums in another order: some roundings of numbers of size 10.
  assert.ok(maxDifference(logprobs, made.logprobs) < 1e-4)
})

test('prompts that end before, at and after a page of the cache share it and part', async () => {
  // A page holds 16 positions; a group shares its prompt's whole pages and copies the last.
  const long = pack(
    [15, 16, 17, 31, 32, 33].map(length => Array.from({ length }, (_, t) => (t * t + length) % 24)),
  )
  const params = { ...sampling, n: 3, maxNewTokens: 20, stopTokenIds: [] }
  const all = await policy.generate(long, params)
  for (const maxBatch of [1, 4]) same(await policy.generate(long, { ...params, maxBatch }), all)
  const rows = completionRows(long, all, 3)
  const { logprobs } = await policy.logprobs(rows.sequences, rows, 1)
  // Sums in another order: some roundings of numbers of size 10.
  assert.ok(maxDifference(logprobs, all.logprobs) < 1e-4)
})

test('the same for bfloat16, within what bfloat16 itself loses', async () => {
  const half = await loadPolicy(dir, { trainable: false, dtype: 'bfloat16' })
  const n = 6
  const made = await half.generate(prompts, { ...sampling, n })
  const again = await half.logprobs(...rowsOf(made, n), 1)
  const exact = await policy.logprobs(...rowsOf(made, n), 1)
  await half.dispose()
  const lost = maxDifference(again.logprobs, exact.logprobs)
  assert.ok(lost > 1e-3, `bfloat16 is not float32: ${lost}`)
  assert.ok(maxDifference(again.logprobs, made.logprobs) <= lost)
})

test('greedy takes the most probable token, whatever the seed and the neighbours', async () => {
  const greedy = { ...sampling, temperature: 0, n: 2 }
  const made = await policy.generate(prompts, greedy)
  assert.equal((await policy.generate(prompts, { ...greedy, seed: 99 })).tokens, made.tokens)
  const rows = completionRows(prompts, made, 2)
  const logp = await allLogprobs(policy, rows, 1)
  logp.forEach((row, i) => {
    const token = rows.tokenIds[i]!
    assert.is(Math.max(...row), row[token])
    // Recorded under temperature 1. Tolerance as above.
    assert.ok(Math.abs(made.logprobs[i]! - row[token]!) < 1e-5)
  })
  const given = unpack(prompts)
  const together = unpack(made.tokens)
  for (let p = 0; p < given.length; p++) {
    const alone = await policy.generate(pack([given[p]!]), { ...greedy, n: 1 })
    assert.equal(unpack(alone.tokens)[0], together[2 * p])
    assert.equal(together[2 * p], together[2 * p + 1])
  }
  const topOne = await policy.generate(prompts, { ...sampling, n: 2, topK: 1, temperature: 1.3 })
  assert.equal(topOne.tokens, made.tokens)
})

test('a min-p that leaves every token changes no sample', async () => {
  // The probabilities of 24 tokens whose logits reach about 10 are far above 1e-30.
  const params = { ...sampling, n: 50, stopTokenIds: [] }
  const made = await policy.generate(prompts, params)
  assert.equal((await policy.generate(prompts, { ...params, minP: 1e-30 })).tokens, made.tokens)
})

/** The distribution after top-k, top-p and min-p, by the definitions. */
function filtered(
  logp: Float32Array,
  { topK, topP, minP }: Pick<Required<SamplingParams>, 'topK' | 'topP' | 'minP'>,
): Float64Array {
  let left = Array.from(logp, (l, id) => ({ id, p: Math.exp(l) })).sort((a, b) => b.p - a.p || a.id - b.id)
  if (topK > 0) left = left.slice(0, topK)
  const total = left.reduce((sum, { p }) => sum + p, 0)
  let before = 0
  left = left.filter(({ p }) => {
    const keep = before < topP * total
    before += p
    return keep
  })
  left = left.filter(({ p }) => p >= minP * left[0]!.p)
  const out = new Float64Array(logp.length)
  const kept = left.reduce((sum, { p }) => sum + p, 0)
  for (const { id, p } of left) out[id] = p / kept
  return out
}

for (const changes of [
  { temperature: 1 },
  { temperature: 1.5 },
  { topK: 5 },
  { topP: 0.6 },
  { minP: 0.1 },
  { topK: 8, topP: 0.9, minP: 0.05, temperature: 1.2 },
]) {
  test(`samples follow the filtered distribution: ${JSON.stringify(changes)}`, async () => {
    const params = { ...sampling, ...changes, maxNewTokens: 1, n: 4000 }
    const one = pack([[3, 1, 4, 1, 5]])
    const made = await policy.generate(one, params)
    const last = { sequences: one, rowPositions: Int32Array.of(4) }
    const expected = filtered((await allLogprobs(policy, last, params.temperature))[0]!, params)
    const counts = new Float64Array(vocab)
    for (const id of made.tokens.tokenIds) counts[id]!++
    let chiSquare = 0
    let cells = 0
    expected.forEach((p, id) => {
      if (p === 0) assert.is(counts[id], 0, `token ${id} is filtered out`)
      if (p * params.n < 5) return
      chiSquare += (counts[id]! - p * params.n) ** 2 / (p * params.n)
      cells++
    })
    // A χ² variable with k degrees of freedom has mean k and deviation √(2k); five deviations, and the seed is fixed.
    assert.ok(chiSquare < cells + 5 * Math.sqrt(2 * cells), `χ² ${chiSquare} over ${cells} cells`)
  })
}

test('a vocabulary of thousands is sampled as the log-probs say', async () => {
  const words = 3000
  const large = await loadPolicy(await newModel({ vocab_size: words, initializer_range: 0.5 }), {
    trainable: false,
  })
  const one = pack([[3, 1000, 2999, 5]])
  const n = 4000
  const made = await large.generate(one, { ...sampling, n, maxNewTokens: 1 })
  const every = {
    rowPositions: new Int32Array(words).fill(3),
    tokenIds: Int32Array.from({ length: words }, (_, i) => i),
  }
  const { logprobs } = await large.logprobs(one, every, 1)
  // Top-p keeps more words than the sampler sorts at first, and among the sampled ones none behind its limit.
  const wide = { ...sampling, n, maxNewTokens: 1, temperature: 2, topP: 0.9 }
  const { tokens } = await large.generate(one, wide)
  const flatter = (await large.logprobs(one, every, 2)).logprobs
  const order = [...flatter.keys()].sort((a, b) => flatter[b]! - flatter[a]!)
  const last = Math.max(...tokens.tokenIds.map(id => order.indexOf(id)))
  const before = order.slice(0, last).reduce((sum, id) => sum + Math.exp(flatter[id]!), 0)
  assert.ok(last > 1024, `the rank of the last word is ${last}`)
  assert.ok(before < 0.9 + 1e-4, `the words before the last one have ${before}`)
  await large.dispose()
  // Neighbouring words share a cell until it expects 40 samples.
  let chiSquare = 0
  let cells = 0
  let expected = 0
  let seen = 0
  const counts = new Float64Array(words)
  for (const id of made.tokens.tokenIds) counts[id]!++
  logprobs.forEach((l, id) => {
    expected += n * Math.exp(l)
    seen += counts[id]!
    if (expected < 40 && id < words - 1) return
    chiSquare += (seen - expected) ** 2 / expected
    cells++
    expected = seen = 0
  })
  assert.ok(cells > 20)
  assert.ok(chiSquare < cells + 5 * Math.sqrt(2 * cells), `χ² ${chiSquare} over ${cells} cells`)
})

test('of equal logits greedy takes the lowest id', async () => {
  const flat = await newModel()
  const file = path.join(flat, 'model.safetensors')
  const content = readFileSync(file)
  const norm = 4 * tinyConfig.hidden_size
  content.fill(0, content.length - norm) // the final norm: every hidden state, and so every logit, becomes 0
  writeFileSync(file, content)
  const model = await loadPolicy(flat, { trainable: false })
  const made = await model.generate(prompts, { ...sampling, temperature: 0, stopTokenIds: [] })
  await model.dispose()
  assert.ok(made.tokens.tokenIds.every(id => id === 0))
  assert.ok(made.logprobs.every(l => Math.abs(l + Math.log(vocab)) < 1e-6)) // some roundings of a number near 3
})

test('completions end with the stop token or at the length, and say which', async () => {
  const stop = [0, 5, 9]
  const made = await policy.generate(prompts, { ...sampling, n: 40, stopTokenIds: stop })
  const completions = unpack(made.tokens)
  assert.is(completions.length, 160)
  assert.is(made.finishReasons.length, 160)
  const reasons = new Set(made.finishReasons)
  assert.ok(reasons.has('stop') && reasons.has('length'))
  completions.forEach((tokens, i) => {
    const at = tokens.findIndex(id => stop.includes(id))
    if (made.finishReasons[i] === 'stop') assert.is(at, tokens.length - 1)
    else assert.ok(at === -1 && tokens.length === sampling.maxNewTokens)
  })
  // The stream of a completion does not depend on what stops it.
  const free = unpack((await policy.generate(prompts, { ...sampling, n: 40, stopTokenIds: [] })).tokens)
  assert.equal(
    completions,
    free.map((tokens, i) => tokens.slice(0, completions[i]!.length)),
  )
})

test('progress reaches its total', async () => {
  const seen: [number, number][] = []
  await policy.generate(
    prompts,
    { ...sampling, n: 3 },
    { onProgress: (done, total) => seen.push([done, total]) },
  )
  const total = 4 * 3 * sampling.maxNewTokens
  assert.equal(seen.at(-1), [total, total])
})

test('a prompt that leaves no room is named', async () => {
  const long = pack([[1], Array.from({ length: 60 }, (_, i) => i % vocab)])
  await rejects(
    policy.generate(long, sampling),
    /prompts\[1\] has 60 tokens; with maxNewTokens = 12 .* context of 64/,
  )
  await policy.generate(long, { ...sampling, maxNewTokens: 4 })
})

test('a model whose logits are not finite is reported', async () => {
  const wild = await loadPolicy(poison(await newModel()), { trainable: false })
  await rejects(wild.generate(prompts, sampling), /logits hold NaN or an infinity/, 'ERR_RAPO_NON_FINITE')
  await wild.dispose()
})

function rowsOf(made: Awaited<ReturnType<Policy['generate']>>, n: number) {
  const rows = completionRows(prompts, made, n)
  return [rows.sequences, rows] as const
}

test.after(() => policy.dispose())
test.run()
