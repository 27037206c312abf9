import { existsSync, mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { looks } from '../../lib/report/chart.js'
import { configDifferences } from '../../lib/report/compare.js'
import { duration, number, percent, percentRange } from '../../lib/report/format.js'
import { html, visibleText } from '../../lib/report/html.js'
import { loadRuns } from '../../lib/report/load.js'
import { writeReport } from '../../lib/report/page.js'
import { decimate, innerRange, movingMean } from '../../lib/report/series.js'
import {
  evaluationOf,
  metricsOf,
  sampleOf,
  samplesOf,
  temporaryDir,
  writeRun,
  writeThreeRuns,
} from '../helpers/report-fixture.js'

const dir = temporaryDir()
test.after(() => rmSync(dir, { recursive: true, force: true }))
let counter = 0
const fresh = () => path.join(dir, String(counter++))

async function reportOf(runs: readonly string[], base?: string) {
  const output = path.join(fresh(), 'report.html')
  await writeReport({
    runs,
    output,
    made: new Date('2026-01-02T03:04:05Z'),
    ...(base !== undefined && { base }),
  })
  return readFileSync(output, 'utf8')
}

async function failureOf(promise: Promise<unknown>) {
  try {
    await promise
  } catch (error) {
    return error as Error & { code: string }
  }
  throw new Error('nothing was thrown')
}

/** The part of the page with that id, without markup, white space collapsed. */
function textOf(page: string, id: string) {
  const section = page.match(new RegExp(`<section id="${id}">([\\s\\S]*?)</section>`))![1]!
  return section
    .replace(/<wbr>/g, '')
    .replace(/<[^>]+>/g, ' ')
    .replace(/\s+/g, ' ')
}

const evaluated = (name: string, fields: object = {}) => ({
  evaluation: evaluationOf({ all: [0.1, 0.2, 0.3] }, { name, ...fields }),
})

test('the three runs side by side: table, curves, training, differences, samples, facts', async () => {
  const { base, grpo, rapo } = writeThreeRuns(fresh())
  const page = await reportOf([grpo, rapo], base)
  const table = textOf(page, 'pass-at-k')
  assert.match(
    table,
    /pass@ 1 pass@ 4 pass@ 16 pass@ 64 pass@ 256 pass@ 1024 All problems base 10\.0 0–20\.0 30\.0 20\.0–40\.0 .* GRPO-RKL 30\.0/,
  )
  assert.match(table, /4 problems, 32 completions of each, temperature 1, at most 24 tokens long\./)
  assert.match(table, /solved at least once .* base 3 of 4 .* RAPO 4 of 4 \+1 −0/)
  // Row by row the best of each column; what prints the same shares it.
  const best = [...page.matchAll(/class="best"><span class="value">([^<]+)</g)].map(match => match[1])
  assert.equal(
    best,
    '70.0 80.0 30.0 45.0 60.0 65.0 70.0 100 100 50.0 100 70.0 90.0 95.0 100 12.0 20.0 20.0 40.0 45.0 50.0 55.0'.split(
      ' ',
    ),
  )

  for (const group of ['all', 'easy', 'hard'])
    assert.ok(page.includes(`aria-label="pass@k of ${group} problems"`))
  const metrics = [...page.matchAll(/data-metric="([^"]+)"/g)].map(match => match[1])
  assert.equal(metrics, [
    'rewardMean',
    'zeroAdvantageFraction',
    'kl',
    'entropy',
    'loss',
    'gradNorm',
    'clipFractionLow',
    'clipFractionHigh',
    'completionLengthMean',
    'truncatedFraction',
    'seconds',
  ])
  assert.match(textOf(page, 'training'), /rollout 0\.1 s · score 0\.01 s · train 0\.2 s · save 0\.002 s/)
  assert.match(textOf(page, 'training'), /these differ: compare their course/)
  const configuration = textOf(page, 'configuration')
  assert.match(configuration, /objective\.penalty reverse-k3 forward run\.output runs\/grpo runs\/rapo/)
  const differences = page.match(/<table class="config">[\s\S]*?<\/table>/)![0]
  assert.not.match(differences, /klCoef|model\.dir/)
  assert.match(configuration, /klCoef: 0\.02/)
  const samples = textOf(page, 'samples')
  assert.match(samples, /Evaluation ✓ right · reward 1 problem e-1, easy equals 22 3 5 7 =22 3\*5\+7/)
  assert.match(samples, /✗ wrong · reward 0 problem e-1, easy equals 15, not 22/)
  assert.match(samples, /Training, steps 1 to 80 .* step 1 .* Training, steps 321 to 400 .* step 400/)
  assert.match(
    textOf(page, 'runs'),
    /Steps 400 Tokens trained on 400,000 Training time 2 min 5 s Time a step 0\.312 s/,
  )
  assert.match(page, /Made on 2026-01-02 at 03:04 UTC/)
  assert.not.match(page, /class="warning"/)
  assert.not.match(page, /undefined|NaN|\[object/)
})

test('several rewards: a chart of each, and each in the samples; right is what the verifier says', async () => {
  const rewards = { math: { mean: 0.5, std: 0.5 }, 'a<b': { mean: -1, std: 0 } }
  const parts = (reward: number) => [
    { name: 'math', weight: 1, reward, reason: 'the same' },
    { name: 'a<b', weight: 0.25, reward: -1 },
  ]
  const run = writeRun(path.join(fresh(), 'parts'), {
    metrics: metricsOf(3, { rewards }),
    samples: [
      sampleOf({ step: 1, reward: 0.75, correct: true, rewards: parts(1) }),
      sampleOf({ step: 1, reward: 1.5, correct: false, rewards: parts(0) }),
    ],
  })
  const page = await reportOf([run])
  const metrics = [...page.matchAll(/data-metric="([^"]+)"/g)].map(match => match[1])
  assert.equal(metrics.slice(0, 4), [
    'rewardMean',
    'rewards.math.mean',
    'rewards.a&lt;b.mean',
    'zeroAdvantageFraction',
  ])
  const samples = textOf(page, 'samples')
  assert.match(samples, /✓ right · reward 0\.75 .* math 1: the same a.*b −1 × 0\.25/)
  assert.match(samples, /✗ wrong · reward 1\.5 .* math 0: the same/)
})

test('evaluations during training: a chart of each score, and samples with the prompt as the model got it', async () => {
  const all = { problems: 4, passAtK: [0.25, 0.5, 0.75], low: [0, 0, 0], high: [1, 1, 1] }
  const majority = { majAtK: [0.25, 0.3, 0.4], low: [0, 0, 0], high: [1, 1, 1] }
  const evalOf = (step: number, group: object) => ({ step, k: [1, 2, 4], groups: { all: group } })
  const run = writeRun(path.join(fresh(), 'evaluated'), {
    metrics: metricsOf(4),
    // As a run leaves it that was resumed before step 4.
    evals: [evalOf(0, all), evalOf(4, all), evalOf(2, all), evalOf(4, { ...all, majority })],
    evalsSamples: [
      sampleOf({ step: 2, renderedPrompt: '<|user|>3 5 7 =22' }),
      sampleOf({ step: 4, completion: '3+5', reward: 0.4, reason: 'close' }),
    ],
  })
  const page = await reportOf([run])
  const metrics = [...page.matchAll(/data-metric="([^"]+)"/g)].map(match => match[1])
  assert.equal(metrics.slice(0, 4), ['pass@1', 'pass@4', 'maj@4', 'rewardMean'])
  assert.match(textOf(page, 'training'), 'Evaluation: pass@4 0.75')
  const samples = textOf(page, 'samples')
  assert.match(samples, /Evaluation during training, step 2 ✓ right .*(<|&lt;)\|user\|(>|&gt;)3 5 7 =22/)
  assert.match(samples, /Evaluation during training, step 4 ◐ partly right · reward 0\.4 /)
})

test('maj@k stands beside pass@k, and few values of k are all shown', async () => {
  const group = { problems: 4, passAtK: [0.25, 0.5], low: [0, 0], high: [1, 1] }
  const majority = { majAtK: [0.25, 0.123], low: [0.1, 0.1], high: [0.3, 0.3] }
  const evaluation = (groups: object) => ({ ...evaluationOf({ all: [0.25, 0.5] }), k: [1, 2], groups })
  const [voted, plain] = [fresh(), fresh()]
  writeRun(voted, { evaluation: evaluation({ all: { ...group, majority } }) })
  const text = textOf(await reportOf([voted]), 'pass-at-k')
  assert.match(text, /pass@ ?1 .*pass@ ?2 .*50\.0/)
  assert.match(text, /maj@k .*maj@ ?1 .*maj@ ?2 .*12\.3/)
  writeRun(plain, { evaluation: evaluation({ all: group }) })
  assert.not.match(textOf(await reportOf([plain]), 'pass-at-k'), 'maj@')
})

test('a run that learns nothing is warned of, with the field of its configuration', async () => {
  const sick = writeRun(path.join(fresh(), 'sick'), {
    config: 'sampling:\n  maxNewTokens: 77\n  groupSize: 8\n',
    metrics: metricsOf(12, { truncatedFraction: 1 }),
  })
  const well = writeRun(path.join(fresh(), 'well'), { metrics: metricsOf(12) })
  const both = textOf(await reportOf([well, sick]), 'training')
  assert.match(
    both,
    /sick Steps 1 to 12: 100 % of the completions were cut off at sampling\.maxNewTokens, 77,/,
  )
  assert.not.match(textOf(await reportOf([well]), 'training'), 'learnt')
})

test('the name of the home directory is not in the page', async () => {
  const home = fresh()
  const dir = writeRun(path.join(home, 'runs', 'mine'), {
    config: `model:\n  dir: ${home}/models/m\n`,
    evaluation: { ...evaluationOf({ all: [0.5] }), model: `${home}/models/m`, problems: `${home}/p.jsonl` },
  })
  const before = process.env.HOME
  process.env.HOME = home
  try {
    const page = await reportOf([dir])
    assert.not.match(page, home)
    // Lines may break after a slash.
    assert.match(page.replaceAll('<wbr>', ''), '~/models/m')
  } finally {
    process.env.HOME = before
  }
})

test('the page needs and may load nothing', async () => {
  const { base, grpo, rapo } = writeThreeRuns(fresh())
  const page = await reportOf([grpo, rapo], base)
  assert.not.match(page, /https?:|\bsrc=|url\(|@import|<script|<link|<iframe|\son\w+=/)
  assert.match(
    page,
    /Content-Security-Policy" content="default-src &#39;none&#39;; style-src &#39;unsafe-inline&#39;/,
  )
  for (const [, target] of page.matchAll(/href="([^"]*)"/g)) assert.match(target!, /^#/)
})

test('whatever a model wrote, or a file holds, is text', async () => {
  const evil = `<script>alert(1)</script><img src=x onerror="a('b')">&amp;\u0000\u001b[31m\u202egnp.exe\u202c\u200b\u2028\ud800`
  const run = writeRun(path.join(fresh(), `<b>'"&`), {
    config: `objective:\n  penalty: "<script>"\n`,
    metrics: metricsOf(3),
    samples: [sampleOf({ step: 1, problemId: evil, prompt: evil, completion: evil, reason: evil })],
    evaluation: evaluationOf(
      { all: [0.1, 0.2, 0.3], [evil]: [0.1, 0.2, 0.3] },
      {
        model: evil,
        name: evil,
        problems: evil,
        perProblem: [{ id: evil, difficulty: evil, n: 32, correct: 1 }],
      },
    ),
    evalSamples: [sampleOf({ problemId: evil, prompt: evil, completion: evil, reason: evil, reward: 0 })],
  })
  const other = writeRun(fresh(), {
    config: 'objective:\n  penalty: "<i>"\n',
    ...evaluated('<u>', { problems: evil }),
  })
  const page = await reportOf([run, other])
  assert.not.match(page, /<script|<img|<b>'|<u>|<i>/)
  const samples = page.match(/<section id="samples">[\s\S]*/)![0]
  for (const hidden of ['\0', '\x1b', '\u202e', '\u202c', '\u200b', '\u2028', '\ud800']) {
    assert.not.ok(page.includes(hidden), `U+${hidden.codePointAt(0)!.toString(16)} reaches the page`)
  }
  const shown = samples.match(/<pre dir="ltr">([\s\S]*?)<\/pre>/)![1]!
  assert.match(
    shown.replace(/<\/?span[^>]*>/g, ' '),
    /&lt;script&gt;alert\(1\)&lt;\/script&gt;&lt;img src=x onerror=&quot;a\(&#39;b&#39;\)&quot;&gt;&amp;amp; U\+0000 {2}U\+001B \[31m U\+202E gnp\.exe U\+202C {2}U\+200B {2}U\+2028 {2}U\+D800/,
  )
})

test('html escapes values, not its own text', () => {
  assert.is(
    html`<p title="${'"\'<>&'}">${[1, html`<b>${'<'}</b>`, false, undefined]}</p>`.toString(),
    '<p title="&quot;&#39;&lt;&gt;&amp;">1<b>&lt;</b></p>',
  )
})

test('long texts are cut, never through a character', () => {
  assert.is(visibleText('abc', 3).toString(), 'abc')
  assert.match(visibleText('abcd', 3).toString(), /^abc<span[^>]*>… 1 more character<\/span>$/)
  assert.match(visibleText('ab😀cd', 3).toString(), /^ab<span[^>]*>… 4 more characters<\/span>$/)
  assert.is(visibleText('tab\there\nnext').toString(), 'tab\there\nnext')
})

test('of a killed run the incomplete last line is ignored; any other broken line is an error with its place', async () => {
  const line = JSON.stringify({ step: 1, rewardMean: 0.25 })
  const killed = writeRun(fresh(), { metrics: `${line}\n{"step":2,"rewa`, samples: '{"step":1,"pro' })
  const [run] = await loadRuns([killed])
  assert.equal(run!.metrics, [{ step: 1, rewardMean: 0.25 }])
  assert.equal(run!.samples, [])

  const whole = writeRun(fresh(), { metrics: `${line}\n${line.replace('1', '2')}` })
  assert.is((await loadRuns([whole]))[0]!.metrics!.length, 2)

  const broken = writeRun(fresh(), { metrics: `${line}\n{"step":2,"rewa\n${line}\n` })
  const failure = await failureOf(reportOf([broken]))
  assert.is(failure.code, 'ERR_RAPO_FORMAT')
  assert.ok(failure.message.startsWith(`${path.join(broken, 'metrics.jsonl')}:2: `), failure.message)
  const lastWhole = writeRun(fresh(), { metrics: `${line}\n{"step":2,"rewa\n` })
  assert.match((await failureOf(reportOf([lastWhole]))).message, /metrics\.jsonl:2: /)
  const text = writeRun(fresh(), { metrics: `${line}\n{"step":"x"}\n` })
  assert.match((await failureOf(reportOf([text]))).message, /metrics\.jsonl:2: step: /)
  const sample = writeRun(fresh(), { metrics: metricsOf(1), samples: [sampleOf()] })
  assert.match((await failureOf(reportOf([sample]))).message, /samples\.jsonl:1: step is missing/)
})

test('lines end at newlines alone, in chunks of any size', async () => {
  // U+2028 stands unescaped in JSON; the text is longer than several chunks of a stream.
  const completion = `a\u2028b\u2029c${'ü'.repeat(100_000)}`
  const run = writeRun(fresh(), { metrics: metricsOf(1), samples: [sampleOf({ step: 1, completion })] })
  const [loaded] = await loadRuns([run])
  assert.is(loaded!.samples![0]!.samples[0]!.completion, completion)
})

test('steps that a resumed run repeats count once, the later ones', async () => {
  const metrics = [1, 2, 3, 4].map(step => ({ step, rewardMean: 0 }))
  const again = [3, 4, 5].map(step => ({ step, rewardMean: 1 }))
  const samples = [1, 1, 2, 2, 3].map(step => sampleOf({ step, completion: 'old' }))
  const samplesAgain = [2, 2, 3].map(step => sampleOf({ step, completion: 'new' }))
  const run = writeRun(fresh(), { metrics: [...metrics, ...again], samples: [...samples, ...samplesAgain] })
  const [loaded] = await loadRuns([run])
  assert.equal(
    loaded!.metrics!.map(({ step, rewardMean }) => [step, rewardMean]),
    [
      [1, 0],
      [2, 0],
      [3, 1],
      [4, 1],
      [5, 1],
    ],
  )
  const kept = loaded!.samples!.flatMap(stage =>
    stage.samples.map(({ step, completion }) => [step, completion]),
  )
  assert.equal(kept, [
    [1, 'old'],
    [1, 'old'],
    [2, 'new'],
    [2, 'new'],
    [3, 'new'],
  ])
})

test('gaps are drawn as gaps', async () => {
  const metrics = metricsOf(9).map(step => ({ ...step, kl: step.step === 5 ? null : 0.1 * step.step }))
  const page = await reportOf([writeRun(fresh(), { metrics })])
  const lineOf = (metric: string) => {
    const figure = page.match(new RegExp(`<figure data-metric="${metric}">[\\s\\S]*?</figure>`))![0]
    return figure.match(/<path class="line"\s+d="([^"]*)"/)![1]!
  }
  assert.is(lineOf('kl').match(/M/g)!.length, 2)
  assert.is(lineOf('entropy').match(/M/g)!.length, 1)
})

test('what a directory lacks, the section says', async () => {
  const full = writeThreeRuns(fresh())
  const onlyMetrics = writeRun(path.join(fresh(), 'bare'), { metrics: metricsOf(2) })
  const page = await reportOf([full.grpo, onlyMetrics], full.base)
  assert.match(textOf(page, 'pass-at-k'), /bare has no eval\.json; rapo eval writes it/)
  assert.match(textOf(page, 'configuration'), /bare has no config\.yaml/)
  assert.match(textOf(page, 'samples'), /bare has no samples/)
  assert.not.match(textOf(page, 'training'), /base has no/)
  const untrained = await reportOf([
    full.grpo,
    writeRun(path.join(fresh(), 'x'), evaluated('x')),
    writeRun(fresh(), evaluated('y')),
  ])
  assert.match(
    textOf(untrained, 'training'),
    /x has no line in metrics\.jsonl; rapo train writes it\..* y has no line in metrics\.jsonl/,
  )

  const only = await reportOf([full.base])
  assert.match(textOf(only, 'training'), /No training is recorded here/)
  assert.match(textOf(only, 'configuration'), /No configuration is recorded here/)
  assert.not.match(only, /class="best"|never solved/)
  const empty = await reportOf([writeRun(fresh(), { config: 'run: {}\n', metrics: '', samples: '' })])
  assert.match(textOf(empty, 'training'), /has no line in metrics\.jsonl/)
})

test('the base is the one named, or the only run without training; it comes first', async () => {
  const { base, grpo, rapo } = writeThreeRuns(fresh())
  const bases = async (runs: string[], named?: string) =>
    (await loadRuns(runs, named)).map(run => `${run.name}${run.isBase ? '*' : ''}`)
  assert.equal(await bases([grpo, base, rapo]), ['base*', 'GRPO-RKL', 'RAPO'])
  assert.equal(await bases([grpo, rapo], base), ['base*', 'GRPO-RKL', 'RAPO'])
  assert.equal(await bases([grpo, base], rapo), ['RAPO*', 'GRPO-RKL', 'base'])
  assert.equal(await bases([base, grpo, `${base}/.`], base), ['base*', 'GRPO-RKL'])
  assert.equal(await bases([writeRun(fresh(), evaluated('a')), writeRun(fresh(), evaluated('b'))]), [
    'a',
    'b',
  ])
})

test('runs of one name are told apart by the part of their path that differs', async () => {
  const parent = fresh()
  const runs = ['seed-1/rapo', 'seed-2/rapo', 'other'].map(name =>
    writeRun(path.join(parent, name), evaluated(name === 'other' ? 'other' : 'rapo')),
  )
  assert.equal(
    (await loadRuns(runs)).map(({ name }) => name),
    ['rapo (seed-1)', 'rapo (seed-2)', 'other'],
  )
  const deep = ['a/x/rapo', 'a/y/rapo', 'b/y/rapo'].map(name =>
    writeRun(path.join(parent, name), evaluated('rapo')),
  )
  assert.equal(
    (await loadRuns(deep)).map(({ name }) => name),
    ['rapo (a/x)', 'rapo (a/y)', 'rapo (b/y)'],
  )
})

test('runs that were evaluated differently are flagged, and none is called best', async () => {
  const differing: [object, RegExp][] = [
    [
      { problems: 'data/aime.jsonl' },
      /Different problem files: data\/test\.jsonl \(a\); data\/aime\.jsonl \(b\)/,
    ],
    [{ samplesPerProblem: 64 }, /Different numbers of samples a problem: 32 \(a\); 64 \(b\)/],
    [{ temperature: 0.6 }, /Different temperature: 1 \(a\); 0\.6 \(b\)/],
    [{ maxNewTokens: 48 }, /Different maxNewTokens: 24 \(a\); 48 \(b\)/],
    [{ perProblem: [{ id: 'z', n: 32, correct: 1 }] }, /one name, but the problems in them differ/],
  ]
  for (const [fields, expected] of differing) {
    const page = await reportOf([
      writeRun(fresh(), evaluated('a')),
      writeRun(fresh(), evaluated('b', fields)),
    ])
    const warning = page.match(/<div class="warning"[\s\S]*?<\/div>/)?.[0] ?? 'no warning'
    assert.match(warning, expected)
    assert.not.match(page, /class="best"/)
  }
  const alike = await reportOf([
    writeRun(fresh(), evaluated('a')),
    writeRun(fresh(), evaluated('b', { seed: 2, seconds: 9 })),
  ])
  assert.not.match(alike, /class="warning"/)
  assert.match(alike, /class="best"/)
})

test('a k that a run lacks is a dash, and its curve ends there', async () => {
  const short = evaluationOf({ all: [0.1, 0.2] }, { name: 'short', k: [1, 4], samplesPerProblem: 8 })
  const page = await reportOf([
    writeRun(fresh(), { evaluation: short }),
    writeRun(fresh(), evaluated('long')),
  ])
  assert.match(textOf(page, 'pass-at-k'), /short 10\.0 0–20\.0 20\.0 10\.0–30\.0 – long/)
})

test('k lies on a scale of powers of two', async () => {
  const page = await reportOf([writeRun(fresh(), evaluated('a'))])
  const path = page.match(/aria-label="pass@k of all problems"[\s\S]*?<path class="line"\s+d="([^"]*)"/)![1]!
  const [first, second, third] = [...path.matchAll(/[ML]([\d.]+),/g)].map(match => Number(match[1]))
  // k = 1, 4, 16: equal steps, to the 0.1 that coordinates are rounded to.
  assert.ok(Math.abs(second! - first! - (third! - second!)) <= 0.15)
})

test('an eval.json that is not as described is an error that names the field', async () => {
  const cases: [object | string, RegExp][] = [
    ['{', /eval\.json: /],
    [{ ...evaluationOf({ all: [0.1, 0.2, 0.3] }), model: 7 }, /eval\.json: model: /],
    [evaluationOf({ easy: [0.1, 0.2, 0.3] }), /eval\.json: groups\.all: is missing/],
    [
      evaluationOf({ all: [0.1, 0.2] }, { k: [1, 4, 16] }),
      /eval\.json: groups\.all\.passAtK: has 2 values, but k has 3/,
    ],
  ]
  for (const [evaluation, expected] of cases) {
    const failure = await failureOf(reportOf([writeRun(fresh(), { evaluation })]))
    assert.is(failure.code, 'ERR_RAPO_FORMAT')
    assert.match(failure.message, expected)
  }
  const config = writeRun(fresh(), { config: 'a: [\n' })
  assert.match((await failureOf(reportOf([config]))).message, /config\.yaml: /)
  assert.match(
    (await failureOf(reportOf([writeRun(fresh(), { config: '- 1\n' })]))).message,
    /config\.yaml: a configuration must be a mapping/,
  )
})

test('a directory that is none, or holds no run, is an error that names it', async () => {
  assert.match(
    (await failureOf(reportOf([path.join(dir, 'nowhere')]))).message,
    /^there is no run directory \S*nowhere$/,
  )
  const file = path.join(writeRun(fresh(), {}), 'file')
  writeFileSync(file, '')
  for (const [place, message] of [
    [file, /file is a file, not a run directory$/],
    [path.join(file, 'below'), /^there is no run directory \S*below$/],
  ] as const)
    assert.match((await failureOf(reportOf([place]))).message, message)
  assert.match(
    (await failureOf(reportOf([writeRun(fresh(), {})]))).message,
    /is no run directory: it has no config\.yaml/,
  )
  assert.match((await failureOf(reportOf([]))).message, /at least one run directory/)
})

test('a report that cannot be made leaves the earlier one whole, and nothing beside it', async () => {
  const place = fresh()
  mkdirSync(place)
  const output = path.join(place, 'report.html')
  writeFileSync(output, 'earlier')
  await failureOf(writeReport({ runs: [writeRun(fresh(), { metrics: 'x\n' })], output }))
  assert.is(readFileSync(output, 'utf8'), 'earlier')
  assert.equal(readdirSync(place), ['report.html'])

  // The target cannot be replaced: a directory is in its place.
  const blocked = path.join(fresh(), 'report.html')
  mkdirSync(path.join(blocked, 'inside'), { recursive: true })
  const failure = await failureOf(writeReport({ runs: [writeRun(fresh(), evaluated('a'))], output: blocked }))
  assert.is(failure.code, 'ERR_RAPO_IO')
  assert.equal(readdirSync(path.dirname(blocked)), ['report.html'])
  assert.ok(existsSync(path.join(blocked, 'inside')))
})

test('nine runs still look different', () => {
  const made = looks([true, ...Array.from({ length: 12 }, () => false)])
  assert.is(new Set(made.map(({ className, dash }) => `${className} ${dash}`)).size, 13)
})

test('many samples of a long run: some early, some late, right and wrong, no more', async () => {
  const [run] = await loadRuns([writeRun(fresh(), { metrics: metricsOf(2), samples: samplesOf(1000) })])
  assert.equal(
    run!.samples!.map(({ firstStep, lastStep }) => [firstStep, lastStep]),
    [
      [1, 200],
      [201, 400],
      [401, 600],
      [601, 800],
      [801, 1000],
    ],
  )
  for (const { samples } of run!.samples!)
    assert.equal(
      samples.map(({ reward }) => reward),
      [1, 1, 0, 0],
    )
})

test('configurations differ by field, a missing one included', () => {
  const differences = configDifferences([
    { a: { b: 1, c: [1, 2] }, d: 'x' },
    { a: { b: 1, c: [1, 3] }, e: null },
  ])
  assert.equal(differences, [
    { field: 'a.c', values: ['[1,2]', '[1,3]'] },
    { field: 'd', values: ['x', undefined] },
    { field: 'e', values: [undefined, 'null'] },
  ])
})

test('a moving mean passes over gaps and keeps them', () => {
  const points = [1, 2, null, 4, 6].map((y, i) => ({ x: i + 1, y }))
  assert.equal(movingMean(points, 0), points)
  assert.equal(
    movingMean(points, 1).map(({ y }) => y),
    [1.5, 1.5, null, 5, 5],
  )
  const spike = [0.1, 0.2, 0.3, 0, 0].map((y, x) => ({ x, y }))
  assert.is(movingMean(spike, 1).at(-1)!.y, 0, 'nothing of what left the window stays in it')
})

test('decimation keeps spikes, gaps and order', () => {
  const points = Array.from({ length: 10_000 }, (_, i) => ({
    x: i,
    y: i === 5001 ? 99 : i === 7003 ? null : Math.sin(i),
  }))
  const kept = decimate(points, 100)
  assert.ok(kept.length <= 301)
  assert.ok(kept.some(({ y }) => y === 99))
  assert.ok(kept.some(({ y }) => y === null))
  assert.ok(kept.every(({ x }, i) => i === 0 || x > kept[i - 1]!.x))
  assert.equal(decimate(points.slice(0, 5), 100), points.slice(0, 5))
})

test('the inner range leaves the outermost out', () => {
  const values = Array.from({ length: 101 }, (_, i) => i)
  assert.equal(innerRange(values, 0.02), [2, 98])
  assert.equal(innerRange(values, 0), [0, 100])
  assert.is(innerRange([], 0), undefined)
})

test('numbers read well', () => {
  assert.equal([0, 0.0004, 0.5, 0.9996, 1, null].map(percent), ['0', '<0.1', '50.0', '>99.9', '100', '–'])
  assert.equal(
    [percentRange(0.1, 0.2), percentRange(1, 1), percentRange(0, null)],
    ['10.0–20.0', '100', undefined],
  )
  assert.equal([0, 0.00012, -0.5, 1234.5, 2e7].map(number), ['0', '1.2e−4', '−0.5', '1,230', '2e+7'])
  assert.equal([0.25, 59.94, 61, 3725].map(duration), ['0.25 s', '59.9 s', '1 min 1 s', '1 h 2 min'])
  assert.equal([0, 6.2e-5, 0.002].map(duration), ['0 s', '<1 ms', '0.002 s'])
})

/** Two variants with seeds 1 and 2; of the four problems `solved` says how many of 32 samples are right, a seed each. */
function writeSeeds(dir: string, solved: Record<string, readonly (readonly number[])[]>) {
  return Object.entries(solved).flatMap(([name, seeds]) =>
    seeds.map((correct, i) => {
      const evaluation = evaluationOf({ all: [0.5, 0.6, 0.7] }, { name })
      const perProblem = evaluation.perProblem.map((problem, p) => ({ ...problem, correct: correct[p]! }))
      return writeRun(path.join(dir, name, `seed-${i + 1}`), {
        config: `objective:\n  preset: ${name}\nrun:\n  seed: ${i + 1}\n  output: ${name}/${i}\n`,
        metrics: metricsOf(4, { rewardMean: i }),
        evaluation: { ...evaluation, perProblem },
      })
    }),
  )
}

test('runs that differ by their seed alone are one: means, both intervals, paired differences', async () => {
  const runs = writeSeeds(fresh(), {
    grpo: [
      [16, 16, 8, 8],
      [8, 8, 16, 16],
    ],
    rapo: [
      [24, 24, 16, 16],
      [16, 16, 24, 24],
    ],
  })
  const page = await reportOf(runs)
  const text = textOf(page, 'pass-at-k')
  // At k = 1 each mean is the share of right samples: 3/8 and 5/8 with both seeds, problems alike.
  assert.match(text, /grpo 2 seeds 37\.5 37\.5 37\.5 /)
  assert.match(text, /rapo 2 seeds 62\.5 62\.5 62\.5 /)
  assert.match(text, /Differences to grpo .*rapo 2 seeds \+25\.0 \+25\.0 to \+25\.0 \+25\.0 to \+25\.0/)
  assert.match(textOf(page, 'runs'), /Seeds 1, 2; what follows are means/)
  // The reward of every step is the mean of 0 and 1.
  assert.match(textOf(page, 'training'), /Reward 0\.5 0\.5/)

  const each = path.join(fresh(), 'report.html')
  await writeReport({ runs, output: each, byRun: true })
  assert.match(textOf(readFileSync(each, 'utf8'), 'pass-at-k'), /grpo \(seed-1\).*rapo \(seed-2\)/)
})

test('a seed twice, other problems, another field: not one; an unknown baseline is refused', async () => {
  const dir = fresh()
  const runs = writeSeeds(dir, {
    grpo: [
      [1, 1, 1, 1],
      [2, 2, 2, 2],
    ],
  })
  const [first] = runs
  const twin = writeRun(path.join(dir, 'twin'), {
    config: readFileSync(path.join(first!, 'config.yaml'), 'utf8'),
    metrics: metricsOf(4),
    evaluation: evaluationOf({ all: [0.5, 0.6, 0.7] }, { name: 'twin' }),
  })
  assert.not.match(await reportOf([...runs, twin]), /\d seeds</)
  writeFileSync(path.join(twin, 'config.yaml'), 'objective:\n  preset: grpo\n  klCoef: 1\nrun:\n  seed: 3\n')
  assert.match(await reportOf([...runs, twin]), '>2 seeds<')
  const output = path.join(fresh(), 'report.html')
  const failure = await failureOf(writeReport({ runs, output, baseline: 'gpro' }))
  assert.is(failure.code, 'ERR_RAPO_INVALID_ARGUMENT')
  assert.match(failure.message, /baseline "gpro" .*: grpo$/)
  assert.not.ok(existsSync(output))
})

test('an episode is shown turn by turn, the answers of the environment in grey', async () => {
  const turns = [{ completion: '3*5=', observation: '15<:' }, { completion: '3*5+7' }]
  const run = writeRun(fresh(), {
    metrics: metricsOf(2),
    samples: [sampleOf({ step: 1, turns }), sampleOf({ step: 2 })],
    evalSamples: [sampleOf({ turns })],
    ...evaluated('own'),
  })
  const page = await reportOf([run])
  const shown = '</span>3*5=<span class="prompt">15&lt;:</span>3*5+7</pre>'
  assert.is(page.split(shown).length - 1, 2)
  assert.match(page, '</span>3*5+7</pre>')
})

test.run()
