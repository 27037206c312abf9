import { writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { RapoError } from '../../lib/base/errors.js'
import { makeBatch, oracle, spread, validate } from '../../lib/bench/batch.js'
import { benchChart } from '../../lib/bench/chart.js'
import { measureBench } from '../../lib/bench/measure.js'
import { findPython } from '../../lib/bench/peer.js'
import {
  type BenchReport,
  type BenchResult,
  compareBench,
  formatBench,
  formatComparison,
  readBench,
} from '../../lib/bench/results.js'
import { runBench } from '../../lib/cli/commands.js'
import { policyLoss } from '../../lib/loss/kernels.js'
import { rapo } from '../../lib/loss/objective.js'
import { makeTempDir } from '../helpers/fake-policy.js'

const dir = makeTempDir()
// Whatever this machine has: these tests are about rapo alone.
process.env.RAPO_PYTHON = path.join(dir, 'no-python')

const fails = async (work: () => unknown, code: string, message: RegExp) => {
  try {
    await work()
  } catch (error) {
    assert.instance(error, RapoError)
    assert.is((error as RapoError).code, code)
    return assert.match((error as RapoError).message, message)
  }
  assert.unreachable('nothing was thrown')
}

const at = (median: number, half: number) => ({ median, low: median - half, high: median + half })
const result = (changes: Partial<BenchResult> = {}): BenchResult => ({
  name: 'rapo',
  dtype: 'float32',
  rows: 128,
  vocabSize: 1000,
  ms: at(10, 1),
  ratios: {},
  ...changes,
})
const reportOf = (results: BenchResult[], cpu = 'a CPU'): BenchReport => ({
  machine: { cpu, cores: 2, platform: 'linux-x64', node: 'v20.0.0', isa: 'avx2', threads: 2 },
  rapo: '0.1.0',
  rounds: 15,
  results,
})

test('spread: median and the order statistics of its interval', () => {
  const upTo = (n: number) => Array.from({ length: n }, (_, i) => n - i)
  // Conover's table: of 15 values the 4th and 12th bound the median at 96.5 %, of 6 the extremes at 96.9 %.
  // The normal approximation is one order wider for 15.
  assert.equal(spread(upTo(15)), { median: 8, low: 3, high: 13 })
  assert.equal(spread(upTo(6)), { median: 3.5, low: 1, high: 6 })
  assert.equal(spread([2]), { median: 2, low: 2, high: 2 })
  const { low, high } = spread(upTo(101))
  assert.equal([low, high], [40, 62])
})

test('a result that is not the oracle’s is refused', () => {
  const objective = rapo()
  for (const dtype of ['float32', 'bfloat16'] as const) {
    const batch = makeBatch(dtype, 3, 500)
    const { loss, gradLogits } = policyLoss(batch, objective)
    const check = (value: number, grad = gradLogits) =>
      validate('it', { loss: value, grad }, oracle(batch, objective), objective, 64, 500)
    check(loss)
    assert.throws(() => check(loss + 1e-4), /it: the loss is .*; not timed/)
    const wrong = gradLogits.slice()
    // One sign.
    if (wrong instanceof Uint16Array) wrong[(batch.tokenIds[1] as number) + 500]! ^= 0x8000
    else wrong[(batch.tokenIds[1] as number) + 500]! *= -1
    assert.throws(() => check(loss, wrong), /it: gradient \[1, \d+\] is .*; not timed/)
  }
})

test('measureBench: every batch, without torch, with the reason', async () => {
  const lines: string[] = []
  const report = await measureBench({
    dtypes: ['float32', 'bfloat16'],
    rows: [2, 3],
    vocabSize: 300,
    rounds: 6,
    threads: 1,
    onLine: line => lines.push(line),
  })
  assert.equal(
    report.results.map(({ name, dtype, rows }) => `${dtype} ${rows} ${name}`),
    ['float32 2', 'float32 3', 'bfloat16 2', 'bfloat16 3'].flatMap(batch =>
      ['rapo', 'rapo, into a new array', 'rapo, value alone'].map(name => `${batch} ${name}`),
    ),
  )
  for (const { ms, ratios } of report.results) {
    assert.ok(0 < ms.low && ms.low <= ms.median && ms.median <= ms.high)
    assert.equal(ratios, {})
  }
  assert.is(report.machine.threads, 1)
  assert.not('torch' in report.machine)
  assert.match(lines[0]!, 'torch: skipped')
  assert.match(lines[1]!, `${process.env.RAPO_PYTHON}: no`)
})

test('findPython: RAPO_PYTHON alone, where it is set', async () => {
  const found = await findPython({ ...process.env, RAPO_PYTHON: 'no-such-python' })
  assert.equal(found, { reasons: ['no-such-python: no no-such-python on PATH'] })
})

test('the files of rapo bench: JSON that reads back, a chart, a table', async () => {
  const json = path.join(dir, 'a.json')
  const svg = path.join(dir, 'a.svg')
  const printed: string[] = []
  const { log, error } = console
  console.log = text => printed.push(text)
  console.error = () => {}
  try {
    await runBench({ dtype: 'float32', rows: [2], vocab: 100, rounds: 6, threads: 1, json, svg })
    const report = readBench(json)
    assert.is(printed[0], formatBench(report))
    await runBench({ dtype: '', rows: [], vocab: 0, rounds: 0, threads: 0, compare: [json, json] })
    assert.match(printed[1]!, '0 of 3 differ beyond noise')
    assert.not.match(printed[1]!, 'not the same machine')
  } finally {
    Object.assign(console, { log, error })
  }
})

test('--compare takes two files', async () => {
  const values = { dtype: '', rows: [], vocab: 0, rounds: 0, threads: 0 }
  for (const compare of [['a.json'], ['a.json', 'b.json', 'c.json']]) {
    await fails(() => runBench({ ...values, compare }), 'ERR_RAPO_CONFIG', /--compare takes two files/)
  }
})

test('readBench: errors name the file and the field', async () => {
  const file = path.join(dir, 'bad.json')
  await fails(() => readBench(path.join(dir, 'none.json')), 'ERR_RAPO_IO', /none\.json/)
  writeFileSync(file, '{')
  await fails(() => readBench(file), 'ERR_RAPO_FORMAT', /bad\.json: /)
  const { machine, ...rest } = reportOf([result()])
  writeFileSync(file, JSON.stringify({ ...rest, machine: { ...machine, cores: 'two' } }))
  await fails(() => readBench(file), 'ERR_RAPO_FORMAT', /bad\.json: machine\.cores: /)
})

test('compareBench: what both measured; beyond noise where the intervals do not touch', () => {
  const before = reportOf([
    result({ ratios: { 'torch eager': at(5, 0.5), gone: at(1, 0) } }),
    result({ rows: 512 }),
    result({ name: 'only before' }),
  ])
  const after = reportOf([
    result({ ms: at(7, 1), ratios: { 'torch eager': at(5.5, 0.1), new: at(2, 0) } }),
    result({ rows: 512, ms: at(12, 1) }),
    result({ dtype: 'bfloat16' }),
  ])
  assert.equal(compareBench(before, after), [
    { what: 'float32, 128 × 1000 logits: rapo', unit: 'ms', before: 10, after: 7, isBeyondNoise: true },
    // 5 ± 0.5 and 5.5 ± 0.1 overlap.
    {
      what: 'float32, 128 × 1000 logits: rapo against torch eager',
      unit: '×',
      before: 5,
      after: 5.5,
      isBeyondNoise: false,
    },
    // 10 ± 1 and 12 ± 1 touch.
    { what: 'float32, 512 × 1000 logits: rapo', unit: 'ms', before: 10, after: 12, isBeyondNoise: false },
  ])
  const text = formatComparison(before, after)
  assert.match(text, /: rapo +10\.00 ms → +7\.00 ms +−30\.0 % {2}better\n/)
  assert.match(text, /eager +5\.00 × → +5\.50 × +\+10\.0 % {2}within noise\n/)
  assert.match(text, '1 of 3 differ beyond noise')
})

test('a smaller ratio is worse, a smaller time better', () => {
  const before = reportOf([result({ ratios: { torch: at(5, 0.1) } })])
  const after = reportOf([result({ ms: at(5, 0.1), ratios: { torch: at(4, 0.1) } })])
  assert.match(formatComparison(before, after), /rapo against torch .*worse/)
  assert.match(formatComparison(before, after), /: rapo +10\.00 .*better/)
  assert.match(formatComparison(after, before), /: rapo +5\.00 .*worse/)
})

test('two machines: a warning; nothing alike: said so', () => {
  const text = formatComparison(reportOf([result()]), reportOf([result()], 'another CPU'))
  assert.match(text, 'not the same machine')
  assert.match(text, 'b: another CPU')
  assert.is(formatComparison(reportOf([result()]), reportOf([])), 'the two files measured nothing alike')
})

test('the chart: a bar a result to scale, names escaped', () => {
  const svg = benchChart(reportOf([result({ ms: at(10, 0) }), result({ name: 'torch <b>', ms: at(40, 0) })]))
  const widths = [...svg.matchAll(/<rect class="(\w+)"[^>]* width="([\d.]+)"/g)].map(([, who, w]) => [
    who,
    Number(w),
  ])
  assert.equal(widths, [
    ['rapo', 90],
    ['peer', 360],
  ])
  assert.match(svg, 'torch &lt;b&gt;')
  assert.match(svg, 'a CPU, 2 cores')
})

test.run()
