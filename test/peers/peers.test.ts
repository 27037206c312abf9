/**
 * Against what TRL and liger-kernel compute in float64 (test/golden/peers/, written by scripts/peers/run_peers.py; `npm
 * run test:peers` runs them anew).
 */
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { moments } from '../../lib/base/stats.js'
import { groupAdvantages } from '../../lib/loss/advantage.js'
import { offPolicyMask } from '../../lib/loss/correction.js'
import { topEntropyWeights } from '../../lib/loss/entropy.js'
import { gatherLogprobs } from '../../lib/loss/kernels.js'
import {
  comparePeers,
  floats,
  type PeerCase,
  type PeerInputs,
  readJson,
  same,
} from '../helpers/peers-compare.js'

const golden = fileURLToPath(new URL('../golden/peers', import.meta.url))
const comparisons = comparePeers(golden)

for (const { peer, version, name, off, differs, parts, partsOff } of comparisons) {
  test(`${peer} ${version}: ${name}`, () => {
    // Whatever is said to differ must, or docs/peers.md is out of date.
    assert.is(same(off), !differs, `loss off by ${off.loss}, gradient by ${off.gradLogits}`)
    if (parts) assert.ok(same(partsOff!), `parts off by ${partsOff!.loss}, ${partsOff!.gradLogits}`)
  })
}

test('each peer has every objective that both have', () => {
  const needed = ['grpo', 'dapo', 'dr-grpo', 'cispo', 'sapo', 'gspo', 'two-sided', 'grpo, reverse-score']
  for (const peer of ['trl', 'liger']) {
    const names = comparisons.filter(entry => entry.peer === peer && !entry.differs).map(({ name }) => name)
    for (const start of needed)
      assert.ok(
        names.some(name => name.startsWith(start)),
        `${peer}: ${start}`,
      )
  }
})

test('docs/peers.md has the table of what is the same', () => {
  const docs = readFileSync(new URL('../../docs/peers.md', import.meta.url), 'utf8')
  const names = new Set(comparisons.map(({ name }) => name))
  for (const name of names) {
    const of = (peer: string) => comparisons.find(entry => entry.name === name && entry.peer === peer)
    const cell = (entry: (typeof comparisons)[number] | undefined) =>
      entry ? (entry.differs ? 'differs' : 'same') : '–'
    const { aggregation } = comparisons.find(entry => entry.name === name)!
    const line = `| ${name} | ${aggregation} | ${cell(of('trl'))} | ${cell(of('liger'))} |`
    assert.ok(docs.includes(`\n${line}\n`), `docs/peers.md lacks ${line}`)
  }
  for (const { peer, version } of comparisons) {
    if (peer !== 'gspo-token')
      assert.ok(docs.includes(version), `docs/peers.md is not about ${peer} ${version}`)
  }
})

interface TrlFile {
  advantages: { groupSize: number; rewards: number[]; advantages: number[] }
  entries: PeerCase[]
}

test("TRL's advantages differ in what is added to the deviation alone", () => {
  const { groupSize, rewards, advantages } = readJson<TrlFile>(golden, 'trl').advantages
  const ours = groupAdvantages(rewards, groupSize)
  advantages.forEach((theirs, i) => {
    const start = i - (i % groupSize)
    const { std } = moments(rewards.slice(start, start + groupSize), 1)
    const want = (theirs * (std + 1e-4)) / (std + 1e-6)
    // A few roundings of numbers near 1.
    assert.ok(Math.abs(ours[i]! - want) <= 2 ** -50, `${i}: ${ours[i]}, want ${want}`)
  })
})

/** The rows that count, sequence after sequence. */
function packed(inputs: PeerInputs, vocabSize: number, width: number, policyWeights: string) {
  const rows = inputs.mask.flatMap((on, row) => (on ? [row] : []))
  const pick = (values: ArrayLike<number>) => Float32Array.from(rows, row => values[row]!)
  const logits = floats(inputs.logits)
  const { logprobs, entropy } = gatherLogprobs({
    vocabSize,
    logits: Float32Array.from(
      rows.flatMap(row => Array.from(logits.subarray(row * vocabSize, (row + 1) * vocabSize))),
    ),
    tokenIds: Int32Array.from(rows, row => inputs.tokenIds[row]!),
  })
  const sequenceOffsets = Int32Array.from(
    { length: inputs.advantages.length + 1 },
    (_, b) => rows.filter(row => row < b * width).length,
  )
  return {
    logprobs,
    entropy,
    samplerLogprobs: pick(floats(inputs.oldLogprobs)),
    advantages: Float32Array.from(rows, row => inputs.advantages[Math.floor(row / width)]!),
    sequenceOffsets,
    want: pick(floats(policyWeights)),
  }
}

test('topEntropyWeights and offPolicyMask choose what TRL chooses', () => {
  const shape = readJson<{ vocabSize: number; width: number; entries: PeerInputs[] }>(golden, 'inputs')
  const { entries } = readJson<TrlFile>(golden, 'trl')
  const rowsOf = (weights: string) => {
    const entry = entries.find(({ options }) => options.policy_weights === weights)!
    const inputs = shape.entries.find(({ name }) => name === entry.inputs)!
    return packed(inputs, shape.vocabSize, shape.width, entry.policyWeights!)
  }
  const entropy = rowsOf('entropy')
  assert.equal(topEntropyWeights(entropy.entropy, 0.5), entropy.want)
  const { want, ...rows } = rowsOf('off-policy')
  assert.equal(offPolicyMask(rows, 0.25).weights, want)
  assert.ok(want.includes(0) && want.includes(1))
})

test.run()
