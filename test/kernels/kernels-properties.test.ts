/**
 * What holds for every batch, on random ones (fast-check): every instruction set, dtype, penalty, surrogate and kind of
 * row that makeCase has. A failure prints the seed, the smallest counterexample found, and how to run it again;
 * RAPO_SEED repeats a whole run, RAPO_RUNS makes it longer.
 */
import fc from 'fast-check'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { createRandom, type Random } from '../../lib/base/random.js'
import {
  gatherLogprobs,
  kernelsInfo,
  type Logits,
  type LossBatch,
  type PerToken,
  policyLoss,
  setKernelThreads,
} from '../../lib/loss/kernels.js'
import {
  addMetrics,
  defineObjective,
  emptyMetrics,
  type Objective,
  type ObjectiveMetrics,
  penalties,
  surrogates,
} from '../../lib/loss/objective.js'
import { type Case, fromLogits, makeCase, raw, toLogits } from '../helpers/kernels-cases.js'
import { exact, type FormulaRow, float32, formula, u32 } from '../helpers/kernels-formula.js'

const shapes = {
  /** Around the vectors' widths and the blocks of the passes. */
  vocabSize: fc.oneof(fc.integer({ min: 1, max: 70 }), fc.constantFrom(127, 128, 129, 255, 1000, 2047, 2049)),
  rows: fc.integer({ min: 1, max: 12 }),
  dtype: fc.constantFrom('float32', 'bfloat16', 'float16'),
  penalty: fc.constantFrom(...penalties),
  surrogate: fc.constantFrom(...surrogates),
  temperature: fc.constantFrom(1, 0.3, 0.7, 1.6, 10),
  klCoef: fc.constantFrom(0.3, 0, 0.02, 4),
  entropyCoef: fc.constantFrom(0.05, 0, 1),
  maxLogRatio: fc.constantFrom(20, 1),
  isTwoSided: fc.boolean(),
  /** Otherwise every ratio is 1. */
  withOld: fc.boolean(),
  seed: fc.nat(),
} as const
const shape = fc.record(shapes)
type Shape = typeof shape extends fc.Arbitrary<infer T> ? T : never

/** A property, on every instruction set. */
function property<T extends Shape>(
  name: string,
  arbitrary: fc.Arbitrary<T>,
  body: (shape: T, random: Random) => void,
  runs = 150,
): void {
  test(name, () => {
    const { RAPO_SEED: seed, RAPO_RUNS: times = '1' } = process.env
    const everywhere = fc.property(arbitrary, drawn => {
      for (const isa of raw.isas()) {
        raw.setIsa(isa)
        body(drawn, createRandom(drawn.seed))
      }
    })
    fc.assert(everywhere, {
      numRuns: runs * Number(times),
      ...(seed !== undefined && { seed: Number(seed) }),
    })
  })
}

function objectiveOf({
  penalty,
  surrogate,
  temperature,
  entropyCoef,
  maxLogRatio,
  ...shape
}: Shape): Objective {
  const clips = surrogate === 'clip' || surrogate === 'gspo'
  return defineObjective({
    penalty,
    surrogate,
    temperature,
    entropyCoef,
    maxLogRatio,
    klCoef: penalty === 'none' ? 0 : shape.klCoef,
    clipLow: clips ? 0.2 : 1,
    clipHigh: clips ? 0.2 : surrogate === 'cispo' ? 0.5 : Infinity,
    ...(clips && shape.isTwoSided && { ratioCap: 1.5 }),
  })
}

type Units = readonly (readonly number[])[]

interface Drawn {
  readonly case_: Case
  readonly batch: Case['batch']
  readonly objective: Objective
  /** Rows that cannot be torn apart: sequences under gspo, single rows otherwise. */
  readonly units: Units
}

/** makeCase's rows, and for gspo the sequences that they make up. */
function draw(shape: Shape, random: Random): Drawn {
  const objective = objectiveOf(shape)
  const { vocabSize: V, rows: N, dtype, withOld } = shape
  const case_ = makeCase(V, N, dtype, objective, random.below(1e6), withOld)
  const { batch, rows } = case_
  if (shape.surrogate !== 'gspo') return { case_, batch, objective, units: rows.map((_, i) => [i]) }
  const units: number[][] = []
  for (let i = 0; i < N; ) {
    const length = Math.min(N - i, 1 + random.below(4))
    units.push(Array.from({ length }, (_, k) => i + k))
    i += length
  }
  for (const unit of units) {
    const trained = unit.filter(i => rows[i])
    for (const i of trained.slice(1)) {
      for (const field of ['tokenWeights', 'advantages', 'policyWeights'] as const) {
        batch[field]![i] = batch[field]![trained[0]!]!
      }
    }
  }
  return { case_, batch: { ...batch, sequenceOffsets: offsetsOf(units) }, objective, units }
}

function offsetsOf(units: Units): Int32Array {
  const offsets = new Int32Array(units.length + 1)
  units.forEach((unit, b) => {
    offsets[b + 1] = offsets[b]! + unit.length
  })
  return offsets
}

/** The batch of these units alone, in this order. */
function take(batch: Case['batch'], units: Units): Case['batch'] {
  const ids = units.flat()
  const pick = <T extends Logits | LossBatch['tokenIds']>(array: T, width: number): T => {
    const out = new (array.constructor as new (n: number) => T)(ids.length * width)
    ids.forEach((i, k) => {
      out.set(array.subarray(i * width, (i + 1) * width) as never, k * width)
    })
    return out
  }
  const arrays = Object.entries(batch).flatMap(([field, value]) => {
    if (!ArrayBuffer.isView(value) || field === 'sequenceOffsets') return []
    return [[field, pick(value as Logits, field.endsWith('ogits') ? batch.vocabSize : 1)]]
  })
  return {
    ...batch,
    ...Object.fromEntries(arrays),
    ...(batch.sequenceOffsets && { sequenceOffsets: offsetsOf(units) }),
  }
}

const bytes = (x: ArrayBufferView) => Buffer.from(x.buffer, x.byteOffset, x.byteLength)
const rowOf = <T extends Logits>(array: T, i: number, V: number) => array.subarray(i * V, (i + 1) * V) as T

interface Result {
  readonly metrics: ObjectiveMetrics
  readonly gradLogits: Logits
  readonly perToken: PerToken
}

const run = (batch: LossBatch, objective: Objective): Result =>
  policyLoss(batch, objective, { perToken: true })
/** Gradients in float32, for what is measured and not only compared. */
function runWide(batch: LossBatch, objective: Objective) {
  const gradLogits = new Float32Array(batch.logits.length)
  const { metrics, perToken } = policyLoss(batch, objective, { grad: gradLogits, perToken: true })
  return { gradLogits, metrics, perToken }
}

/** The same in everything that comes back, the gradient to the bit. */
function assertSame(got: Result, want: Result, name: string): void {
  assert.equal(got.metrics, want.metrics, `${name}: metrics`)
  assert.ok(bytes(got.gradLogits).equals(bytes(want.gradLogits)), `${name}: gradient`)
  assert.equal(got.perToken, want.perToken, `${name}: per token`)
}

const isForward = (penalty: string) => penalty.startsWith('forward')
const forwardShape = fc.record({
  ...shapes,
  penalty: fc.constantFrom(...penalties.filter(isForward)),
})
const withPenalty = fc.record({
  ...shapes,
  penalty: fc.constantFrom(...penalties.filter(penalty => penalty !== 'none')),
})

property('a constant added to all logits of a row changes no bit', shape, (shape, random) => {
  const { batch, objective } = draw(shape, random)
  const V = batch.vocabSize
  // On a grid, and small enough that logit + shift is a number of the type: then logit − max comes out the same.
  const [step, most, mostShift] = batch.dtype === 'float32' ? [0.25, 1e4, 4000] : [1, 60, 60]
  const onGrid = (x: number) =>
    Number.isFinite(x) ? Math.max(-most, Math.min(most, Math.round(x / step) * step)) : x
  const grid = (logits: Logits) => fromLogits(logits, batch.dtype).map(onGrid)
  const shifts = () =>
    batch.advantages.map(() => step * (random.below((2 * mostShift) / step) - mostShift / step))
  const shifted = (logits: Float64Array, by: Float32Array) => logits.map((x, i) => x + by[Math.floor(i / V)]!)
  const [logits, refLogits] = [grid(batch.logits), batch.refLogits && grid(batch.refLogits)]
  const make = (z: Float64Array, u: Float64Array | undefined) => ({
    ...batch,
    logits: toLogits(z, batch.dtype),
    ...(u && { refLogits: toLogits(u, batch.dtype) }),
  })
  const plain = make(logits, refLogits)
  const moved = make(shifted(logits, shifts()), refLogits && shifted(refLogits, shifts()))
  assertSame(run(moved, objective), run(plain, objective), 'shifted')
})

/** gspo's ratios, from what the kernels found: what is tested with them is not the ratios. */
function formulaRowsOf(
  { case_: { rows }, batch, units }: Drawn,
  logprobs: Float32Array,
): (FormulaRow | undefined)[] {
  const isGspo = batch.sequenceOffsets !== undefined
  const all = rows.map(
    (row, i) =>
      row && {
        ...row,
        weight: batch.tokenWeights[i]!,
        advantage: batch.advantages[i]!,
        policyWeight: batch.policyWeights![i]!,
      },
  )
  for (const unit of units) {
    const trained = unit.filter(i => all[i])
    const mean =
      trained.reduce((x, i) => x + (batch.oldLogprobs ? logprobs[i]! - batch.oldLogprobs[i]! : 0), 0) /
      trained.length
    if (isGspo) for (const i of trained) all[i] = { ...all[i]!, sequenceLogRatio: mean }
  }
  return all
}

/** What an element of a row's gradient may be off by, as kernels.test.ts derives it, stored in float32. */
function allowance(row: FormulaRow, objective: Objective): number {
  const [want, naive] = [formula(row, objective, exact), formula(row, objective, float32)]
  const lost = want.grad.reduce((x, g, v) => Math.max(x, Math.abs(g - naive.grad[v]!)), 0)
  const largest = want.grad.reduce((x, g) => Math.max(x, Math.abs(g)), 0)
  return 2 * lost + 4 * u32 * want.gradScale + u32 * largest
}

const smallShape = fc.record({ ...shapes, vocabSize: fc.integer({ min: 1, max: 130 }) })

property(
  'permuting the vocabulary permutes the gradient; every row of it sums to 0',
  smallShape,
  (shape, random) => {
    const drawn = draw(shape, random)
    const { batch, objective } = drawn
    const V = batch.vocabSize
    const order = random.shuffle(Array.from({ length: V }, (_, v) => v))
    const permute = <T extends Logits>(x: T) => x.map((_, i) => x[i - (i % V) + order[i % V]!]!) as T
    const ids = batch.tokenIds as Int32Array
    const base = runWide(batch, objective)
    const permuted = runWide(
      {
        ...batch,
        logits: permute(batch.logits),
        ...(batch.refLogits && { refLogits: permute(batch.refLogits) }),
        tokenIds: ids.map(id => (id < 0 ? id : order.indexOf(id))),
      },
      objective,
    )
    const rows = formulaRowsOf(drawn, base.perToken.logprobs)
    assert.equal(permuted.metrics.tokens, base.metrics.tokens)
    // Nothing sharper than the kink of a clip: a ratio on a bound may fall on either side of it.
    rows.forEach((row, i) => {
      const got: Float32Array = rowOf(permuted.gradLogits, i, V)
      const want: Float32Array = permute(rowOf(base.gradLogits, i, V))
      const allowed = row ? allowance(row, objective) : 0
      const off = got.reduce((x, g, v) => Math.max(x, Math.abs(g - want[v]!)), 0)
      // Both may be off.
      assert.ok(off <= 2 * allowed, `row ${i}: permuted is off by ${off}, allowed ${2 * allowed}`)
      // Each of V elements may be off, and what they add up to is 0 without it.
      const sum = want.reduce((x, g) => x + g, 0)
      assert.ok(Math.abs(sum) <= V * allowed, `row ${i}: sums to ${sum}, allowed ${V * allowed}`)
    })
  },
)

const alike = fc.record({
  ...shapes,
  penalty: fc.constant('forward' as const),
  likeness: fc.constantFrom('same', 'shuffled', 'near', 'none'),
})

property('w d − w + 1 is never negative, and 0 just where q = lp', alike, (shape, random) => {
  const { batch, objective } = draw(shape, random)
  const V = batch.vocabSize
  const { dtype, tokenIds } = batch
  const { likeness } = shape
  const z = fromLogits(batch.logits, dtype)
  const refLogits = z.slice()
  batch.advantages.forEach((_, i) => {
    const row = refLogits.subarray(i * V, (i + 1) * V)
    const a = tokenIds[i] as number
    // The same words in another order: the sum, so q, differs by a rounding or not at all.
    if (likeness === 'shuffled') {
      const others = random.shuffle([...row].filter((_, v) => v !== a))
      row.set([...others.slice(0, Math.max(0, a)), row[a] ?? 0, ...others.slice(Math.max(0, a))].slice(0, V))
    }
    if (likeness === 'near') for (let v = 0; v < V; ++v) row[v]! *= 1 + 2 ** -(4 + random.below(20))
  })
  const changed = likeness === 'none' ? batch : { ...batch, refLogits: toLogits(refLogits, dtype) }
  const weights = likeness === 'none' ? batch.refWeights! : new Float32Array(batch.advantages.length).fill(1)
  const { perToken } = run({ ...changed, refWeights: weights }, objective)
  const { logprobs, refLogprobs, kl } = perToken
  kl.forEach((D, i) => {
    if (batch.tokenWeights[i] === 0) return
    const [lp, q] = [logprobs[i]!, refLogprobs[i]!]
    // d e^d − (e^d − 1) in double: both terms are |d| large and each is off by at most an ulp.
    const rounded = 2 ** -51 * (Math.abs(q - lp) + u32 * (Math.abs(q) + Math.abs(lp)))
    if (q > -Infinity) assert.ok(D >= -rounded, `row ${i}: D = ${D} at lp ${lp}, q ${q}`)
    else assert.is(D, 1)
    // The two passes add up the same e^x, at most 64 of them in float32, but may round them elsewhere: D = d²/2.
    if (likeness === 'same') assert.ok(D <= (64 * u32) ** 2 / 2, `row ${i}: D = ${D}, lp ${lp}, q ${q}`)
    // d²/2 is lost in that rounding below |d| = 2^-50; lp and q themselves were rounded to float32.
    const isEqual = Math.abs(q - lp) <= 2 ** -50 + u32 * (Math.abs(q) + Math.abs(lp))
    if (D === 0) assert.ok(isEqual, `row ${i}: D = 0, but lp is ${lp} and q ${q}`)
    if (q > -Infinity && !isEqual) assert.ok(D > 0, `row ${i}: D = ${D}, but lp is ${lp} and q ${q}`)
  })
})

property('φ = 1 is no reweighting', withPenalty, (shape, random) => {
  const { batch, objective } = draw(shape, random)
  const { refWeights: _, ...without } = batch
  const withOnes = { ...without, refWeights: batch.advantages.map(() => 1) }
  assertSame(run(withOnes, objective), run(without, objective), 'φ = 1')
})

property('φ = 0 is a uniform reference, whatever the reference says', forwardShape, (shape, random) => {
  const { batch, objective } = draw(shape, random)
  const finite = (x: number) => (x === -Infinity ? -30 : x) // a word that the policy rules out has no finite forward KL
  const logits = toLogits(fromLogits(batch.logits, batch.dtype).map(finite), batch.dtype)
  const phi = (value: number) => ({ ...batch, logits, refWeights: batch.advantages.map(() => value) })
  const constant = toLogits(new Float64Array(logits.length).fill(random.below(9) - 4), batch.dtype)
  const [zero, uniform] = [run(phi(0), objective), run({ ...phi(1), refLogits: constant }, objective)]
  if (shape.penalty !== 'forward-full') return assertSame(zero, uniform, 'φ = 0')
  // The exact KL takes its sums over the policy's row at a scale of 2^-126 there: the same numbers, otherwise rounded.
  const { kl, entropy, logprobs } = zero.perToken
  kl.forEach((D, i) => {
    // Σ (q − ℓ)/V: float32 sums of V terms of this size, at most 64 of them before they go into a double.
    const size = Math.log(batch.vocabSize) + Math.abs(logprobs[i]!) + entropy[i]! + Math.abs(D)
    const want = uniform.perToken.kl[i]!
    assert.ok(Math.abs(D - want) <= 64 * u32 * size, `row ${i}: D = ${D}, of a uniform reference ${want}`)
  })
})

property('a batch split any way adds up', shape, (shape, random) => {
  const { batch, objective, units } = draw(shape, random)
  const V = batch.vocabSize
  const whole = run(batch, objective)
  const parts: number[][][] = [[], [], [], []]
  for (const unit of units) parts[random.below(4)]!.push([...unit])
  let sum: ObjectiveMetrics = emptyMetrics
  for (const part of parts) {
    const got = run(take(batch, part), objective)
    sum = addMetrics(sum, got.metrics)
    part.flat().forEach((i, k) => {
      assert.ok(
        bytes(rowOf(got.gradLogits, k, V)).equals(bytes(rowOf(whole.gradLogits, i, V))),
        `row ${i}: gradient`,
      )
      for (const [field, array] of Object.entries(got.perToken)) {
        const want = whole.perToken[field as keyof PerToken]
        assert.is(array[k], want[i], `row ${i}: ${field}`)
      }
    })
  }
  // Sums of the same doubles in another order: a rounding of the running sum for each of them.
  const sizes = units.map(unit => run(take(batch, [unit]), objective).metrics)
  for (const name of Object.keys(emptyMetrics) as (keyof ObjectiveMetrics)[]) {
    if (sum[name] === whole.metrics[name]) continue
    const size = sizes.reduce((x, metrics) => x + Math.abs(metrics[name]), 0)
    const allowed = 2 * batch.advantages.length * 2 ** -52 * size
    assert.ok(
      Math.abs(sum[name] - whole.metrics[name]) <= allowed,
      `${name}: ${sum[name]}, ${whole.metrics[name]}`,
    )
  }
})

property(
  'masked rows may hold anything, get exact zeros, and might as well not be there',
  shape,
  (shape, random) => {
    const { batch, objective, units } = draw(shape, random)
    const V = batch.vocabSize
    const masked = new Set<number>()
    batch.tokenWeights.forEach((n, i) => {
      if (n === 0 || random.below(3) === 0) masked.add(i)
    })
    const garbage = () => random.pick([Number.NaN, Infinity, -Infinity, 1e30, -0, 3])
    const fill = <T extends Logits>(array: T, width: number) =>
      array.map((x, k) => {
        if (!masked.has(Math.floor(k / width))) return x
        return array instanceof Float32Array ? garbage() : random.below(65536)
      }) as T
    const dirty = {
      ...batch,
      logits: fill(batch.logits, V),
      ...(batch.refLogits && { refLogits: fill(batch.refLogits, V) }),
      tokenIds: (batch.tokenIds as Int32Array).map((id, i) =>
        masked.has(i) ? random.below(2 ** 31) - 2 ** 30 : id,
      ),
      tokenWeights: batch.tokenWeights.map((n, i) => (masked.has(i) ? 0 : n)),
      advantages: fill(batch.advantages, 1),
      policyWeights: fill(batch.policyWeights!, 1),
      ...(batch.refWeights && { refWeights: fill(batch.refWeights, 1) }),
      ...(batch.oldLogprobs && { oldLogprobs: fill(batch.oldLogprobs, 1) }),
    }
    // In place, so that a row that is left alone shows.
    const inPlace = { ...dirty, logits: dirty.logits.slice() }
    const got = policyLoss(inPlace, objective, { grad: 'in-place', perToken: true })
    const kept = units.map(unit => unit.filter(i => !masked.has(i)))
    const want = run(take(dirty, kept), objective)
    assert.equal(got.metrics, want.metrics, 'metrics')
    let k = 0
    batch.advantages.forEach((_, i) => {
      const row = bytes(rowOf(got.gradLogits, i, V))
      if (masked.has(i)) {
        assert.ok(
          row.every(byte => byte === 0),
          `row ${i}: gradient of a masked row`,
        )
        for (const [field, array] of Object.entries(got.perToken))
          assert.is(array[i], 0, `row ${i}: masked ${field}`)
      } else {
        assert.ok(row.equals(bytes(rowOf(want.gradLogits, k++, V))), `row ${i}: gradient`)
      }
    })
  },
)

property('a policy weight scales the policy term alone', shape, (shape, random) => {
  const { batch, objective, units } = draw(shape, random)
  // Powers of two, which scale without rounding: w·g(A) and g(w·A) are then one number.
  const weights = batch.policyWeights!.slice()
  for (const unit of units) {
    const w = random.pick([0.25, 0.5, 1, 2, 8])
    for (const i of unit) if (batch.tokenWeights[i] !== 0) weights[i] = w
  }
  const weighted = run({ ...batch, policyWeights: weights }, objective)
  const { policyWeights: _, ...plain } = batch
  const scaled = run({ ...plain, advantages: batch.advantages.map((A, i) => A * weights[i]!) }, objective)
  assertSame(weighted, scaled, 'weighted')
})

const large = fc.record({
  ...shapes,
  vocabSize: fc.constantFrom(600, 1800, 5001),
  rows: fc.integer({ min: 1, max: 60 }),
  threads: fc.integer({ min: 2, max: 7 }),
})

property(
  'the same bits for any number of threads, and from run to run',
  large,
  (shape, random) => {
    const { batch, objective } = draw(shape, random)
    setKernelThreads(1)
    const one = run(batch, objective)
    setKernelThreads(shape.threads)
    assert.is(kernelsInfo().threads, shape.threads)
    for (const time of ['first', 'second'])
      assertSame(run(batch, objective), one, `${shape.threads} threads, ${time}`)
    setKernelThreads(0)
  },
  20,
)

property('gatherLogprobs and the loss find the same log-probs and entropies', shape, (shape, random) => {
  const { batch, objective, units } = draw(shape, random)
  const trained = take(
    batch,
    units.map(unit => unit.filter(i => batch.tokenWeights[i] !== 0)),
  )
  const { perToken } = run(trained, objective)
  const { vocabSize, dtype, logits, tokenIds } = trained
  const got = gatherLogprobs({ vocabSize, dtype, logits, tokenIds, temperature: shape.temperature })
  // The full penalties' passes read both models' rows together and add in another order.
  const size = (x: number) => (shape.penalty.endsWith('full') ? 64 * u32 * Math.max(1, Math.abs(x)) : 0)
  for (const field of ['logprobs', 'entropy'] as const) {
    got[field].forEach((x, i) => {
      const off = Math.abs(x - perToken[field][i]!)
      assert.ok(off <= size(x), `row ${i}: ${field} ${x}, of the loss ${perToken[field][i]}`)
    })
  }
})

test.after.each(() => {
  raw.setIsa('')
  setKernelThreads(0)
})
test.run()
