/** Memory predicted before a run: the arithmetic by hand for a real model's shape, and the refusal. */
import { spawnSync } from 'node:child_process'
import { writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import type { RapoError } from '../../lib/base/errors.js'
import { type MemoryPrediction, predictMemory, type RunShape } from '../../lib/model/engine.js'
import type { Shard } from '../../lib/model/policy.js'
import { checkMemory, formatMemory, planMemory } from '../../lib/train/memory.js'
import { cli } from '../helpers/cli.js'
import { newDir, tinyConfig } from '../helpers/engine-util.js'
import { makeFakeModel } from '../helpers/fake-policy.js'

/** Qwen2.5-0.5B's config.json; there are no weights beside it. */
const shape = {
  architectures: ['Qwen2ForCausalLM'],
  vocab_size: 151936,
  hidden_size: 896,
  intermediate_size: 4864,
  num_hidden_layers: 24,
  num_attention_heads: 14,
  num_key_value_heads: 2,
  max_position_embeddings: 32768,
  tie_word_embeddings: true,
}
const parameters = 494_032_768
const model = newDir()
writeFileSync(path.join(model, 'config.json'), JSON.stringify(shape))
/** Keys and values of one position: 24 layers × 2 × 2 heads × 64. */
const position = 24 * 2 * 2 * 64
const run: RunShape = { promptTokens: 100, maxNewTokens: 300, sequences: 8 }

/** Tensors begin at multiples of 64 bytes: up to 31 numbers each are lost. */
function nearly(bytes: number, expected: number, width: number): void {
  assert.ok(bytes >= expected && bytes < expected + 24 * 12 * 32 * width, `${bytes} for ${expected}`)
}

test('what is held all the time: float32, bfloat16 with masters, with and without a reference, inference', async () => {
  const single = await predictMemory(model, {}, run)
  nearly(single.weights, 4 * parameters, 4)
  nearly(single.moments, 8 * parameters, 8)
  nearly(single.gradients, 4 * parameters, 4)
  assert.equal([single.masters, single.reference], [0, 0])
  const half = await predictMemory(model, { dtype: 'bfloat16', referenceDir: model }, run)
  nearly(half.weights, 2 * parameters, 2)
  nearly(half.reference, 2 * parameters, 2)
  nearly(half.masters, 4 * parameters, 4)
  const { masters, moments, gradients, activations, logits } = await predictMemory(
    model,
    { trainable: false },
    run,
  )
  assert.equal([masters, moments, gradients, activations, logits], [0, 0, 0, 0, 0])
})

test('what eight ranks share out: nothing, masters and moments, gradients too', async () => {
  const predict = (shard: Shard, processes = 8) =>
    predictMemory(model, { dtype: 'bfloat16', shard }, { ...run, processes })
  const [none, optimizer, gradients] = [
    await predict('none'),
    await predict('optimizer'),
    await predict('gradients'),
  ]
  assert.equal(await predict('gradients', 1), none)
  assert.equal(none, await predictMemory(model, { dtype: 'bfloat16' }, run))
  // A slice of each piece of 2^20 numbers is rounded up to 64 numbers.
  const near = (bytes: number, expected: number) =>
    assert.ok(bytes >= expected && bytes < 1.001 * expected, `${bytes} for ${expected}`)
  for (const { masters, moments } of [optimizer, gradients]) {
    near(masters, (4 * parameters) / 8)
    near(moments, (8 * parameters) / 8)
  }
  assert.is(optimizer.gradients, none.gradients)
  const layer = 896 * 896 * 2 + 2 * 128 * 896 + 896 + 2 * 128 + 3 * 896 * 4864 + 2 * 896
  // The shard; the buffers of a backward pass: the embeddings, two layers, the last norm; the received parts of their sums.
  near(gradients.gradients, 4 * (parameters / 8 + (151936 * 896 + 2 * layer + 896) * (1 + 1 / 8)))
  assert.equal({ ...gradients, ...pick(none) }, none)
})

test('the exchanges of up to 1024 ranks: whole slices of 64 numbers, of pieces that are as large as may be', async () => {
  const layer = 896 * 896 * 2 + 2 * 128 * 896 + 896 + 2 * 128 + 3 * 896 * 4864 + 2 * 896
  const sections = [151936 * 896, ...Array.from({ length: 24 }, () => layer), 896]
  for (const processes of [2, 3, 64, 1000, 1024]) {
    const unit = 64 * processes
    const most = Math.floor(2 ** 20 / unit) * unit
    /** Units of each piece of a section. */
    const cut = (size: number) =>
      Array.from({ length: Math.ceil(size / most) }, (_, i) =>
        Math.ceil(Math.min(most, size - i * most) / unit),
      )
    const units = (size: number) => cut(size).reduce((sum, count) => sum + count, 0)
    const shard = 64 * sections.reduce((sum, size) => sum + units(size), 0)
    assert.ok(shard * processes >= parameters && shard * processes < parameters + sections.length * unit)
    const options = { dtype: 'bfloat16', shard: 'gradients' } as const
    const { masters, moments, gradients } = await predictMemory(model, options, { ...run, processes })
    assert.equal([masters, moments], [4 * shard, 8 * shard], `${processes}`)
    // A backward pass holds the embeddings, two layers and the norm, as long as all ranks' slices, and receives its own slice.
    const buffers = [sections[0]!, layer, layer, 896].reduce((sum, size) => sum + units(size), 0)
    assert.is(gradients, 4 * (shard + buffers * (unit + 64)), `${processes}`)
  }
})

const pick = ({ masters, moments, gradients }: MemoryPrediction) => ({ masters, moments, gradients })

test('the cache grows with what is running, up to 1 GiB, or to one sequence', async () => {
  const cache = async (changes: Partial<RunShape>, dtype: 'float32' | 'bfloat16' = 'float32') =>
    (await predictMemory(model, { dtype }, { ...run, ...changes })).cache
  assert.is(await cache({}), 8 * 400 * position * 4)
  assert.is(await cache({}, 'bfloat16'), 8 * 400 * position * 2)
  assert.is(await cache({ maxBatch: 3 }), 3 * 400 * position * 4)
  assert.is(await cache({ sequences: 1024 }), 2 ** 30)
  assert.is(await cache({ sequences: 4, maxNewTokens: 50_000 }), 50_100 * position * 4)
})

test('activations: a chunk of tokens within 2 GiB; a longer sequence alone; far fewer when computed again', async () => {
  const kept = 24 * (5 * 896 + 1152 + 896 + 3 * 4864) * 4
  const passing = (4 * 896 + 3 * 4864) * 4 + 2 * 4864 * 4
  const many = { ...run, sequences: 1024 }
  const { activations } = await predictMemory(model, {}, many)
  assert.is(activations, Math.floor(2 ** 31 / kept) * (kept + passing))
  const long = await predictMemory(model, {}, { ...many, maxNewTokens: 4000 })
  assert.is(long.activations, 4100 * (kept + passing))
  // 24 inputs and one whole layer a token, instead of 24 layers.
  const again = await predictMemory(model, { recompute: true }, { ...many, maxNewTokens: 4000 })
  const fewer = (24 * 896 + kept / 96) * 4
  const tokens = Math.max(
    4100,
    Math.min(Math.floor(2 ** 31 / fewer), Math.floor((8 * parameters * 4) / kept)),
  )
  assert.is(again.activations, tokens * (fewer + passing))
  const { logits } = await predictMemory(model, { headRows: 10, referenceDir: model }, many)
  assert.is(logits, 10 * 151936 * 12)
})

test('the peak is the larger of training and generation; a run that does not fit is refused with its parts', () => {
  const parts = {
    ...{ weights: 1e9, masters: 2e9, moments: 4e9, gradients: 2e9, reference: 1e9 },
    ...{ activations: 3e9, logits: 1e9, merged: 0, cache: 1e9, sampling: 5e8 },
  }
  const plan = planMemory(parts)
  assert.is(plan.peak, 14e9 + plan.program)
  assert.is(planMemory({ ...parts, cache: 5e9 }).peak, 15.5e9 + plan.program)
  assert.is(planMemory({ ...parts, merged: 3e9 }).peak, 14.5e9 + plan.program)
  checkMemory(plan, plan.peak)
  assert.throws(
    () => checkMemory(plan, plan.peak - 1),
    (error: RapoError) =>
      error.code === 'ERR_RAPO_OUT_OF_MEMORY' &&
      /^the run needs 14.35 GB of memory, 14.35 GB are available\n/.test(error.message) &&
      error.message.includes(formatMemory(plan)),
  )
  assert.match(formatMemory(plan), /masters \(float32\) +2.00 GB/)
})

test('problems that will be left out do not count: rapo doctor --config', () => {
  const dir = makeFakeModel()
  writeFileSync(path.join(dir, 'config.json'), JSON.stringify(tinyConfig))
  const answer = { numbers: [7], target: 7 }
  const [short, long] = ['7=7:', `${'7'.repeat(60)}:`].map(prompt => JSON.stringify({ prompt, answer }))
  const predict = (processes: number, ...lines: (string | undefined)[]) => {
    const [train, file] = ['train.jsonl', 'c.yaml'].map(name => path.join(dir, name)) as [string, string]
    writeFileSync(train, lines.join('\n'))
    const config = {
      ...{ model: { dir }, task: { verifier: 'countdown' }, sampling: { maxNewTokens: 10 } },
      data: { train, dropUnusable: true },
      distributed: { shard: 'optimizer' },
    }
    writeFileSync(file, JSON.stringify(config))
    const doctor = [cli[1], 'doctor', '--json', '--config', file]
    doctor.push('--processes', `${processes}`)
    const { run, disk, freeDisk } = JSON.parse(spawnSync(cli[0], doctor, { encoding: 'utf8' }).stdout)
    assert.is(disk.checkpoint, run.weights * 4)
    assert.ok(freeDisk > 0)
    return run
  }
  const expected = predict(1, short)
  // 4 tokens of the prompt and 10 new ones, 64 sequences at a time; 2 layers × 2 × 2 heads × 8, float32.
  assert.is(expected.cache, 64 * 14 * (2 * 2 * 2 * 8) * 4)
  assert.equal(predict(1, short, long), expected)
  const half = predict(2, short)
  assert.ok(half.moments < 0.6 * expected.moments, `${half.moments} of ${expected.moments}`)
})

test.run()
