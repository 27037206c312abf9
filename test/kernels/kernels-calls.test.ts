/** The kernels' calls: where gradients go, threads, splits, errors, buffers of every kind, promises and their end. */
import { execFile } from 'node:child_process'
import { setMaxListeners } from 'node:events'
import { readFile } from 'node:fs/promises'
import { fileURLToPath } from 'node:url'
import { inspect, promisify } from 'node:util'
import { Worker } from 'node:worker_threads'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { RapoError } from '../../lib/base/errors.js'
import {
  entropy,
  entropyAsync,
  gatherLogprobs,
  gatherLogprobsAsync,
  type LossBatch,
  logSumExp,
  logSumExpAsync,
  policyLoss,
  policyLossAsync,
  setKernelThreads,
} from '../../lib/loss/kernels.js'
import {
  cispo,
  dapo,
  defineObjective,
  describeObjective,
  drGrpo,
  emptyMetrics,
  grpo,
  gspo,
  type Objective,
  rapo,
  sapo,
} from '../../lib/loss/objective.js'
import { rowArrays, rowOutputs } from '../../lib/loss/rows.js'
import { locateKernels } from '../../lib/setup/addons.js'
import { fromLogits, makeCase, oracle, raw, small } from '../helpers/kernels-cases.js'
import { exact, logSoftmax } from '../helpers/kernels-formula.js'

const objective = rapo({ klCoef: 0.3, entropyCoef: 0.05 })

function large(rows = 64, V = 20001): LossBatch<Float32Array> {
  return makeCase(V, rows, 'float32', objective, 7).batch as LossBatch<Float32Array>
}

/** A batch that takes about a tenth of a second. */
function lasting(): LossBatch<Float32Array> {
  const rows = 2000
  return {
    vocabSize: 20000,
    logits: new Float32Array(rows * 20000),
    tokenIds: new Int32Array(rows),
    tokenWeights: new Float32Array(rows).fill(1),
    advantages: new Float32Array(rows).fill(1),
  }
}

function throws(run: () => unknown, code: string, message: RegExp): void {
  try {
    run()
  } catch (error) {
    assert.instance(error, RapoError, String(error))
    assert.is((error as RapoError).code, code, String(error))
    assert.match((error as RapoError).message, message)
    return
  }
  assert.unreachable(`nothing was thrown; expected ${message}`)
}

async function rejects(promise: Promise<unknown>, code: string, message: RegExp): Promise<void> {
  const outcome = await promise.then(
    () => () => undefined,
    error => () => {
      throw error
    },
  )
  throws(outcome, code, message)
}

test('in place gives the bits of a fresh gradient', () => {
  for (const dtype of ['float32', 'bfloat16', 'float16'] as const) {
    const { batch } = makeCase(1000, 24, dtype, objective, 1)
    const fresh = policyLoss(batch, objective, { perToken: true })
    const inPlace = policyLoss(batch, objective, { grad: 'in-place', perToken: true })
    assert.is(inPlace.gradLogits, batch.logits)
    assert.equal(inPlace.gradLogits, fresh.gradLogits)
    assert.equal(inPlace.perToken, fresh.perToken)
    assert.equal(inPlace.metrics, fresh.metrics)
  }
})

test('without a gradient the values are the same', () => {
  const batch = large()
  const none = policyLoss(batch, objective, { grad: 'none' })
  assert.is(none.gradLogits, undefined)
  assert.is(none.perToken, undefined)
  assert.equal(none.metrics, policyLoss(batch, objective).metrics)
})

test('no rows at all', () => {
  const empty = { ...small(), logits: new Float32Array(0), refLogits: new Float32Array(0) }
  const none = new Float32Array(0)
  const { loss, gradLogits, metrics } = policyLoss(
    {
      ...empty,
      tokenIds: new Int32Array(0),
      tokenWeights: none,
      advantages: none,
      refWeights: none,
      oldLogprobs: none,
    },
    objective,
  )
  assert.is(loss + 0, 0)
  assert.is(gradLogits.length, 0)
  assert.equal(metrics, { ...emptyMetrics })
})

test('BigInt64 token ids', () => {
  const want = policyLoss(small(), objective)
  assert.equal(policyLoss({ ...small(), tokenIds: BigInt64Array.of(2n, 0n) }, objective), want)
  for (const id of [1n << 32n, (1n << 32n) + 1n, -(1n << 40n), (1n << 63n) - 1n, 3n, -1n]) {
    const batch = { ...small(), tokenIds: BigInt64Array.of(2n, id) }
    const message = new RegExp(`tokenIds\\[1\\] is ${id}, outside \\[0, 3\\)`)
    throws(() => policyLoss(batch, objective), 'ERR_RAPO_INVALID_ARGUMENT', message)
    throws(() => gatherLogprobs(pick(batch)), 'ERR_RAPO_INVALID_ARGUMENT', message)
    const masked = { ...batch, tokenWeights: Float32Array.of(0.5, 0) }
    assert.ok(Number.isFinite(policyLoss(masked, objective).loss))
  }
})

function pick({ vocabSize, logits, tokenIds }: LossBatch) {
  return { vocabSize, logits, tokenIds }
}

const invalid = 'ERR_RAPO_INVALID_ARGUMENT'
const wrong: [string, Partial<Record<keyof LossBatch, unknown>>, RegExp][] = [
  ['logits too short', { logits: new Float32Array(5) }, /logits has 5 elements, expected 6/],
  [
    'logits of another kind',
    { logits: new Float64Array(6) },
    /logits must be a Float32Array or a Uint16Array/,
  ],
  [
    'halves without a dtype',
    { logits: new Uint16Array(6) },
    /logits must be a Float32Array, not a Uint16Array/,
  ],
  ['no logits', { logits: undefined }, /logits must be a Float32Array or/],
  ['dtype', { dtype: 'int8' }, /dtype is "int8", expected float32, bfloat16 or float16/],
  ['float64', { dtype: 'float64' }, /logits must be a Float64Array, not a Float32Array/],
  ['no vocabSize', { vocabSize: undefined }, /vocabSize must be a number/],
  ['vocabSize 0', { vocabSize: 0 }, /vocabSize is 0, expected >= 1/],
  ['vocabSize not whole', { vocabSize: 2.5 }, /vocabSize must be an integer/],
  ['no refLogits', { refLogits: undefined }, /refLogits is missing, and the penalty forward needs them/],
  ['no tokenIds', { tokenIds: undefined }, /tokenIds must be an Int32Array or a BigInt64Array/],
  ['token id too large', { tokenIds: Int32Array.of(2, 3) }, /tokenIds\[1\] is 3, outside \[0, 3\)/],
  ['token id negative', { tokenIds: Int32Array.of(-1, 0) }, /tokenIds\[0\] is -1, outside \[0, 3\)/],
  [
    'weight NaN',
    { tokenWeights: Float32Array.of(1, Number.NaN) },
    /tokenWeights\[1\] is nan, expected a finite/,
  ],
  ['weights too short', { tokenWeights: Float32Array.of(1) }, /tokenWeights has 1 elements, expected 2/],
  ['advantage infinite', { advantages: Float32Array.of(1, Infinity) }, /advantages\[1\] is inf/],
  ['φ above 1', { refWeights: Float32Array.of(1.5, 0) }, /refWeights\[0\] is 1.5, expected in \[0, 1\]/],
  ['φ NaN', { refWeights: Float32Array.of(1, Number.NaN) }, /refWeights\[1\] is nan, expected in \[0, 1\]/],
  ['old log-prob NaN', { oldLogprobs: Float32Array.of(Number.NaN, 0) }, /oldLogprobs\[0\] is nan/],
  ['unknown field', { oldLogProbs: Float32Array.of(0, 0) } as object, /batch has no field oldLogProbs/],
]
for (const [name, change, message] of wrong) {
  test(`error: ${name}`, async () => {
    const batch = { ...small(), ...change } as LossBatch<Float32Array>
    for (const key of Object.keys(batch) as (keyof LossBatch)[]) {
      if (batch[key] === undefined) delete (batch as Partial<Record<keyof LossBatch, unknown>>)[key]
    }
    throws(() => policyLoss(batch, objective), invalid, message)
    await rejects(policyLossAsync(batch, objective), invalid, message)
  })
}

test('errors leave everything as it was', () => {
  const batch = { ...small(), tokenIds: Int32Array.of(2, 3) }
  const before = batch.logits.slice()
  throws(() => policyLoss(batch, objective, { grad: 'in-place' }), invalid, /tokenIds/)
  assert.equal(batch.logits, before)
})

test('errors of objective and options', () => {
  const run = (changes: object) => () => policyLoss(small(), { ...objective, ...changes } as Objective)
  throws(run({ penalty: 'kl' }), invalid, /penalty is kl, expected one of none, forward/)
  throws(run({ klCoef: -1 }), invalid, /klCoef is -1/)
  throws(run({ klCoef: Number.NaN }), invalid, /klCoef is NaN/)
  throws(run({ entropyCoef: Infinity }), invalid, /entropyCoef is Infinity/)
  throws(run({ clipLow: 1.1 }), invalid, /clipLow is 1.1, expected a number in \[0, 1\]/)
  throws(run({ clipHigh: -0.1 }), invalid, /clipHigh is -0.1/)
  throws(run({ temperature: 0 }), invalid, /temperature is 0/)
  throws(run({ maxLogRatio: 20.5 }), invalid, /maxLogRatio is 20.5, expected a number in \(0, 20\]/)
  throws(run({ maxLogRatio: 21 }), invalid, /maxLogRatio is 21, expected a number in \(0, 20\]/)
  throws(run({ surrogate: 'ppo' }), invalid, /surrogate is ppo, expected one of clip, cispo, sapo, gspo/)
  throws(run({ ratioCap: 1.1 }), invalid, /ratioCap is 1.1, expected a number ≥ 1 \+ clipHigh = 1.2/)
  throws(
    run({ surrogate: 'cispo', ratioCap: 3 }),
    invalid,
    /ratioCap is given, but the surrogate cispo does not read it: clip and gspo do/,
  )
  throws(run({ sapoTauPositive: 1 }), invalid, /sapoTauPositive is given, but the surrogate clip does not/)
  throws(run({ surrogate: 'sapo' }), invalid, /sapo does not clip/)
  throws(run({ clipHi: 0.3 }), invalid, /objective has no field clipHi/)
  throws(run({ penalty: 'none' }), invalid, /klCoef is 0.3, but there is no penalty/)
  throws(run({ penalty: 'none', klCoef: 0 }), invalid, /refLogits are given, but the penalty is none/)
  throws(run({ penalty: 'reverse-k3' }), invalid, /refWeights\[1\] is 0.5, but the penalty reverse-k3/)
  throws(() => policyLoss(small(), objective, { grad: 'old' as 'new' }), invalid, /grad is old/)
  throws(
    () => policyLoss(small(), objective, { grad: new Float32Array(5) }),
    invalid,
    /gradLogits has 5 elements, expected 6/,
  )
  const shared = new Float32Array(9)
  throws(
    () => policyLoss({ ...small(), logits: shared.subarray(0, 6) }, objective, { grad: shared.subarray(3) }),
    invalid,
    /gradLogits overlaps logits/,
  )
})

/** Every array of a call, each on a part of one buffer of its own. */
function whole(change: Record<string, unknown> = {}): Record<string, unknown> {
  const outputs = {
    gradLogits: new Float32Array(6),
    ...Object.fromEntries(Object.keys(rowOutputs).map(name => [name, new Float32Array(2)])),
    clipped: new Uint8Array(2),
  }
  const policyWeights = Float32Array.of(1, 2)
  const call = { ...small(), policyWeights, ...outputs, rows: 2, dtype: 'float32', gradDtype: 'float32' }
  return { ...call, objective, ...change }
}

const outputNames = ['gradLogits', ...Object.keys(rowOutputs)]
const inputNames = ['logits', 'refLogits', ...Object.keys(rowArrays)]

test('an output that overlaps an input or another output is refused', async () => {
  const arrays = whole() as Record<string, Float32Array>
  raw.policyLoss(whole())
  for (const output of outputNames) {
    for (const other of [...inputNames, ...outputNames]) {
      if (other === output) continue
      // The last entry of the one is the first of the other.
      const bytes = new ArrayBuffer(64)
      const one = arrays[output]!
      const two = arrays[other]!
      const width = Math.max(one.BYTES_PER_ELEMENT, two.BYTES_PER_ELEMENT)
      const lastOf = (array: Float32Array) => Math.ceil(array.byteLength / width) * width - width
      const place = (array: Float32Array, at: number) => {
        const moved = new (array.constructor as Float32ArrayConstructor)(bytes, at, array.length)
        moved.set(array)
        return moved
      }
      for (const [first, second] of [
        [0, lastOf(one)],
        [lastOf(two), 0],
      ] as const) {
        const later = { [other]: place(two, second), [output]: place(one, first) }
        const call = whole(later)
        const message = new RegExp(`(${output} overlaps ${other}|${other} overlaps ${output})`)
        throws(() => raw.policyLoss(call), invalid, message)
        throws(() => raw.policyLossReference(call), invalid, message)
        await rejects(new Promise(resolve => resolve(raw.policyLossAsync(call))), invalid, message)
      }
    }
  }
})

test('a gradient over refLogits, advantages or any input but the logits is refused', async () => {
  for (const name of inputNames) {
    const memory = new ArrayBuffer(32)
    const grad = new Float32Array(memory, 0, 6)
    const given = { ...small(), policyWeights: Float32Array.of(1, 2) } as Record<string, unknown>
    const array = given[name] as Float32Array
    const moved = new (array.constructor as Float32ArrayConstructor)(memory, 0, array.length)
    moved.set(array)
    const batch = { ...given, [name]: moved } as never
    if (name === 'logits') {
      const want = policyLoss(given as never, objective)
      assert.equal(policyLoss(batch, objective, { grad }).gradLogits, want.gradLogits)
      continue
    }
    const message = new RegExp(`gradLogits overlaps ${name}`)
    throws(() => policyLoss(batch, objective, { grad }), invalid, message)
    await rejects(policyLossAsync(batch, objective, { grad }), invalid, message)
  }
  const ids = new BigInt64Array(3)
  const batch = { ...small(), tokenIds: ids.subarray(0, 2) }
  throws(
    () => policyLoss(batch, objective, { grad: new Float32Array(ids.buffer) }),
    invalid,
    /overlaps tokenIds/,
  )
  const same = { ...small(), refLogits: small().logits }
  const shared = { ...same, refLogits: same.logits }
  throws(() => policyLoss(shared, objective, { grad: 'in-place' }), invalid, /gradLogits overlaps refLogits/)
  assert.ok(policyLoss(shared, objective).loss)
  const offsets = new Int32Array(7)
  const sequences = { ...small(), refWeights: Float32Array.of(1, 1), sequenceOffsets: offsets.subarray(0, 3) }
  offsets.set([0, 1, 2])
  const grad = new Float32Array(offsets.buffer, 4)
  throws(
    () => policyLoss(sequences, rapo({ surrogate: 'gspo' }), { grad }),
    invalid,
    /gradLogits overlaps sequenceOffsets/,
  )
})

test('what gatherLogprobs writes may overlap nothing', () => {
  const names = ['logprobs', 'entropy', 'logSumExp']
  for (const output of names) {
    for (const other of ['logits', 'tokenIds', ...names]) {
      if (other === output) continue
      const memory = new ArrayBuffer(24)
      const call = Object.fromEntries(names.map(name => [name, new Float32Array(2)]))
      const { logits, tokenIds } = small()
      const arrays: Record<string, Float32Array> = { logits, tokenIds: tokenIds as never, ...call }
      const moved = new (arrays[other]!.constructor as Float32ArrayConstructor)(
        memory,
        0,
        arrays[other]!.length,
      )
      moved.set(arrays[other]!)
      const wrong = { ...arrays, [other]: moved, [output]: new Float32Array(memory, 4, 2) }
      const rest = { rows: 2, vocabSize: 3, dtype: 'float32', temperature: 1 }
      const message = new RegExp(`(${output} overlaps ${other}|${other} overlaps ${output})`)
      throws(() => raw.gatherLogprobs({ ...wrong, ...rest }), invalid, message)
      throws(() => raw.gatherLogprobsReference({ ...wrong, ...rest }), invalid, message)
    }
  }
})

test('the addon takes nothing but an object for a call, and for an objective', () => {
  for (const call of [undefined, null, 1, 'call'])
    throws(() => raw.policyLoss(call as never), invalid, /the argument must be an object/)
  for (const objective of [undefined, null, 1, 'rapo'])
    throws(() => raw.policyLoss(whole({ objective })), invalid, /objective must be an object/)
  throws(() => raw.gatherLogprobs(undefined as never), invalid, /the argument must be an object/)
  throws(() => raw.policyLossOnDevice(null as never), invalid, /the argument must be an object/)
})

test('presets are complete, frozen and checked', () => {
  for (const preset of [rapo, grpo, dapo, drGrpo, gspo, cispo, sapo]) {
    assert.ok(Object.isFrozen(preset()))
    assert.match(inspect(preset()), /arXiv \d{4}\.\d{5}.*\n {2}surrogate/)
    throws(() => preset({ clipLow: 2 }), invalid, /clipLow is 2/)
  }
  assert.is(rapo().penalty, 'forward')
  assert.is(grpo().penalty, 'reverse-k3')
  assert.is(dapo().clipHigh, 0.28)
  assert.is(rapo({ clipHigh: 0.3 }).clipHigh, 0.3)
  const table = describeObjective(rapo({ klCoef: 0.125, ratioCap: 3 }))
  for (const [field, value] of Object.entries(rapo({ klCoef: 0.125, ratioCap: 3 }))) {
    assert.match(table, new RegExp(`^  ${field} +${value}( |$)`, 'm'))
  }
  assert.match(table, /arXiv 2510.03865/)
  assert.is(inspect(defineObjective(rapo())).split('\n')[0], 'objective: loss = −Σ n (g − αD + βH)')
})

const notFinite: [string, number[], number[], RegExp][] = [
  ['NaN', [0, Number.NaN, 1], [1, 1, 1], /row 1: logits\[1, 1\] is NaN/],
  ['+inf', [0, 1, Infinity], [1, 1, 1], /row 1: logits\[1, 2\] is \+inf/],
  ['only -inf', [-Infinity, -Infinity, -Infinity], [1, 1, 1], /row 1: every one of its logits is -inf/],
  ['NaN beside -inf', [-Infinity, Number.NaN, -Infinity], [1, 1, 1], /row 1: logits\[1, 1\] is NaN/],
  ['reference NaN', [0, 0, 0], [1, 1, Number.NaN], /row 1: refLogits\[1, 2\] is NaN/],
  ['reference +inf', [0, 0, 0], [Infinity, 1, 1], /row 1: refLogits\[1, 0\] is \+inf/],
  ['sampled token ruled out', [-Infinity, 0, 0], [1, 1, 1], /row 1: the logit of tokenIds\[1\] is -inf/],
]
for (const [name, logits, refLogits, message] of notFinite) {
  test(`not finite: ${name}`, () => {
    for (const isa of raw.isas()) {
      raw.setIsa(isa)
      for (const phi of [0, 0.5, 1]) {
        const batch = { ...small(), refWeights: Float32Array.of(1, phi) }
        batch.logits.set(logits, 3)
        batch.refLogits!.set(refLogits, 3)
        for (const penalty of ['forward', 'forward-full'] as const)
          throws(() => policyLoss(batch, { ...objective, penalty }), 'ERR_RAPO_NON_FINITE', message)
        if (phi === 1)
          throws(
            () => policyLoss(batch, { ...objective, penalty: 'reverse-full' }),
            'ERR_RAPO_NON_FINITE',
            message,
          )
        const masked = { ...batch, tokenWeights: Float32Array.of(0.5, 0) }
        assert.equal(policyLoss(masked, objective).gradLogits.subarray(3), new Float32Array(3))
      }
    }
    raw.setIsa('')
  })
}

test('NaN in half precision is NaN in the error', () => {
  for (const [dtype, nans] of [
    ['float16', [0x7e00, 0x7c01, 0xfe00]],
    ['bfloat16', [0x7fc0, 0x7f81, 0xffc0]],
  ] as const) {
    for (const bits of nans) {
      const batch = { vocabSize: 2, dtype, logits: Uint16Array.of(0, bits), tokenIds: Int32Array.of(0) }
      throws(() => gatherLogprobs(batch), 'ERR_RAPO_NON_FINITE', /logits\[0, 1\] is NaN/)
    }
  }
})

test('what the addon refuses by itself', () => {
  const half = { logits: new Uint16Array(6), refLogits: new Uint16Array(6), dtype: 'bfloat16' }
  const memory = new ArrayBuffer(24)
  const changes: [Record<string, unknown>, RegExp][] = [
    [
      { objective: { ...objective, ratioCap: 1.1 } },
      /ratioCap is 1.1, expected at least 1 \+ clipHigh = 1.2/,
    ],
    [
      { objective: { ...objective, surrogate: 'cispo', ratioCap: 2 } },
      /the surrogate cispo has no such bound/,
    ],
    [{ objective: { ...objective, surrogate: 'sapo' } }, /the surrogate sapo does not clip: make clipLow 1/],
    [
      { objective: { ...objective, penalty: 'forwrd' } },
      /penalty is "forwrd", expected one of none, forward/,
    ],
    [{ objective: { ...objective, surrogate: 'ppo' } }, /surrogate is "ppo", expected one of clip, cispo/],
    [
      { ...half, gradLogits: new Uint16Array(6), gradDtype: 'float16' },
      /gradDtype is float16, expected bfloat16/,
    ],
    [
      { ...half, logits: new Uint16Array(memory, 0, 6), gradLogits: new Float32Array(memory) },
      /a gradient in place must have the logits' dtype/,
    ],
    [
      {
        dtype: 'float64',
        logits: new Float64Array(6),
        refLogits: new Float64Array(6),
        gradLogits: undefined,
      },
      /dtype is float64, which only the reference takes/,
    ],
    [
      { tokenWeights: Float32Array.of(Number.NaN, 1), tokenIds: Int32Array.of(9, 0) },
      /tokenWeights\[0\] is nan/,
    ],
    [{ policyWeights: Float32Array.of(1, -1) }, /policyWeights\[1\] is -1, expected a finite number >= 0/],
    [{ policyWeights: Float32Array.of(1, Infinity) }, /policyWeights\[1\] is inf/],
    [{ refWeights: Float32Array.of(1, -0.5) }, /refWeights\[1\] is -0.5, expected in \[0, 1\]/],
    [
      { objective: { ...objective, penalty: 'none', klCoef: 0 }, refLogits: undefined },
      /refWeights\[1\] is 0.5, but the penalty none has no reference to reweight/,
    ],
  ]
  for (const [change, message] of changes) throws(() => raw.policyLoss(whole(change)), invalid, message)
  const none = {
    rows: 0,
    vocabSize: 2 ** 31 + 1,
    dtype: 'float32',
    logits: new Float32Array(0),
    temperature: 1,
  }
  throws(() => raw.gatherLogprobs(none), invalid, /vocabSize is 2147483649, expected <= 2\^31/)
  const { logits, vocabSize } = small()
  const gather = { rows: 2, vocabSize, dtype: 'float32', logits, temperature: 1 }
  throws(
    () => raw.gatherLogprobs({ ...gather, logprobs: new Float32Array(2) }),
    invalid,
    /tokenIds is missing/,
  )
})

test('arrays beside each other do not overlap, and one byte is an overlap', () => {
  const bytes = new ArrayBuffer(24)
  const kl = (at: number) => new Float32Array(bytes, at, 2)
  const clipped = (at: number) => new Uint8Array(bytes, at, 2)
  for (const [one, two] of [
    [0, 8],
    [4, 2],
    [8, 16],
  ] as const)
    assert.ok(raw.policyLoss(whole({ kl: kl(one), clipped: clipped(two) })).tokens === 2)
  for (const [one, two] of [
    [0, 7],
    [4, 3],
    [8, 15],
  ] as const)
    throws(
      () => raw.policyLoss(whole({ kl: kl(one), clipped: clipped(two) })),
      invalid,
      /kl overlaps clipped/,
    )
})

test('NaN is found wherever it is in a row, and the first bad row is named', () => {
  for (const isa of raw.isas()) {
    raw.setIsa(isa)
    for (const at of [0, 1, 127, 2047, 2048, 5000]) {
      const batch = { ...large(8, 5001), tokenWeights: new Float32Array(8).fill(1) }
      batch.tokenIds.set(new Array(8).fill(0) as never)
      batch.advantages.fill(1)
      batch.refWeights!.fill(1)
      batch.oldLogprobs!.fill(-1)
      batch.policyWeights!.fill(1)
      batch.logits.fill(0)
      batch.refLogits!.fill(0)
      batch.logits[6 * 5001 + at] = Number.NaN
      batch.refLogits![4 * 5001 + at] = Number.NaN
      throws(
        () => policyLoss(batch, objective),
        'ERR_RAPO_NON_FINITE',
        new RegExp(`row 4: refLogits\\[4, ${at}\\] is NaN`),
      )
    }
  }
  raw.setIsa('')
})

test('a penalty that becomes infinite is an error that names the row', () => {
  const batch = small()
  delete (batch as { refWeights?: unknown }).refWeights
  batch.refLogits![3] = -Infinity
  for (const penalty of [
    'reverse-score',
    'reverse-k1',
    'reverse-k2',
    'reverse-k3',
    'reverse-full',
  ] as const) {
    const run = () => policyLoss(batch, grpo({ penalty }))
    throws(run, 'ERR_RAPO_NON_FINITE', new RegExp(`row 1: the penalty ${penalty} is infinite`))
  }
  for (const penalty of ['forward', 'forward-full', 'forward-score'] as const) {
    assert.ok(Number.isFinite(policyLoss(batch, rapo({ penalty })).loss))
  }
  const other = small()
  other.logits[4] = -Infinity
  for (const refWeights of [Float32Array.of(1, 0), Float32Array.of(1, 1)]) {
    const run = () => policyLoss({ ...other, refWeights }, rapo({ penalty: 'forward-full' }))
    throws(run, 'ERR_RAPO_NON_FINITE', /row 1: the penalty forward-full is infinite/)
  }
})

test('entropy and logSumExp alone', async () => {
  const { dtype, logits, vocabSize } = {
    dtype: 'bfloat16',
    vocabSize: 5,
    logits: new Uint16Array(15),
  } as const
  logits.forEach((_, i) => {
    logits[i] = 0x3f80 + 7 * i
  })
  const rows = { vocabSize, dtype, logits, temperature: 0.7 }
  const want = gatherLogprobs({ ...rows, tokenIds: new Int32Array(3) })
  for (const [one, oneAsync, field] of [
    [entropy, entropyAsync, 'entropy'],
    [logSumExp, logSumExpAsync, 'logSumExp'],
  ] as const) {
    assert.equal(one(rows), want[field])
    assert.equal(await oneAsync(rows), want[field])
    throws(
      () => one({ ...rows, vocabSize: 4 }),
      invalid,
      /logits has 15 elements, expected whole rows of .* = 4/,
    )
    throws(() => one({ ...rows, vocabSize: 0 }), invalid, /expected whole rows of vocabSize = 0/)
    throws(() => one({ ...rows, temperature: 0 }), invalid, /temperature is 0/)
    throws(() => one({ ...rows, logits: [1] as never }), invalid, /logits must be a Float32Array or/)
  }
  assert.equal(entropy({ vocabSize: 2, logits: Float32Array.of(0, 0) }), Float32Array.of(Math.log(2)))
  assert.equal(logSumExp({ vocabSize: 2, logits: Float32Array.of(1, -Infinity) }), Float32Array.of(1))
})

test('gatherLogprobs', () => {
  for (const dtype of ['float32', 'bfloat16', 'float16'] as const) {
    const { batch, rows } = makeCase(1000, 24, dtype, objective, 2)
    const kept = rows.flatMap((row, i) => (row ? [i] : []))
    const logits = kept.map(i => batch.logits.subarray(i * 1000, (i + 1) * 1000))
    const all = new (batch.logits.constructor as Float32ArrayConstructor)(kept.length * 1000)
    logits.forEach((row, k) => {
      all.set(row, k * 1000)
    })
    const gather = {
      vocabSize: 1000,
      dtype,
      logits: all,
      tokenIds: Int32Array.from(kept, i => batch.tokenIds[i] as number),
      temperature: 0.7,
    }
    const want = {
      logprobs: new Float32Array(kept.length),
      entropy: new Float32Array(kept.length),
      logSumExp: new Float32Array(kept.length),
    }
    raw.gatherLogprobsReference({ ...gather, ...want, rows: kept.length })
    for (const isa of raw.isas()) {
      raw.setIsa(isa)
      const got = gatherLogprobs(gather)
      kept.forEach((i, k) => {
        const l = logSoftmax(fromLogits(logits[k]!, dtype), 1, 0.7, exact)
        assert.is(want.logprobs[k], Math.fround(l[rows[i]!.tokenId]!))
        // The sum's float lanes add at most 64 terms each, whose roundings (2^-24) mostly cancel: log Σ may be off
        // by a few of them, and the rest is the rounding of the result.
        for (const field of ['logprobs', 'entropy', 'logSumExp'] as const) {
          const [g, w] = [got[field][k]!, want[field][k]!]
          assert.ok(
            Math.abs(g - w) <= 16 * 2 ** -24 * Math.max(1, Math.abs(w)),
            `${isa} ${field} ${k}: ${g}, ${w}`,
          )
        }
      })
    }
    raw.setIsa('')
  }
  const masked = { vocabSize: 2, logits: Float32Array.of(0, -Infinity), tokenIds: Int32Array.of(1) }
  assert.equal(gatherLogprobs(masked).logprobs, Float32Array.of(-Infinity))
  throws(() => gatherLogprobs({ ...masked, tokenIds: Int32Array.of(2) }), invalid, /tokenIds\[0\] is 2/)
})

test('shared memory, and arrays with an offset', () => {
  const want = policyLoss(small(), objective)
  const shared = new Float32Array(new SharedArrayBuffer(40), 8, 6)
  shared.set(small().logits)
  assert.equal(policyLoss({ ...small(), logits: shared }, objective), want)
  assert.equal(policyLoss({ ...small(), logits: shared }, objective, { grad: 'in-place' }).loss, want.loss)
  assert.equal(Float32Array.from(shared), want.gradLogits)
})

test('detached and resized buffers throw', async () => {
  for (const field of ['logits', 'refLogits', 'tokenIds', 'tokenWeights'] as const) {
    const batch = small()
    structuredClone(batch[field]!.buffer, { transfer: [batch[field]!.buffer as ArrayBuffer] })
    if (field !== 'tokenIds')
      throws(() => policyLoss(batch, objective), invalid, new RegExp(`${field} is detached`))
    else throws(() => policyLoss(batch, objective), invalid, /detached|expected 0/)
  }
  const grad = new Float32Array(6)
  structuredClone(grad.buffer, { transfer: [grad.buffer] })
  throws(() => policyLoss(small(), objective, { grad }), invalid, /gradLogits is detached/)

  const Resizable = ArrayBuffer as unknown as new (
    n: number,
    o: object,
  ) => ArrayBuffer & { resize(n: number): void }
  const buffer = new Resizable(24, { maxByteLength: 48 })
  const logits = new Float32Array(buffer)
  logits.set(small().logits)
  assert.equal(policyLoss({ ...small(), logits }, objective), policyLoss(small(), objective))
  await rejects(
    policyLossAsync({ ...small(), logits }, objective),
    invalid,
    /logits is on a resizable buffer/,
  )
  buffer.resize(16)
  throws(() => policyLoss({ ...small(), logits }, objective), invalid, /logits has 4 elements, expected 6/)
})

/** A batch whose arrays are written to as soon as a call has them. */
function written() {
  const { batch } = makeCase(1000, 48, 'float32', objective, 3)
  const rows = batch.tokenIds.length
  const spoil = () => {
    for (const name of Object.keys(rowArrays) as (keyof LossBatch)[]) {
      const array = batch[name] as Float32Array | undefined
      array?.fill(2 ** 30 + 7) // as an id far outside of the logits' memory; as a weight it unmasks the row
    }
    batch.sequenceOffsets?.fill(2 ** 30)
  }
  return { batch, rows, spoil }
}

test('writing to the row arrays during an asynchronous call changes nothing', async () => {
  for (const surrogate of ['clip', 'gspo'] as const) {
    const changed = { ...objective, surrogate }
    const make = () => {
      const { batch, rows, spoil } = written()
      const one = Float32Array.from(batch.tokenWeights, n => (n === 0 ? 0 : 0.5))
      const offsets = { sequenceOffsets: Int32Array.of(0, rows) }
      if (surrogate === 'gspo') {
        Object.assign(batch, { ...offsets, tokenWeights: one })
        batch.advantages.fill(1)
        batch.policyWeights!.fill(1)
      }
      return { batch, spoil }
    }
    const want = policyLoss(make().batch, changed, { perToken: true })
    for (const wide of [false, true]) {
      const { batch, spoil } = make()
      const ids = BigInt64Array.from(batch.tokenIds as Int32Array, BigInt)
      const call = policyLossAsync(wide ? { ...batch, tokenIds: ids } : batch, changed, { perToken: true })
      ids.fill(1n << 30n)
      spoil()
      assert.equal(await call, want)
    }
  }
  const gather = () => ({ ...pick(lasting()), tokenIds: new Int32Array(2000).fill(3) })
  const batch = gather()
  const call = gatherLogprobsAsync(batch)
  batch.tokenIds.fill(2 ** 30)
  assert.equal(await call, gatherLogprobs(gather()))
})

test('row arrays may be resized or transferred during an asynchronous call', async () => {
  const want = policyLoss(small(), objective)
  for (const name of Object.keys(rowArrays) as (keyof LossBatch)[]) {
    const batch = small() as unknown as Record<string, Float32Array>
    if (!batch[name]) continue
    const buffer = batch[name].buffer as ArrayBuffer
    const call = policyLossAsync(batch as never, objective)
    structuredClone(buffer, { transfer: [buffer] })
    assert.is(batch[name].length, 0)
    assert.equal(await call, want)
  }
})

test('transferring a matrix during an asynchronous call makes its result void', async () => {
  for (const name of ['logits', 'refLogits', 'gradLogits'] as const) {
    const batch = small()
    const grad = new Float32Array(6)
    const array = name === 'gradLogits' ? grad : (batch[name] as Float32Array)
    const call = policyLossAsync(batch, objective, { grad })
    const kept = structuredClone(array.buffer, { transfer: [array.buffer as ArrayBuffer] })
    await rejects(call, invalid, new RegExp(`${name} was transferred elsewhere while the call ran`))
    assert.is(kept.byteLength, 24) // the memory's new owner, alive until the call is over
  }
  const { logits, vocabSize } = small()
  const call = entropyAsync({ logits, vocabSize })
  const kept = structuredClone(logits.buffer, { transfer: [logits.buffer as ArrayBuffer] })
  await rejects(call, invalid, /logits was transferred elsewhere while the call ran/)
  assert.is(kept.byteLength, 24)
})

/** Runs in a worker: writes valid and invalid ids, weights and offsets to shared memory until it is ended. */
const writer = `
  const { parentPort, workerData } = require('node:worker_threads')
  const { ids, weights, offsets } = workerData
  parentPort.postMessage('writing')
  for (;;) {
    ids.fill(2 ** 30); weights.fill(1); offsets[1] = 2 ** 30
    ids.fill(1); offsets[1] = 8; weights.fill(0)
  }
`

test('another thread may write to shared row arrays at any time', async () => {
  const rows = 16
  const sharedBytes = () => new SharedArrayBuffer(4 * rows)
  const ids = new Int32Array(sharedBytes())
  const weights = new Float32Array(sharedBytes())
  const offsets = new Int32Array(sharedBytes(), 0, 3)
  offsets.set([0, 8, rows])
  const batch = {
    vocabSize: 3,
    logits: new Float32Array(3 * rows),
    tokenIds: ids,
    tokenWeights: weights,
    advantages: new Float32Array(rows).fill(1),
    oldLogprobs: new Float32Array(rows).fill(-1),
  }
  const worker = new Worker(writer, { eval: true, workerData: { ids, weights, offsets } })
  await new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject))
  let outcomes = 0
  for (let i = 0; i < 3000; ++i) {
    for (const run of [
      () => policyLoss(batch, dapo()),
      () => policyLoss({ ...batch, sequenceOffsets: offsets }, gspo()),
      () => gatherLogprobs(pick(batch)),
    ]) {
      try {
        run()
      } catch (error) {
        assert.is((error as RapoError).code, invalid)
      }
      ++outcomes
    }
  }
  await worker.terminate()
  assert.is(outcomes, 9000)
})

test('async gives what sync gives, also several at once', async () => {
  const batches = [large(16), large(3, 50), large(40, 3001)]
  const want = batches.map(batch => policyLoss(batch, objective, { perToken: true }))
  const got = await Promise.all(batches.map(batch => policyLossAsync(batch, objective, { perToken: true })))
  assert.equal(got, want)
  const { logits, vocabSize, tokenIds } = { ...large(4), tokenIds: Int32Array.of(0, 1, 2, 3) }
  logits.fill(1)
  const gather = { logits, vocabSize, tokenIds }
  assert.equal(await gatherLogprobsAsync(gather), gatherLogprobs(gather))
})

const manyCalls = 200
/** Starts so many calls that most of them wait for others; each tells `order` how it ended. */
function startMany(order: unknown[], signal?: AbortSignal): Promise<unknown>[] {
  const batch = lasting()
  if (signal) setMaxListeners(manyCalls, signal)
  return Array.from({ length: manyCalls }, () =>
    policyLossAsync(batch, dapo(), { grad: 'none', ...(signal && { signal }) }).then(
      () => order.push('done'),
      error => order.push(error),
    ),
  )
}

test('an AbortSignal stops a call, which rejects with its reason', async () => {
  const early: unknown[] = []
  await Promise.all(startMany(early, AbortSignal.abort('no')))
  assert.ok(early.every(reason => reason === 'no'))
  const order: unknown[] = []
  const controller = new AbortController()
  const reason = new Error('enough')
  setKernelThreads(1)
  const calls = startMany(order, controller.signal)
  controller.abort(reason)
  await Promise.all(calls)
  setKernelThreads(0)
  assert.is(order.at(-1), reason)
  for (const each of order) assert.ok(each === reason || each === 'done', String(each))
  await rejects(policyLossAsync(small(), objective, { signal: 1 as never }), invalid, /signal is 1/)
})

test('async calls leave the event loop, and the threads that files need, to others', async () => {
  const order: unknown[] = []
  const controller = new AbortController()
  setKernelThreads(1)
  const calls = startMany(order, controller.signal)
  await new Promise(setImmediate)
  await readFile(fileURLToPath(import.meta.url))
  const before = order.length
  controller.abort('aborted')
  await Promise.all(calls)
  setKernelThreads(0)
  // In line with the calls, the file would have been read after all but the last few.
  assert.ok(before < manyCalls - 10, `the file was read after ${before} calls`)
})

/** Runs in a worker: starts async calls without end and says so. */
const busyWorker = `
  const { parentPort, workerData } = require('node:worker_threads')
  const addon = require(workerData.addon)
  const rows = 256, vocabSize = 20000
  const logits = new Float32Array(rows * vocabSize)
  const one = new Float32Array(rows).fill(1)
  const { objective } = workerData
  const batch = { objective, rows, vocabSize, dtype: 'float32', logits, tokenIds: new Int32Array(rows), tokenWeights: one, advantages: one }
  const run = () => addon.policyLossAsync({ ...batch, control: new addon.Control() }).then(run)
  for (let i = 0; i < 3; ++i) run()
  setTimeout(() => parentPort.postMessage('running'), 20)
`

test('worker threads end in the middle of calls', async () => {
  const workerData = { addon: locateKernels(), objective: { ...dapo() } }
  for (let i = 0; i < 5; ++i) {
    const worker = new Worker(busyWorker, { eval: true, workerData })
    await new Promise((resolve, reject) => worker.once('message', resolve).once('error', reject))
    assert.is(await worker.terminate(), 1)
  }
  assert.ok(policyLoss(small(), objective).loss)
})

test('a process that loads the addon in workers alone, or exits in the middle of calls, ends cleanly', async () => {
  const program = `
    const { Worker } = require('node:worker_threads')
    const workerData = ${JSON.stringify({ addon: locateKernels(), objective: dapo() })}
    const end = process.argv[1]
    const start = () => new Promise(resolve => {
      const worker = new Worker(${JSON.stringify(busyWorker)}, { eval: true, workerData })
      worker.once('message', () => resolve(worker))
    })
    start().then(worker => worker.terminate()).then(start).then(worker => {
      if (end === 'exit') process.exit(7)
      return worker.terminate().then(() => { process.exitCode = 7 })
    })
  `
  for (const end of ['exit', 'return']) {
    const error = await promisify(execFile)(process.execPath, ['-e', program, end]).catch(e => e)
    assert.is(error.code, 7, `${end}: ${error.signal ?? ''} ${error.stderr}`)
  }
  const main = `
    const addon = require(${JSON.stringify(locateKernels())})
    const rows = 256, vocabSize = 20000, one = new Float32Array(rows).fill(1)
    const objective = ${JSON.stringify(dapo())}
    const batch = { objective, rows, vocabSize, dtype: 'float32', logits: new Float32Array(rows * vocabSize), tokenIds: new Int32Array(rows), tokenWeights: one, advantages: one }
    const run = () => addon.policyLossAsync(batch).then(run)
    run(); run()
    setTimeout(() => process.exit(7), 20)
  `
  const error = await promisify(execFile)(process.execPath, ['-e', main]).catch(e => e)
  assert.is(error.code, 7, `${error.signal ?? ''} ${error.stderr}`)
})

test('once a process exits no call runs: none writes to an array any more', async () => {
  const program = `
    const addon = require(${JSON.stringify(locateKernels())})
    addon.setThreads(1)
    const rows = 256, vocabSize = 20000, one = new Float32Array(rows).fill(1)
    const objective = ${JSON.stringify(dapo())}
    const logits = new Float32Array(rows * vocabSize)
    const batch = { objective, rows, vocabSize, dtype: 'float32', logits, tokenIds: new Int32Array(rows), tokenWeights: one, advantages: one }
    const grads = Array.from({ length: 8 }, () => {
      const gradLogits = new Float32Array(rows * vocabSize)
      addon.policyLossAsync({ ...batch, gradLogits, gradDtype: 'float32' })
      return gradLogits
    })
    const isWritten = () => grads.map(grad => Array.from({ length: rows }, (_, i) => grad[i * vocabSize] !== 0 ? 1 : 0).join(''))
    process.on('exit', () => {
      const before = isWritten()
      for (const end = Date.now() + 100; Date.now() < end;);
      process.exitCode = before.join() === isWritten().join() ? 7 : 8
    })
    process.exit()
  `
  const error = await promisify(execFile)(process.execPath, ['-e', program]).catch(e => e)
  assert.is(error.code, 7, `${error.signal ?? ''} ${error.stderr}`)
})

test('the pool ends with the last worker thread that loaded the addon', async () => {
  if (process.platform !== 'linux') return
  const program = `
    const { Worker } = require('node:worker_threads')
    const { readdirSync } = require('node:fs')
    const count = () => readdirSync('/proc/self/task').length
    const workerData = ${JSON.stringify({ addon: locateKernels(), objective: dapo() })}
    const work = \`
      const { workerData } = require('node:worker_threads')
      const addon = require(workerData.addon)
      addon.setThreads(5)
      const rows = 64, vocabSize = 20000, one = new Float32Array(rows).fill(1)
      const { objective } = workerData, logits = new Float32Array(rows * vocabSize)
      const count = () => require('node:fs').readdirSync('/proc/self/task').length
      const before = count()
      addon.policyLoss({ objective, rows, vocabSize, dtype: 'float32', logits, tokenIds: new Int32Array(rows), tokenWeights: one, advantages: one })
      require('node:worker_threads').parentPort.postMessage(count() - before)\`
    const run = code => new Promise(resolve => {
      let added
      new Worker(code, { eval: true, workerData }).on('message', number => (added = number)).once('exit', () => resolve(added))
    })
    run('').then(() => {
      const before = count()
      return run(work).then(added => console.log(added, count() - before))
    })
  `
  const { stdout } = await promisify(execFile)(process.execPath, ['-e', program])
  // The call's own thread is one of the five.
  assert.is(stdout, '4 0\n')
})

test('a large gradient in a new array lies in huge pages; an array of the caller’s is left as it is', async () => {
  if (process.platform !== 'linux') return
  const elements = 2 ** 24
  // Bytes of the process's memory for which huge pages were asked ("hg").
  const advised = async () => {
    const maps = (await readFile('/proc/self/smaps', 'utf8')).split(/\n(?=[0-9a-f]+-)/)
    return maps.filter(map => /^VmFlags:.* hg/m.test(map)).reduce((sum, map) => sum + sizeOf(map), 0)
  }
  const sizeOf = (map: string) => 1024 * Number(/^Size: +(\d+)/m.exec(map)![1])
  const batch: LossBatch = {
    vocabSize: elements / 2,
    logits: new Float32Array(elements),
    tokenIds: Int32Array.of(1, 2),
    tokenWeights: Float32Array.of(0.5, 0.5),
    advantages: Float32Array.of(1, -1),
  }
  const plain = defineObjective({ ...grpo(), penalty: 'none', klCoef: 0 })
  const before = await advised()
  const own = new Float32Array(elements)
  policyLoss(batch, plain, { grad: own })
  assert.is(await advised(), before)
  const { gradLogits } = policyLoss(batch, plain)
  const after = await advised()
  // All but the parts of a page of 2 MiB at its ends.
  assert.ok(after - before > 4 * elements - 2 ** 22, `${after - before}`)
  assert.equal(gradLogits.subarray(0, 9), own.subarray(0, 9))
})

test('the addon alone, without the package: its errors have a code', async () => {
  const program = `
    const addon = require(${JSON.stringify(locateKernels())})
    try { addon.policyLoss(null) } catch (error) { console.log(error instanceof Error, error.code) }`
  const { stdout } = await promisify(execFile)(process.execPath, ['-e', program])
  assert.is(stdout, 'true ERR_RAPO_INVALID_ARGUMENT\n')
})

test('RAPO_KERNELS_ISA chooses the instruction set', async () => {
  const file = fileURLToPath(new URL('../../lib/loss/kernels.ts', import.meta.url))
  const program = `import { kernelsInfo } from ${JSON.stringify(file)}; console.log(kernelsInfo().isa)`
  const run = (isa: string) =>
    promisify(execFile)(process.execPath, ['--import', 'tsx', '--input-type=module', '-e', program], {
      env: { ...process.env, RAPO_KERNELS_ISA: isa },
    })
  assert.is((await run('portable')).stdout, 'portable\n')
  const error = await run('mmx').catch(e => e)
  assert.match(error.stderr, /RAPO_KERNELS_ISA is "mmx", expected one that this machine has: .*portable/)
})

test('the oracle and the fast path count the same', () => {
  const case_ = makeCase(17, 48, 'float32', objective, 11)
  const { metrics } = oracle(case_, objective)
  const fast = policyLoss(case_.batch, objective).metrics
  for (const name of ['tokens', 'clippedLow', 'clippedHigh', 'klClamped'] as const)
    assert.is(fast[name], metrics[name])
})

test.run()
