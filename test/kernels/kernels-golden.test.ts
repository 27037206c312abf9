/**
 * The kernels against scripts/make-loss-golden.py: the same objective by torch, float64 and autograd, from files.
 *
 * Oracle. Both sides are double precision. They differ by the order of sums and by how exp, log and what cancels in a
 * penalty are written: a few dozen roundings (2^-53 ≈ 1e-16) of numbers as large as the largest of the case, which
 * exp(d), d ≤ 20, may magnify twentyfold. 1e-12 is a thousand times that or more, and a millionth of what a slip in
 * float32 would show.
 *
 * Kernels. No tolerance of ours: torch computed the same case plainly in float32, bfloat16 and float16 and recorded how
 * far it came from float64. The kernels may be as far as that in the logits' type, and also no further than it was in
 * float32 (they compute in float32 or wider whatever the logits are), but for one rounding: that of storing the result.
 */
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { type LogitsDType, type LossBatch, policyLoss } from '../../lib/loss/kernels.js'
import type { ObjectiveMetrics } from '../../lib/loss/objective.js'
import { defineObjective, type Objective, penalties } from '../../lib/loss/objective.js'
import { type Aggregation, aggregations, tokenWeights } from '../../lib/model/batch.js'
import { fromLogits, raw, toLogits } from '../helpers/kernels-cases.js'

const dtypes = ['float32', 'bfloat16', 'float16'] as const
const perTokenFields = ['logprobs', 'refLogprobs', 'kl', 'entropy', 'ratio'] as const
type PerTokenField = (typeof perTokenFields)[number]
type Field = PerTokenField | 'loss' | 'gradLogits'
/** By dtype and field: the plain implementation's largest error; null where it overflowed. */
type Naive<F extends Field> = Record<LogitsDType, Partial<Record<F, number | null>>>

interface GoldenCase {
  objective: Objective
  policyWeights: boolean
  perToken: Record<PerTokenField, string>
  naive: Naive<PerTokenField>
  aggregations: Record<
    Aggregation,
    { loss: number; gradLogits?: string; naive: Naive<'loss' | 'gradLogits'> }
  >
}

interface GoldenInputs {
  vocabSize: number
  maxLength: number
  masked: number[]
  sequenceOffsets: number[]
  tokenIds: number[]
  advantages: number[]
  refWeights: number[]
  policyWeights: number[]
  logits: string
  refLogits: string
  oldLogprobs: Record<string, string>
}

interface WideCase {
  vocabSize: number
  objective: Objective
  oldLogprobs: string
  loss: number
  perToken: Record<PerTokenField, string>
  gradAtToken: string
  gradAt: number[]
  gradPicked: string
  naive: Naive<Field>
}

interface WideInputs {
  sequenceOffsets: number[]
  advantages: number[]
  refWeights: number[]
  salts: Record<'logits' | 'refLogits', number>
}

function read<T>(name: string): T {
  const file = fileURLToPath(new URL(`../golden/loss/${name}.json`, import.meta.url))
  return JSON.parse(readFileSync(file, 'utf8'), (_, value) => (value === 'Infinity' ? Infinity : value))
}

const bytes = (base64: string) => new Uint8Array(Buffer.from(base64, 'base64')).buffer
const doubles = (base64: string) => new Float64Array(bytes(base64))
const floats = (base64: string) => new Float32Array(bytes(base64))
const largest = (values: Iterable<number>) => {
  let most = 0
  for (const value of values) if (Number.isFinite(value)) most = Math.max(most, Math.abs(value))
  return most
}

/** With logits in double, which stand for every dtype: they are exact in all three. */
type WideBatch = Omit<LossBatch, 'logits' | 'refLogits' | 'tokenIds'> & {
  logits: Float64Array
  refLogits?: Float64Array
  tokenIds: Int32Array
}

function batchOf(inputs: GoldenInputs, golden: GoldenCase, aggregation: Aggregation): WideBatch {
  const { objective } = golden
  const { sequenceOffsets, vocabSize } = inputs
  const perSequence = tokenWeights(
    sequenceOffsets.slice(1).map((end, b) => ({
      completionMask: inputs.masked.slice(sequenceOffsets[b], end).map(masked => 1 - masked),
    })),
    aggregation,
    inputs.maxLength,
  )
  const sequenceOf = (row: number) => sequenceOffsets.findLastIndex(start => start <= row)
  return {
    vocabSize,
    logits: Float64Array.from(floats(inputs.logits)),
    ...(objective.penalty !== 'none' && { refLogits: Float64Array.from(floats(inputs.refLogits)) }),
    tokenIds: Int32Array.from(inputs.tokenIds),
    tokenWeights: Float32Array.from(inputs.masked, (masked, i) => (masked ? 0 : perSequence[sequenceOf(i)]!)),
    advantages: Float32Array.from(inputs.advantages),
    ...(objective.penalty.startsWith('forward') && { refWeights: Float32Array.from(inputs.refWeights) }),
    oldLogprobs: floats(inputs.oldLogprobs[spell(objective.temperature)]!),
    ...(golden.policyWeights && { policyWeights: Float32Array.from(inputs.policyWeights) }),
    ...(objective.surrogate === 'gspo' && { sequenceOffsets: Int32Array.from(sequenceOffsets) }),
  }
}

/** As Python spells it. */
const spell = (tau: number) => (Number.isInteger(tau) ? tau.toFixed(1) : String(tau))

function oracle(batch: WideBatch, objective: Objective) {
  const gradLogits = new Float64Array(batch.logits.length)
  const call = { ...batch, objective, rows: batch.tokenIds.length, dtype: 'float64' }
  const metrics = raw.policyLossReference({ ...call, gradLogits, gradDtype: 'float64' })
  return { metrics, gradLogits }
}

/** Rows `from` to `to` alone, as one sequence. */
function slice(batch: WideBatch, from: number, to: number): WideBatch {
  const V = batch.vocabSize
  const cut = Object.fromEntries(
    Object.entries(batch).map(([field, value]) => {
      if (typeof value !== 'object') return [field, value]
      return [field, field.endsWith('ogits') ? value.subarray(from * V, to * V) : value.subarray(from, to)]
    }),
  ) as unknown as WideBatch
  return batch.sequenceOffsets ? { ...cut, sequenceOffsets: Int32Array.of(0, to - from) } : cut
}

const double = 1e-12

function close(got: ArrayLike<number>, want: ArrayLike<number>, scale: number, name: string): void {
  for (let i = 0; i < want.length; ++i) {
    const [x, y] = [got[i]!, want[i]!]
    if (x === y || Math.abs(x - y) <= double * scale) continue // equal: infinities
    assert.unreachable(`${name}[${i}] is ${x}, want ${y} ± ${double * scale}`)
  }
}

/** Sums of each sequence alone, in double, and each row's number as far as float32 tells. */
function checkOracleRows(
  name: string,
  batch: WideBatch,
  objective: Objective,
  offsets: readonly number[],
  perToken: Want['perToken'],
): void {
  const sums = { kl: 'klSum', entropy: 'entropySum', ratio: 'ratioSum' } as const
  for (let b = 0; b + 1 < offsets.length; ++b) {
    const [from, to] = [offsets[b]!, offsets[b + 1]!]
    const { metrics } = oracle(slice(batch, from, to), objective)
    for (const field of ['kl', 'entropy', 'ratio'] as const) {
      const values = perToken[field].subarray(from, to)
      const want = values.reduce((x, y) => x + y, 0)
      const size = Math.max(1, largest(values))
      close([metrics[sums[field]]], [want], size, `${name}, sequence ${b}: ${sums[field]}`)
    }
  }
  const rows = batch.tokenIds.length
  const outputs = Object.fromEntries(perTokenFields.map(field => [field, new Float32Array(rows)]))
  raw.policyLossReference({ ...batch, ...outputs, objective, rows, dtype: 'float64' })
  for (const field of perTokenFields) {
    perToken[field].forEach((want, i) => {
      const got = outputs[field]![i]!
      // One rounding to float32, of a number that may lie on the other side of a tie.
      const allowed = Math.abs(want) * 2 ** -23 + double
      assert.ok(
        got === want || Math.abs(got - want) <= allowed,
        `${name} row ${i}: ${field} is ${got}, want ${want}`,
      )
    })
  }
}

/** What storing x in a type may lose: half the distance to its neighbours. */
function storageError(x: number, dtype: LogitsDType): number {
  const [bits, least] = { float32: [24, -126], bfloat16: [8, -126], float16: [11, -14] }[dtype] as [
    number,
    number,
  ]
  return 2 ** (Math.max(Math.floor(Math.log2(Math.abs(x))), least) - bits)
}

interface Want {
  perToken: Record<PerTokenField, Float64Array>
  loss: number
  gradLogits: Float64Array | undefined
}

function checkKernels(
  name: string,
  batch: WideBatch,
  objective: Objective,
  dtype: LogitsDType,
  want: Want,
  naive: Naive<Field>,
): void {
  const { logits, refLogits, ...rest } = batch
  const call = {
    ...rest,
    dtype,
    logits: toLogits(logits, dtype),
    ...(refLogits && { refLogits: toLogits(refLogits, dtype) }),
  }
  const { loss, gradLogits, perToken } = policyLoss(call, objective, { perToken: true })
  const within = (field: Field, got: ArrayLike<number>, want: ArrayLike<number>, stored: LogitsDType) => {
    const computed = Math.min(naive[dtype][field] ?? Infinity, naive.float32[field]!)
    for (let i = 0; i < want.length; ++i) {
      const [x, y] = [got[i]!, want[i]!]
      if (x === y) continue // infinities among them
      if (stored === 'float16' && Math.abs(y) >= 65520 && x === Math.sign(y) * Infinity) continue
      const allowed = computed + storageError(y, stored)
      if (Math.abs(x - y) <= allowed) continue
      assert.unreachable(
        `${name} ${dtype}: ${field}[${i}] is ${x}, want ${y} ± ${allowed} (off by ${Math.abs(x - y)})`,
      )
    }
  }
  for (const field of perTokenFields) within(field, perToken[field], want.perToken[field], 'float32')
  within('loss', [loss], [want.loss], 'float32')
  if (want.gradLogits) within('gradLogits', fromLogits(gradLogits, dtype), want.gradLogits, dtype)
}

const decodeRows = (perToken: Record<PerTokenField, string>) =>
  Object.fromEntries(perTokenFields.map(field => [field, doubles(perToken[field])])) as Record<
    PerTokenField,
    Float64Array
  >

function* goldens(file: string) {
  const { inputs, cases } = read<{ inputs: GoldenInputs; cases: GoldenCase[] }>(file)
  for (const golden of cases) {
    const objective = defineObjective(golden.objective)
    const perToken = decodeRows(golden.perToken)
    for (const aggregation of aggregations) {
      const { loss, gradLogits, naive } = golden.aggregations[aggregation]
      const name = `${file} ${objective.surrogate} ${objective.penalty} ${aggregation}`
      const batch = batchOf(inputs, golden, aggregation)
      const want = { perToken, loss, gradLogits: gradLogits === undefined ? undefined : doubles(gradLogits) }
      const errors = Object.fromEntries(
        dtypes.map(dtype => [dtype, { ...golden.naive[dtype], ...naive[dtype] }]),
      ) as Naive<Field>
      yield { name, objective, aggregation, inputs, batch, want, naive: errors }
    }
  }
}

const surrogateFiles = ['clip', 'two-sided', 'cispo', 'sapo', 'gspo']
const extremeFiles = ['clamped', 'limits', 'forward-limits']

for (const file of [...surrogateFiles, ...extremeFiles]) {
  test(`${file}: the oracle is torch's autograd`, () => {
    for (const { name, objective, aggregation, inputs, batch, want } of goldens(file)) {
      const { metrics, gradLogits } = oracle(batch, objective)
      const parts = sequenceLosses(batch, objective, inputs.sequenceOffsets)
      close([metrics.loss], [want.loss], Math.max(1, largest(parts)), `${name}: loss`)
      // A gradient of 0 is what remains of terms as large as their row's weight.
      const scale = Math.max(largest(want.gradLogits ?? []), largest(batch.tokenWeights))
      if (want.gradLogits) close(gradLogits, want.gradLogits, scale, `${name}: gradLogits`)
      if (aggregation === aggregations[0]) {
        checkOracleRows(name, batch, objective, inputs.sequenceOffsets, want.perToken)
      }
    }
  })

  test(`${file}: every instruction set and dtype is as exact as plain torch`, () => {
    for (const { name, objective, batch, want, naive } of goldens(file)) {
      for (const isa of raw.isas()) {
        raw.setIsa(isa)
        for (const dtype of dtypes) checkKernels(`${isa} ${name}`, batch, objective, dtype, want, naive)
      }
    }
  })
}

function sequenceLosses(batch: WideBatch, objective: Objective, offsets: readonly number[]): number[] {
  return offsets.slice(1).map((to, b) => oracle(slice(batch, offsets[b]!, to), objective).metrics.loss)
}

test('the goldens hold every combination, and rows on each side of every bound', () => {
  for (const file of surrogateFiles) {
    const seen = new Set<string>()
    const clipped = new Set<number>()
    let clamped = 0
    for (const { objective, aggregation, batch } of goldens(file)) {
      seen.add(`${objective.penalty} ${aggregation}`)
      const outputs = { clipped: new Uint8Array(batch.tokenIds.length) }
      const call = { ...batch, ...outputs, objective, rows: batch.tokenIds.length, dtype: 'float64' }
      const metrics: ObjectiveMetrics = raw.policyLossReference(call)
      for (const kind of outputs.clipped) clipped.add(kind)
      clamped += metrics.klClamped
    }
    assert.is(seen.size, penalties.length * aggregations.length, file)
    assert.equal([...clipped].sort(), file === 'sapo' ? [0] : [0, 1, 2], file)
    assert.ok(clamped > 0, file)
  }
})

/** As in scripts/make-loss-golden.py. */
function hashedLogits(count: number, salt: number): Float64Array {
  return Float64Array.from({ length: count }, (_, i) => {
    let x = Math.imul(i + salt, 0x9e3779b1)
    x = Math.imul(x ^ (x >>> 15), 0x85ebca6b)
    x = Math.imul(x ^ (x >>> 13), 0xc2b2ae35)
    x ^= x >>> 16
    return ((x & 127) + ((x >>> 7) & 127) - 127) / 16
  })
}

for (const vocabSize of [1000, 32003, 151936]) {
  test(`V = ${vocabSize}: oracle and every instruction set and dtype`, () => {
    const { inputs, cases } = read<{ inputs: WideInputs; cases: WideCase[] }>('wide')
    for (const golden of cases.filter(golden => golden.vocabSize === vocabSize)) {
      const objective = defineObjective(golden.objective)
      const name = `V ${vocabSize} ${objective.penalty}`
      const rows = inputs.advantages.length
      const lengths = inputs.sequenceOffsets.slice(1).map((end, b) => end - inputs.sequenceOffsets[b]!)
      const batch: WideBatch = {
        vocabSize,
        logits: hashedLogits(rows * vocabSize, inputs.salts.logits),
        ...(objective.penalty !== 'none' && {
          refLogits: hashedLogits(rows * vocabSize, inputs.salts.refLogits),
        }),
        tokenIds: Int32Array.from({ length: rows }, (_, i) => (i * 7919 + 17) % vocabSize),
        tokenWeights: Float32Array.from(lengths.flatMap(n => new Array(n).fill(1 / (lengths.length * n)))),
        advantages: Float32Array.from(inputs.advantages),
        ...(objective.penalty.startsWith('forward') && { refWeights: Float32Array.from(inputs.refWeights) }),
        oldLogprobs: floats(golden.oldLogprobs),
      }
      const perToken = decodeRows(golden.perToken)
      const { metrics, gradLogits } = oracle(batch, objective)
      close([metrics.loss], [golden.loss], Math.max(1, Math.abs(golden.loss)), `${name}: loss`)
      checkOracleRows(name, batch, objective, inputs.sequenceOffsets, perToken)
      const scale = largest(doubles(golden.gradAtToken))
      const at = (row: number, v: number) => gradLogits[row * vocabSize + v]!
      const ofTokens = Array.from(batch.tokenIds, (id, row) => at(row, id))
      close(ofTokens, doubles(golden.gradAtToken), scale, `${name}: gradient of tokens`)
      const picked = ofTokens.flatMap((_, row) => golden.gradAt.map(v => at(row, v)))
      close(picked, doubles(golden.gradPicked), scale, `${name}: gradient of picked words`)
      for (const isa of raw.isas()) {
        raw.setIsa(isa)
        for (const dtype of dtypes) {
          const want = { perToken, loss: golden.loss, gradLogits }
          checkKernels(`${isa} ${name}`, batch, objective, dtype, want, golden.naive)
        }
      }
    }
  })
}

test.after.each(() => raw.setIsa(''))
test.run()
