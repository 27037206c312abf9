/** Masters, moments and gradients that ranks share out, against ranks that each hold all. What each does: test/helpers/shard-child.ts. */
import { readFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { loadPolicy } from '../../lib/model/engine.js'
import { maxDifference, newDir, newModel, poison, readSafetensors } from '../helpers/engine-util.js'
import { runRanks } from '../helpers/ranks.js'
import { optionsOf } from '../helpers/shard-child.js'

// Its embeddings are cut into two pieces; the layers and the norm have less than a slice of 64 a rank.
const tied = await newModels({ vocab_size: 33_000 })
const untied = await newModels({ tie_word_embeddings: false, num_hidden_layers: 3 })

/** The same model twice, the second time with a weight that is no number. */
async function newModels(changes: object) {
  return { model: await newModel(changes), poisoned: poison(await newModel(changes)) }
}

async function run(processes: number, { model, poisoned }: typeof tied) {
  const output = newDir()
  const { exitCode, stderr, stdout } = await runRanks('shard-child.ts', processes, [model, output, poisoned])
  assert.is(exitCode, 0, stderr.join('\n'))
  const seen = stdout.map(text => JSON.parse(text))
  const bytes = (...file: string[]) => readFileSync(path.join(output, ...file)).toString('latin1')
  const outcome = (name: string) => ({
    weights: bytes(name, 'model.safetensors'),
    loaded: bytes(name, 'loaded', 'model.safetensors'),
    reference: bytes(name, 'reference', 'model.safetensors'),
    state: bytes(name, 'state.safetensors'),
  })
  return { output, seen, bytes, outcome }
}

/** The largest difference of the float32 masters, as a share of the largest change: 3 steps of 0.01. */
function difference(a: string, b: string): number {
  const [x, y] = [a, b].map(dir => readSafetensors(path.join(dir, 'state.safetensors')))
  let most = 0
  for (const [name, tensor] of x!) {
    if (name.startsWith('master.')) most = Math.max(most, maxDifference(tensor.values, y!.get(name)!.values))
  }
  return most / 0.03
}

for (const [name, from] of [
  ['tied', tied],
  ['untied', untied],
] as const) {
  test(`two ranks: the same bits, however they share out (head ${name})`, async () => {
    const { seen, outcome, bytes } = await run(2, from)
    for (const dtype of ['float32', 'bfloat16']) {
      const expected = outcome(`${dtype}-none`)
      // a + b = b + a: two ranks have no other order of the sums.
      for (const shard of ['optimizer', 'gradients']) {
        const name = `${dtype}-${shard}`
        assert.ok(outcome(name).loaded === outcome(name).weights, `${name}: loaded`)
        for (const [part, content] of Object.entries(outcome(name)))
          assert.ok(content === expected[part as 'state'], `${name}: ${part}`)
        assert.ok(bytes(name, 'again.safetensors') === expected.state, `${name} loaded otherwise`)
        for (const [step, norm] of seen[0][name].entries())
          assert.ok(Math.abs(norm / seen[0][`${dtype}-none`][step] - 1) < 1e-12)
      }
    }
    for (const [rank, { failed, refused, float32Files }] of seen.entries()) {
      assert.match(failed, rank === 1 ? /tokenIds\[3\] is 99999/ : /^$/)
      assert.match(refused, /a failed accumulate\(\) left the gradients incomplete: call zeroGrad\(\) first/)
      assert.match(float32Files, /dtype must be the policy's own where the ranks share out the masters/)
    }
    assert.match(seen[1].ill, /logits\[0, \d+\] is NaN/)
    const { failed, ill } = seen[1]
    assert.equal(seen[1], { ...seen[0], failed, ill })
  })
}

test('three ranks: to rounding; one process reads the state of three, and writes the same file', async () => {
  const { seen, output, outcome } = await run(3, tied)
  for (const dtype of ['float32', 'bfloat16'] as const) {
    const all = path.join(output, `${dtype}-none`)
    for (const shard of ['optimizer', 'gradients']) {
      const name = `${dtype}-${shard}`
      // AdamW's first steps divide by the gradient's size, so that roundings of small gradients show.
      assert.ok(difference(path.join(output, name), all) < 1e-3, name)
      for (const [step, norm] of seen[0][name].entries())
        assert.ok(Math.abs(norm / seen[0][`${dtype}-none`][step] - 1) < 1e-6)
    }
    const sharded = path.join(output, `${dtype}-gradients`)
    const policy = await loadPolicy(tied.model, optionsOf(tied.model, dtype))
    await policy.loadState(path.join(sharded, 'state.safetensors'))
    await policy.saveState(path.join(sharded, 'one.safetensors'))
    const written = readFileSync(path.join(sharded, 'one.safetensors')).toString('latin1')
    assert.ok(written === outcome(`${dtype}-gradients`).state)
    const dir = newDir()
    await policy.save(dir)
    const weights = readFileSync(path.join(dir, 'model.safetensors')).toString('latin1')
    assert.ok(weights === outcome(`${dtype}-gradients`).weights)
    await policy.dispose()
  }
})

test.run()
