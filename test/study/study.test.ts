import { existsSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { readStudy } from '../../lib/study/plan.js'
import type { StudySummary } from '../../lib/study/summary.js'
import { readLatestCheckpoint } from '../../lib/train/checkpoint.js'
import { startCli } from '../helpers/cli.js'
import { makeTempDir } from '../helpers/fake-policy.js'

const dir = makeTempDir()
test.after(() => rmSync(dir, { recursive: true, force: true }))

let counter = 0
function studyFile(text: string): string {
  const file = path.join(dir, `study-${counter++}.yaml`)
  writeFileSync(file, text)
  return file
}

const start = (...args: string[]) => startCli(['study', ...args])

const twoVariants = (fields = 'run.steps: 2, eval.samples: 4', seeds = '[3, 5]') => `
config: configs/countdown-rapo.yaml
seeds: ${seeds}
baseline: GRPO
fields: { ${fields} }
variants:
  RAPO, φ = 1: { objective.phiMin: 1 }
  GRPO: { config: configs/countdown-grpo.yaml }
quick: { seeds: 1, variants: [GRPO], fields: { run.steps: 1 } }
`

test('the plan: every variant with every seed, fields over configurations, and the quick version', () => {
  const file = studyFile(twoVariants())
  const plan = readStudy(file, { output: 'somewhere' })
  assert.equal(plan.seeds, [3, 5])
  assert.equal(
    plan.variants.map(({ name, dir }) => [name, dir]),
    [
      ['RAPO, φ = 1', path.join('somewhere', 'rapo-φ-1')],
      ['GRPO', path.join('somewhere', 'grpo')],
    ],
  )
  assert.equal(
    plan.variants.map(({ config }) => [config.objective.phiMin, config.objective.penalty, config.run.steps]),
    [
      [1, 'forward', 2],
      [1, 'reverse-k3', 2],
    ],
  )
  const quick = readStudy(file, { quick: true })
  assert.equal([quick.seeds, quick.variants.length, quick.variants[0]!.config.run.steps], [[1], 1, 1])
  assert.is(quick.output, path.join('runs', `${path.parse(file).name}-quick`))
})

const faults: [text: string, message: RegExp][] = [
  [
    'variants: { A: {} }',
    /: config is missing; it must be the path of a configuration \(docs\/studies\.md\)$/,
  ],
  ['config: c.yaml\nvariants: {}', /: variants is {}; it must be one variant or several: each has a name/],
  ['config: c.yaml\nvariants: { A: 3 }', /: variants is {"A":3}; it must be one variant or several/],
  ['config: c.yaml\nseeds: [1, 1]\nvariants: { A: {} }', /: seeds is \[1,1\]; it must be a number of seeds/],
  ['config: c.yaml\nvariants: { A: {} }\nquick: { seeds: 0 }', /: quick\.seeds is 0; it must be a number of/],
  [
    'config: c.yaml\nvariants: { A: {} }\nquick: { sedes: 1 }',
    /no field "quick\.sedes": did you mean "quick\.seeds"\?$/,
  ],
  [
    'confg: c.yaml\nvariants: { A: {} }',
    /: there is no field "confg": did you mean "config"\?\nconfig is missing/,
  ],
  ['config: c.yaml\nsteps: 3\nvariants: { A: {} }', /: there is no field "steps": did you mean "seeds"\?$/],
  ['model: { dir: m }\ntask: { verifier: math }', /: this is the configuration of a run; a study names it/],
  ['config: nowhere.yaml\nvariants: { A: {} }', /variants\.A: cannot read .*nowhere\.yaml/],
  ['config: configs/countdown-rapo.yaml\nvariants: { A: { objective.klCeof: 1 } }', /variants\.A: .*klCoef/],
  ['config: configs/countdown-rapo.yaml\nvariants: { A: { run.seed: 1 } }', /variants\.A: .*run\.seed/],
  ['config: configs/countdown-rapo.yaml\nvariants: { A b: {}, a-B: {} }', /share the directory/],
  ['config: configs/countdown-rapo.yaml\nbaseline: C\nvariants: { A: {} }', /baseline: .*"C".*A/],
  ['config: configs/countdown-rapo.yaml\nvariants: { A: { config: 3 } }', /variants\.A\.config/],
  ['config: [', /study-\d+\.yaml/],
]
for (const [text, message] of faults) {
  test(`refused before anything is run: ${text.replaceAll('\n', '; ')}`, () => {
    const file = studyFile(text)
    assert.throws(
      () => readStudy(file),
      (error: Error & { code: string }) =>
        error.code === 'ERR_RAPO_CONFIG' && error.message.includes(file) && message.test(error.message),
    )
  })
}

test('--quick without such a section is refused', () => {
  const file = studyFile('config: configs/countdown-rapo.yaml\nvariants: { A: {} }')
  assert.throws(() => readStudy(file, { quick: true }), /--quick needs a section "quick"/)
})

test('the bundled study, quick: trains and measures all, compares, keeps what is done, refuses another configuration', async () => {
  const output = path.join(dir, 'whole')
  const file = 'configs/studies/countdown.yaml'
  const first = await start('--config', file, '--quick', '--output', output).done
  assert.is(first.code, 0, first.stderr)
  assert.match(first.stdout, /^hard \(64 problems\)\npass@k +seeds +1\b/m)
  assert.match(first.stdout, /^minus GRPO-RKL, paired by seed and problem\nbase +2 .*\nRAPO +2 /m)
  const summary = JSON.parse(readFileSync(path.join(output, 'study.json'), 'utf8')) as StudySummary
  assert.equal(
    summary.groups.all!.variants.map(({ name, seeds }) => [name, seeds]),
    [
      ['base', []],
      ['GRPO-RKL', [1, 2]],
      ['RAPO', [1, 2]],
    ],
  )
  const page = readFileSync(path.join(output, 'report.html'), 'utf8')
  assert.match(page, 'Differences to GRPO-RKL')
  assert.match(page, '>2 seeds<')

  const runs = ['rapo/seed-1', 'rapo/seed-2', 'grpo-rkl/seed-1', 'grpo-rkl/seed-2', 'base']
  const timesOf = () => runs.map(run => statSync(path.join(output, run, 'eval.json')).mtimeMs)
  rmSync(path.join(output, 'grpo-rkl/seed-2/eval.json'))
  // What is measured needs its checkpoints no more.
  rmSync(path.join(output, 'rapo/seed-1/checkpoints'), { recursive: true })
  const times = runs.map(
    run => statSync(path.join(output, run, 'eval.json'), { throwIfNoEntry: false })?.mtimeMs,
  )
  const second = await start('--config', file, '--quick', '--output', output).done
  assert.is(second.code, 0, second.stderr)
  assert.is(second.stdout, first.stdout)
  assert.equal(
    timesOf().map((time, i) => time === times[i]),
    [true, true, true, false, true],
  )

  const other = studyFile(
    readFileSync(file, 'utf8').replace('run.steps: 40', 'run.steps: 40\n    optimizer.learningRate: 0.01'),
  )
  const third = await start('--config', other, '--quick', '--output', output).done
  assert.is(third.code, 1)
  assert.match(
    third.stderr,
    /grpo-rkl\/seed-1 holds a run of another configuration: optimizer\.learningRate is 0\.0003 there, 0\.01/,
  )
})

test('a run that fails does not end the others', async () => {
  const output = path.join(dir, 'failing')
  const verifier = path.join(dir, 'failing.mjs')
  writeFileSync(verifier, `export default { verify() { throw new Error('a fault of the verifier') } }\n`)
  const file = studyFile(`
config: configs/countdown-rapo.yaml
seeds: 1
base: false
fields: { run.steps: 1, eval.samples: 2, eval.temperature: 0.5 }
variants:
  broken: { task.verifier: ${verifier} }
  GRPO: { config: configs/countdown-grpo.yaml }
`)
  const { code, stderr, stdout } = await start('--config', file, '--output', output, '--processes', '1').done
  assert.is(code, 1)
  assert.match(stderr, /1 of 2 runs failed/)
  assert.match(stderr, 'a fault of the verifier')
  assert.match(stdout, /^GRPO +1 /m)
  const measured = path.join(output, 'grpo/seed-1/eval.json')
  const { mtimeMs } = statSync(measured)
  // The failed run is tried again; what was measured at its own temperature is not.
  const again = await start('--config', file, '--output', output, '--processes', '1').done
  assert.match(again.stderr, '1 of 2 runs failed')
  assert.is(statSync(measured).mtimeMs, mtimeMs)
  writeFileSync(measured, '{')
  const damaged = await start('--config', file, '--output', output).done
  assert.match(damaged.stderr, `${measured} is damaged: `)
})

test('Ctrl-C saves the runs; the same command goes on with them', async () => {
  const output = path.join(dir, 'stopped')
  const file = studyFile(twoVariants('run.steps: 100000, eval.samples: 4', '1'))
  const { child, done } = start('--config', file, '--output', output, '--processes', '2')
  const runs = ['rapo-φ-1', 'grpo'].map(name => path.join(output, name, 'seed-1'))
  const timer = setInterval(() => {
    if (!runs.every(run => existsSync(path.join(run, 'samples.jsonl')))) return
    clearInterval(timer)
    child.kill('SIGINT')
  }, 20)
  const { code, stderr } = await done
  clearInterval(timer)
  assert.is(code, 1)
  assert.match(stderr, 'stopped; what was trained is saved')
  const steps = runs.map(run => readLatestCheckpoint(run)!.trainer.step)
  assert.ok(steps.every(step => step >= 1))
  // The length alone is changed in the files of the runs, so that the second call ends.
  const length = Math.max(...steps) + 1
  for (const run of runs) {
    const config = path.join(run, 'config.yaml')
    writeFileSync(config, readFileSync(config, 'utf8').replace('steps: 100000', `steps: ${length}`))
  }
  const shorter = studyFile(twoVariants(`run.steps: ${length}, eval.samples: 4`, '1'))
  const second = await start('--config', shorter, '--output', output).done
  assert.is(second.code, 0, second.stderr)
  for (const run of runs) {
    const lines = readFileSync(path.join(run, 'metrics.jsonl'), 'utf8').trimEnd().split('\n')
    assert.equal(
      lines.map(line => JSON.parse(line).step),
      Array.from({ length }, (_, i) => i + 1),
    )
  }
})

test.run()
