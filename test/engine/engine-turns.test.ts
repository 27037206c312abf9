/** Conversations of several turns: keys and values kept between them, and the objective of an episode against the oracle. */
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { rapo } from '../../lib/loss/objective.js'
import { packBatch, tokenWeights } from '../../lib/model/batch.js'
import { loadPolicy as loadProduct, saveLogits } from '../../lib/model/engine.js'
import type { Completions, Policy, SamplingParams } from '../../lib/model/policy.js'
import { createTemplate } from '../../lib/model/template.js'
import { loadTokenizer } from '../../lib/model/tokenizer.js'
import type { Environment, NamedEnvironment } from '../../lib/reward/environment.js'
import { rolloutEpisodes } from '../../lib/rollout/episodes.js'
import { rolloutSequence } from '../../lib/rollout/rollout.js'
import { eosId } from '../../scripts/countdown-tokenizer.js'
import {
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
  testBackend,
  testDevice,
  trainingBatch,
  unpack,
} from '../helpers/engine-util.js'
import { exact, formula, formulaMetrics } from '../helpers/kernels-formula.js'
import { makeTinyModel } from '../helpers/tiny-model.js'

const dir = await newModel()
const policy = await loadPolicy(dir, { trainable: false })
const golden = fileURLToPath(new URL('../golden/', import.meta.url))
const [adapterBase, adapterDir] = [path.join(golden, 'gqa42-untied'), path.join(golden, 'lora-some')]
const libraryMultiplies = testBackend === 'aten' || testDevice !== 'cpu'

/** The log-probs of a step and of a prefill are sums in another order: some roundings of numbers of size 10. */
function same(actual: Completions, expected: Completions, what: string): void {
  assert.equal(actual.tokens, expected.tokens, what)
  assert.equal(actual.finishReasons, expected.finishReasons, what)
  assert.ok(maxDifference(actual.logprobs, expected.logprobs) < 1e-4, what)
}

interface Turn {
  readonly params: SamplingParams
  readonly asked: number[][]
  readonly completions: Completions
  /** Tokens that the last turn can have left. */
  readonly keepable: number
}

/**
 * Three turns, of which the second goes on with some conversations in another order, and the third with fewer. The observations
 * have 1 to 4 tokens.
 */
async function converse(model: Policy, changes: Partial<SamplingParams> = {}): Promise<Turn[]> {
  const turns: Turn[] = []
  let [asked, n] = [unpack(prompts), 3]
  let keepable = 0
  for (let turn = 1; turn <= 3; turn++) {
    const params = {
      ...sampling,
      ...{ n, turn, maxNewTokens: 9 },
      seed: asked.map((_, i) => 100 * turn + i),
      ...(turn > 1 && { maxNewTokensPerPrompt: asked.map((_, i) => 1 + ((i * 4) % 9)) }),
      ...changes,
    }
    const completions = await model.generate(pack(asked), params)
    turns.push({ params, asked, completions, keepable })
    const whole = unpack(completions.tokens).map((own, i) => [...asked[Math.floor(i / n)]!, ...own])
    const kept = whole.map((tokens, i) => ({ tokens, i })).filter(({ i }) => i % (turn + 1) !== 1)
    asked = kept.reverse().map(({ tokens, i }) => [...tokens, ...[3, 4, 5, 6].slice(0, 1 + (i % 4))])
    keepable = kept.reduce((sum, { tokens }) => sum + tokens.length - 1, 0)
    n = 1
  }
  return turns
}

const withAdapter = await Promise.all(
  [true, false].map(mergeAdapter => loadPolicy(adapterBase, { trainable: false, adapterDir, mergeAdapter })),
)

for (const [what, model] of [
  ['a model', policy],
  ['a merged adapter', withAdapter[0]!],
  ['an adapter', withAdapter[1]!],
] as const) {
  test(`turns of ${what}: what is kept changes no token, and is not computed again`, () => keepsTurns(model))
}

async function keepsTurns(policy: Policy): Promise<void> {
  for (const changes of [{}, { temperature: 0 }, { maxBatch: 2 }]) {
    const turns = await converse(policy, changes)
    for (const [t, { params, asked, completions, keepable }] of turns.entries()) {
      const what = `turn ${t + 1} ${JSON.stringify(changes)}`
      assert.is(completions.cachedTokens, keepable, what)
      for (const [i, own] of unpack(completions.tokens).entries()) {
        const most = params.maxNewTokensPerPrompt?.[i] ?? 9
        assert.ok(own.length <= most, what)
        assert.is(completions.finishReasons[i], own.at(-1) === 0 ? 'stop' : 'length', what)
        if (completions.finishReasons[i] === 'length') assert.is(own.length, most, what)
      }
      // Each turn from nothing. This would drop what is kept, if all turns had not been made before.
      const { turn: _, ...alone } = params
      const expected = await policy.generate(pack(asked), alone)
      assert.is(expected.cachedTokens, 0)
      same(completions, expected, what)
    }
    assert.ok(turns[1]!.keepable > 0 && turns[2]!.asked.length > 1)
  }
}

test('the same turns give the same bits, and each conversation the same whatever the others are', async () => {
  const bits = (turns: readonly Turn[]) => turns.map(({ completions }) => completions)
  const first = await converse(policy)
  assert.equal(bits(await converse(policy)), bits(first))
  if (libraryMultiplies) return
  const [one, two] = first
  await policy.generate(pack(one!.asked), one!.params)
  const last = two!.asked.length - 1
  const alone = await policy.generate(pack([two!.asked[last]!]), {
    ...two!.params,
    ...{ seed: [200 + last], maxNewTokensPerPrompt: [two!.params.maxNewTokensPerPrompt![last]!] },
  })
  const [begin] = two!.completions.tokens.offsets.subarray(last)
  assert.equal(alone.logprobs, two!.completions.logprobs.slice(begin))
  assert.equal(unpack(alone.tokens)[0], unpack(two!.completions.tokens)[last])
})

test('a cache that is too small: some are computed again, some stopped and started again, none changes', async () => {
  const { layers, kvHeads, headDim } = policy.info
  const page = 16 * 2 * layers * kvHeads * headDim * 4
  const small = await loadPolicy(dir, { trainable: false, cacheBytes: 5 * page })
  const [turns, expected] = [await converse(small), await converse(policy)]
  for (const [t, { completions }] of turns.entries()) {
    same(completions, expected[t]!.completions, `turn ${t + 1}`)
  }
  const { cachedTokens } = turns[1]!.completions
  assert.ok(cachedTokens! > 0 && cachedTokens! < turns[1]!.keepable, `${cachedTokens}`)
  await small.dispose()
})

test('what is kept is dropped by another first turn, a call that is no turn, gradients and a step', async () => {
  const trained = await loadPolicy(dir, { referenceDir: dir })
  const first = { ...sampling, n: 1, turn: 1, stopTokenIds: [] }
  const { tokens } = await trained.generate(prompts, first)
  const next = pack(unpack(tokens).map((own, i) => [...unpack(prompts)[i]!, ...own, 3]))
  const again = async (between: () => Promise<unknown>) => {
    const completions = await trained.generate(prompts, first)
    await between()
    const { cachedTokens } = await trained.generate(next, { ...first, turn: 2 })
    return [completions.cachedTokens, cachedTokens]
  }
  const all = next.tokenIds.length - 2 * 4
  assert.equal(await again(async () => {}), [0, all])
  assert.equal(await again(() => trained.generate(pack([[1]]), first)), [0, 0])
  assert.equal(await again(() => trained.generate(pack([[1]]), sampling)), [0, 0])
  const batch = trainingBatch(prompts, await trained.generate(prompts, first), 1)
  assert.equal(await again(() => trained.accumulate(batch, objective)), [0, 0])
  assert.equal(await again(() => trained.step(0.01)), [0, 0])
  // A second turn that nothing was kept for begins from the prompts.
  const changed = await trained.generate(next, { ...first, turn: 2 })
  const file = path.join(newDir(), 'state')
  await trained.saveState(file)
  assert.equal(await again(() => trained.loadState(file)), [0, 0])
  same(await trained.generate(next, { ...first, turn: 2 }), changed, 'from nothing')
  await trained.dispose()
})

test('limits and turns that make no sense are refused', async () => {
  for (const [changes, message] of [
    [{ turn: 0 }, /turn is 0, expected/],
    [{ turn: 1.5 }, /turn is 1.5, expected/],
    [{ maxNewTokensPerPrompt: [1] }, /maxNewTokensPerPrompt has 1 entries, there are 4 prompts/],
    [
      { maxNewTokensPerPrompt: [1, 2, 3, 13] },
      /maxNewTokensPerPrompt\[3\] is 13, expected a number from 1 to/,
    ],
    [{ maxNewTokensPerPrompt: [1, 2, 3, 0] }, /maxNewTokensPerPrompt is 0, expected/],
    [{ maxNewTokensPerPrompt: 3 }, /maxNewTokensPerPrompt is 3, expected an array/],
  ] as const) {
    await rejects(policy.generate(prompts, { ...sampling, ...(changes as object) }), message)
  }
  // A prompt that is too long for the limit of others.
  const long = pack([[1], Array.from({ length: 60 }, () => 1)])
  await policy.generate(long, { ...sampling, maxNewTokensPerPrompt: [12, 4] })
  await rejects(
    policy.generate(long, { ...sampling, maxNewTokensPerPrompt: [12, 5] }),
    /exceeds the model's context/,
  )
})

test("an episode's objective: every row by the formula in double precision, no row of an observation", async () => {
  const model = await makeTinyModel()
  const own = await loadProduct(model, { referenceDir: await makeTinyModel() })
  const tokenizer = loadTokenizer(model)
  const environment: Environment<number> = {
    reset: () => 0,
    step: (_, completion, { turn, isLast }) =>
      isLast || turn === 3 ? { done: true, reward: completion.length % 3 } : `${'12='.slice(turn - 1)}:`,
  }
  const said = ['1 2=3:', '4 5 6=7:']
  const rollouts = await rolloutEpisodes(
    own,
    {
      ...{ tokenizer, template: createTemplate('{prompt}', model) },
      environment: { name: 'test', ...environment } as NamedEnvironment,
    },
    said.map(text => ({ problem: { id: text, prompt: text, answer: 0 }, promptIds: tokenizer.encode(text) })),
    { n: 2, maxNewTokens: 30, stopTokenIds: [eosId], seed: 3 },
    { maxTurns: 4, maxTurnTokens: 6 },
  )
  assert.ok(rollouts.every(({ turns }) => turns!.length === 3))
  // Who wrote what follows from the turns alone.
  const tokens = rollouts.map(({ promptIds, turns, completionIds }) => {
    const list = promptIds.map(id => ({ id, isOwn: false }))
    let at = 0
    for (const { completion, observation = '' } of turns!) {
      const count = tokenizer.encode(completion).length
      const isEnded = completionIds[at + count] === eosId
      for (let t = 0; t < count + (isEnded ? 1 : 0); t++) list.push({ id: completionIds[at++]!, isOwn: true })
      for (const id of tokenizer.encode(observation)) {
        assert.is(completionIds[at++], id)
        list.push({ id, isOwn: false })
      }
    }
    assert.is(at, completionIds.length)
    return list
  })
  const advantages = [0.5, -1, 1.5, -0.25]
  const phis = [0.2, 0.9, 1, 0.4]
  const sequences = rollouts.map((rollout, b) =>
    rolloutSequence(rollout, { advantage: advantages[b]!, refWeight: phis[b]! }),
  )
  const used = rapo({ klCoef: 0.3, entropyCoef: 0.02 })
  const metrics = await own.accumulate(
    packBatch(sequences, tokenWeights(sequences, 'sequence-mean', 30)),
    used,
  )

  const packed = pack(tokens.map(list => list.map(({ id }) => id)))
  const file = path.join(newDir(), 'logits')
  await saveLogits(own, packed, Int32Array.from(packed.tokenIds.keys()), file)
  const logits = [...readSafetensors(file).values()][0]!.values
  const vocab = own.info.vocabSize
  const rows = tokens.flatMap((list, b) => {
    const count = list.filter(({ isOwn }) => isOwn).length
    const { promptIds, logprobs } = rollouts[b]!
    return list.flatMap(({ id, isOwn }, t) => {
      if (!isOwn) return []
      const before = packed.offsets[b]! + t - 1
      const row = Float64Array.from(logits.subarray(before * vocab, (before + 1) * vocab))
      // The reference has the same weights.
      const [weight, oldLogprob] = [1 / (4 * count), logprobs[t - promptIds.length]!]
      const rest = { weight, advantage: advantages[b]!, phi: phis[b]!, oldLogprob, policyWeight: 1 }
      return [formula({ logits: row, refLogits: row, tokenId: id, ...rest }, used, exact)]
    })
  })
  const expected = formulaMetrics(rows)
  assert.is(metrics.tokens, expected.tokens)
  // Logits of float32 sums of some 32 numbers of size 1; a row's numbers follow them within a factor of a few.
  for (const field of ['loss', 'klSum', 'entropySum', 'ratioSum'] as const) {
    assert.ok(
      Math.abs(metrics[field] - expected[field]) < 1e-5 * Math.max(1, Math.abs(expected[field])),
      `${field} ${metrics[field]} ${expected[field]}`,
    )
  }
  // The log-probs of the sampler, kept keys and values and all, are those of the trainer.
  assert.ok(Math.abs(expected.ratioMin - 1) < 1e-4 && Math.abs(expected.ratioMax - 1) < 1e-4)
  await own.dispose()
})

test.run()
