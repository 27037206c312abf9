/**
 * The engine's operations and sampler for other devices against the CPU's: the same seeds must give the same tokens. The
 * former run on the CPU (backend: 'aten'), or on the device that RAPO_TEST_DEVICE names.
 */
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { saveLogits } from '../../lib/model/engine.js'
import type { PolicyOptions, SamplingParams } from '../../lib/model/policy.js'
import {
  loadPolicy,
  maxDifference,
  newDir,
  newModel,
  pack,
  readSafetensors,
  sampling,
  testDevice,
  unpack,
} from '../helpers/engine-util.js'

const bundled = fileURLToPath(new URL('../../models/countdown-base', import.meta.url))

const changes: Record<string, Partial<SamplingParams>> = {
  plain: {},
  cold: { temperature: 0.6 },
  'top-k': { topK: 5 },
  'top-p': { topP: 0.7 },
  'min-p': { minP: 0.1 },
  all: { topK: 8, topP: 0.9, minP: 0.05, temperature: 1.2 },
  greedy: { temperature: 0 },
}

interface Made {
  readonly tokens: number[][]
  readonly logprobs: number[]
  readonly reasons: readonly string[]
}

/** Of completion i. */
function logprobsOf({ tokens, logprobs }: Made, i: number): number[] {
  const begin = tokens.slice(0, i).flat().length
  return logprobs.slice(begin, begin + tokens[i]!.length)
}

/** Everything that is compared; `wide` is a model whose vocabulary takes several of the sampler's blocks. */
async function make(wide: string, out: string, options: PolicyOptions): Promise<Record<string, Made>> {
  const results: Record<string, Made> = {}
  for (const [name, dir, words] of [
    ['bundled', bundled, 16],
    ['wide', wide, 3000],
  ] as const) {
    const policy = await loadPolicy(dir, { trainable: false, ...options })
    const prompts = pack(
      [1, 5, 16, 17].map(n => Array.from({ length: n }, (_, t) => (t * t * 7 + n) % words)),
    )
    for (const [kind, change] of Object.entries(changes)) {
      // maxBatch: sequences that end make room for others.
      const params = { ...sampling, n: 24, maxNewTokens: 20, stopTokenIds: [0, 3], maxBatch: 37, ...change }
      const made = await policy.generate(prompts, params)
      results[`${name}, ${kind}`] = {
        tokens: unpack(made.tokens),
        logprobs: Array.from(made.logprobs),
        reasons: made.finishReasons,
      }
    }
    await saveLogits(
      policy,
      prompts,
      Int32Array.from(prompts.tokenIds, (_, i) => i),
      path.join(out, name),
    )
    await policy.dispose()
  }
  return results
}

const wide = await newModel({ vocab_size: 3000, initializer_range: 0.5 })
const [cpu, aten] = [newDir(), newDir()]
const expected = await make(wide, cpu, { device: 'cpu', backend: 'cpu' })
const made = await make(wide, aten, { device: testDevice, backend: 'aten' })

/** The largest difference of two logits: rounding, in two orders of summation. */
const off = Object.fromEntries(
  ['bundled', 'wide'].map(name => {
    const values = (dir: string) => readSafetensors(path.join(dir, name)).get('logits')!.values
    return [name, maxDifference(values(aten), values(cpu))]
  }),
)

test('the logits differ by roundings: two implementations were compared', () => {
  // Some hundred roundings of float32 numbers of size 10 to 20.
  for (const difference of Object.values(off)) assert.ok(difference > 0 && difference < 2e-4, `${difference}`)
})

for (const [name, want] of Object.entries(expected)) {
  test(`${name}: the same seeds give the same tokens`, () => {
    const got = made[name]!
    const parted = want.tokens.map((tokens, i) => String(tokens) !== String(got.tokens[i]))
    // Logits that are off by δ move the bounds between which a random number means a token by δ at most, so that a token
    // is another with a probability below 2 δ: here, 0.2 of the 2000 tokens. Five deviations of that Poisson number are
    // three tokens; any difference in the rules or in the random numbers parts nearly all of the 96 completions.
    const mean = want.tokens.flat().length * 2 * off[name.split(',')[0]!]!
    const count = parted.filter(Boolean).length
    assert.ok(count <= Math.ceil(mean + 5 * Math.sqrt(mean)), `${count} completions differ`)
    want.tokens.forEach((_, i) => {
      if (parted[i]) return
      assert.is(got.reasons[i], want.reasons[i])
      assert.ok(maxDifference(logprobsOf(got, i), logprobsOf(want, i)) < 2e-4)
    })
  })
}
test.run()
