import { copyFileSync, existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { invocation } from '../../lib/cli/commands.js'
import { fields } from '../../lib/config/help.js'
import { readLatestCheckpoint } from '../../lib/train/checkpoint.js'
import { type CliResult, startCli } from '../helpers/cli.js'
import { makeTempDir } from '../helpers/fake-policy.js'
import { makeTinyModel } from '../helpers/tiny-model.js'

const dir = makeTempDir()
const model = await makeTinyModel()

async function rapo(...args: string[]): Promise<CliResult> {
  const { child, done } = startCli(args)
  child.stdin!.end()
  return done
}

/** Rewards sevens, so that a model with random weights has something to learn. */
const verifier = path.join(dir, 'sevens.mjs')
writeFileSync(
  verifier,
  `export default {
    checkAnswer() {},
    verify: completion => ({ reward: Math.min(1, completion.split('7').length - 1), reason: 'sevens' }),
  }`,
)
const problems = path.join(dir, 'problems.jsonl')
const lineOf = (i: number) =>
  JSON.stringify({ id: `p${i}`, prompt: `${i}=7:`, answer: '7', difficulty: i % 2 ? 'odd' : 'even' })
writeFileSync(problems, Array.from({ length: 12 }, (_, i) => `${lineOf(i)}\n`).join(''))
const configFile = path.join(dir, 'sevens.yaml')
writeFileSync(
  configFile,
  JSON.stringify({
    model: { dir: model },
    data: { train: problems, eval: problems },
    task: { verifier },
    sampling: { promptsPerStep: 4, groupSize: 4, maxNewTokens: 8 },
    optimizer: { learningRate: 0.01, stepsPerBatch: 2 },
    run: { steps: 30, saveEvery: 10, threads: 1 },
    eval: { samples: 8, bootstrap: 100 },
  }),
)
const run = (name: string) => path.join(dir, name)
const weights = (name: string) =>
  readFileSync(path.join(readLatestCheckpoint(run(name))!.dir, 'model.safetensors'))
const state = (name: string) => readFileSync(readLatestCheckpoint(run(name))!.stateFile)

test('--help on every command; train lists every field with help, range and default', async () => {
  const main = await rapo('--help')
  const commands = [
    'init',
    'train',
    'eval',
    'study',
    'merge',
    'generate',
    'logprobs',
    'grade',
    'report',
    'setup',
    'doctor',
    'demo',
  ]
  for (const command of commands) {
    assert.match(main.stdout, new RegExp(`^  ${command} `, 'm'))
    const { code, stdout } = await rapo(command, '--help')
    assert.is(code, 0)
    assert.match(stdout, `Usage: rapo ${command}`)
    for (const line of stdout.split('\n')) assert.ok(line.length <= 100, line)
    if (command !== 'train') continue
    assert.match(stdout, 'reward   the mean over the last 10 steps')
    const text = stdout.replace(/\s+/g, ' ')
    for (const field of fields) {
      const mark = ['model.dir', 'data.train'].includes(field.path) ? 'required; ' : ''
      assert.match(text, `${field.option} <${field.type}> ${field.help} (${mark}${field.range}`)
      if (field.default) assert.match(text, `default ${field.default})`)
    }
    assert.match(text, 'Presets of objective.preset: rapo surrogate clip, penalty forward')
  }
  const bench = (await rapo('bench', '--help')).stdout.replace(/\s+/g, ' ')
  assert.match(bench, /--rows <counts> [^-]*\(default: \[128\]\)/)
})

test('mistakes on the command line: one clear message, exit code 1', async () => {
  const own = path.join(run('own'), 'config.yaml')
  mkdirSync(path.dirname(own))
  copyFileSync(configFile, own)
  const cases: [string[], string][] = [
    [['trian'], "unknown command 'trian'\n(Did you mean train?)"],
    [['train', '--objective.klcoef', '1'], '(Did you mean --objective.kl-coef?)'],
    [['train'], 'rapo: no configuration was named, as in npx rapo train --config FILE\nmodel.dir is'],
    [['train', 'c.yaml'], '(Did you mean --config c.yaml?)'],
    [['train', 'runs/c'], '(Did you mean --resume runs/c?)'],
    [['eval', 'runs/c'], '(Did you mean --model runs/c?)'],
    [['grade', 'in.jsonl.gz'], '(Did you mean --input in.jsonl.gz?)'],
    [['eval', '-m', path.join(dir, 'none')], 'rapo: there is no directory '],
    [['merge', '-m', path.join(dir, 'none'), '-o', run('merged')], 'rapo: there is no directory '],
    [
      ['train', '--resume', path.join(path.dirname(own), 'checkpoints', 'step-000001')],
      `; the run is ${path.dirname(own)}, and goes on from its newest checkpoint`,
    ],
    [
      ['train', '-c', configFile, '--objective.kl-coef', '-1'],
      'rapo: objective.klCoef is -1; it must be a number ≥ 0',
    ],
    [['train', '-c', path.join(dir, 'none.yaml')], 'rapo: cannot read '],
    [['eval', '-m', model, '--best'], `--best: ${model} is no run with checkpoints`],
    [['merge', '-m', model, '--best', '-o', run('merged')], `--best: ${model} is no run with checkpoints`],
    [['train', '--resume', dir], 'is no run directory: it has no config.yaml'],
    [['train', '--resume', dir, '-c', configFile], '--config does not go together with --resume'],
    [['train', '--resume', dir, '--objective.preset', 'grpo'], '--objective.preset does not go together'],
    [['train', '-c', own, '--run.output', path.dirname(own)], 'the run would write its config.yaml over'],
    [['train', '-c', configFile, '--model.device', 'gpu'], 'model.device is "gpu"; it must be cpu, cuda or'],
    [
      ['generate', '-m', model, '--device', 'cuda:x'],
      'model.device is "cuda:x"; it must be cpu, cuda or cuda:1 and so on',
    ],
    [['generate', '-m', model, '-o', path.join(dir, 'none', 'f')], 'rapo: cannot write '],
    [['eval', '-c', configFile], "required option '-m, --model <dir>' not specified"],
    [
      ['eval', '-m', model],
      `${model} is no run: a run has settings of its own; for a model, --config names a`,
    ],
    [['generate', '-m', model, '--n', '0'], 'It must be a whole number ≥ 1.'],
    [['generate', '-m', model, '--top-p', '0'], 'sampling.topP is 0; it must be a number > 0 and ≤ 1'],
    [['generate', '-m', model, '--min-p', '1'], 'sampling.minP is 1; it must be a number ≥ 0 and < 1'],
    [['logprobs', '-m', model, '--temperature', '0'], '--temperature is 0; it must be ≥ 0.000001'],
    [['generate', '-m', model], 'rapo: standard input is empty'],
    [['generate', '-m', model, '--template', 'chatml'], 'did you mean "chat"?'],
    [
      ['train', '-c', configFile, '--sampling.temperature', '0'],
      'sampling.temperature is 0, greedy, which is',
    ],
    [['report', path.join(dir, 'none')], 'none'],
  ]
  for (const [args, expected] of cases) {
    const { code, stdout, stderr } = await rapo(...args)
    assert.is(code, 1, args.join(' '))
    assert.is(stdout, '')
    assert.match(stderr, expected)
    assert.not.match(stderr, /^\s+at /m)
  }
  const { done, child } = startCli(['train'], { RAPO_DEBUG: '1' })
  child.stdin!.end()
  assert.match((await done).stderr, /^\s+at /m)
})

test('a whole run: equal bits for whole, stopped by Ctrl-C and resumed by the command that was printed', async () => {
  const whole = await rapo('train', '-c', configFile, '--run.output', run('whole'))
  assert.is(whole.code, 0, whole.stderr)
  assert.match(whole.stdout, `30 steps done, in ${run('whole')}; to measure: npx rapo eval --model`)
  assert.match(whole.stderr, /whole 30\/30 steps/)

  const hook = path.join(dir, 'interrupt.mjs')
  writeFileSync(hook, "export default ({ step }) => step === 5 && process.kill(process.pid, 'SIGINT')")
  const metrics = path.join(run('stopped'), 'metrics.jsonl')
  const stopped = await rapo(
    ...['train', '-c', configFile, '--run.output', run('stopped'), '--observe.hook', hook],
  )
  assert.is(stopped.code, 130, stopped.stderr)
  assert.match(stopped.stderr, 'finishing the step and saving')
  const [, step, command] = /^saved after step (\d+); to go on: (.*)$/m.exec(stopped.stdout) ?? []
  assert.ok(Number(step) < 30, stopped.stdout)
  assert.is(command, `npx rapo train --resume ${run('stopped')}`)
  const resumed = await rapo(...command!.split(' ').slice(2))
  assert.is(resumed.code, 0, resumed.stderr)
  assert.ok(weights('stopped').equals(weights('whole')))
  assert.ok(state('stopped').equals(state('whole')))

  const lines = readFileSync(metrics, 'utf8')
    .trim()
    .split('\n')
    .map(line => JSON.parse(line))
  assert.equal(
    lines.map(line => line.step),
    Array.from({ length: 30 }, (_, i) => i + 1),
  )
  // The engine's own: sampled and recomputed log-probs agree, so before an optimizer step the ratio is 1.
  for (const line of lines) {
    assert.ok(line.tokens > 0 && line.entropy > 0 && line.kl >= 0 && line.gradNorm > 0)
    assert.is(line.skippedSteps, 0)
  }
  assert.ok(Math.abs(lines[0].ratioMean - 1) < 0.05, String(lines[0].ratioMean))
  const mean = (part: { rewardMean: number }[]) =>
    part.reduce((sum, line) => sum + line.rewardMean, 0) / part.length
  assert.ok(mean(lines.slice(-5)) > mean(lines.slice(0, 5)), 'the reward did not rise')
})

test('2 N steps, and N, a resume, N more with the engine: equal bits', async () => {
  const first = await rapo('train', '-c', configFile, '--run.output', run('halves'), '--run.steps', '15')
  assert.is(first.code, 0, first.stderr)
  const second = await rapo('train', '--resume', run('halves'), '--run.steps', '30')
  assert.is(second.code, 0, second.stderr)
  assert.ok(weights('halves').equals(weights('whole')))
  assert.ok(state('halves').equals(state('whole')))
})

test('Ctrl-C before the first step quits at once: there is nothing to save', async () => {
  const verifier = path.join(dir, 'interrupted.mjs')
  writeFileSync(
    verifier,
    `process.kill(process.pid, 'SIGINT')
     await new Promise(resolve => setTimeout(resolve, 1e9))
     export default {}`,
  )
  const args = ['train', '-c', configFile, '--run.output', run('early'), '--task.verifier', verifier]
  const { code, stdout } = await rapo(...args)
  assert.is(code, 130)
  assert.is(stdout, '')
  assert.not(existsSync(run('early')))
})

test('a second Ctrl-C quits at once, and what is there can be resumed or replaced', async () => {
  const { child, done } = startCli([
    'train',
    '-c',
    configFile,
    '--run.output',
    run('quit'),
    '--run.steps',
    '1000000',
  ])
  const metrics = path.join(run('quit'), 'metrics.jsonl')
  const timer = setInterval(() => {
    if (existsSync(metrics) && readFileSync(metrics, 'utf8') !== '') {
      child.kill('SIGINT')
      child.kill('SIGINT')
    }
  }, 5)
  const { code, signal } = await new Promise<{ code: number | null; signal: string | null }>(resolve =>
    child.on('exit', (code, signal) => resolve({ code, signal })),
  )
  clearInterval(timer)
  await done
  assert.ok(code === 130 || signal !== null, `${code} ${signal}`)
})

test('eval measures a run, prints the table, writes both files; report makes the page', async () => {
  const { code, stdout, stderr } = await rapo('eval', '-m', run('whole'), '--n', '16')
  assert.is(code, 0, stderr)
  assert.match(stdout, /^all \(12 problems\)\npass@k +1 +2 +4 +8\nwhole +\d/m)
  assert.match(stdout, 'odd (6 problems)')
  assert.match(stdout, `s; written to ${path.join(run('whole'), 'eval.json')}\n`)
  const result = JSON.parse(readFileSync(path.join(run('whole'), 'eval.json'), 'utf8'))
  assert.equal(result.k, [1, 2, 4, 8])
  assert.is(result.model, run('whole'))
  const base = await rapo('eval', '-m', model, '-c', configFile, '--name', 'base', '--output', run('base'))
  assert.is(base.code, 0, base.stderr)
  assert.ok(
    result.groups.all.passAtK[0] >
      JSON.parse(readFileSync(path.join(run('base'), 'eval.json'), 'utf8')).groups.all.passAtK[0],
  )
  const page = path.join(dir, 'report.html')
  const report = await rapo('report', run('whole'), '--base', run('base'), '-o', page)
  assert.is(report.code, 0, report.stderr)
  assert.is(report.stdout, `${page}\n`)
  assert.match(readFileSync(page, 'utf8'), '<html')
})

test('greedy: one completion a problem, the same whatever the seed', async () => {
  const greedy = async (seed: string) => {
    const args = ['--n', '1', '--sampling.temperature', '0', '--eval.seed', seed]
    const { code, stderr, stdout } = await rapo(
      'eval',
      '-m',
      run('whole'),
      '--output',
      run('greedy'),
      ...args,
    )
    assert.is(code, 0, stderr)
    assert.match(stdout, /^pass@k +1$/m)
    return JSON.parse(readFileSync(path.join(run('greedy'), 'eval.json'), 'utf8'))
  }
  const { k, samplesPerProblem, temperature, perProblem } = await greedy('1')
  assert.equal([k, samplesPerProblem, temperature, perProblem.length], [[1], 1, 0, 12])
  assert.equal((await greedy('2')).perProblem, perProblem)
})

test('--best takes the best checkpoint of a run in place of its newest', async () => {
  const best = path.join(run('whole'), 'checkpoints', 'step-000020')
  const greedy = ['-n', '1', '--sampling.temperature', '0', '--output', run('best')]
  const none = await rapo('eval', '-m', run('whole'), '--best', ...greedy)
  assert.is(none.code, 1)
  assert.match(none.stderr, `--best: ${run('whole')} has no best checkpoint: run.keepBest keeps one`)
  writeFileSync(path.join(path.dirname(best), 'best'), 'step-000020\n')
  const measured = async (...args: string[]) => {
    const { code, stderr } = await rapo('eval', ...args, '--name', 'best', ...greedy)
    assert.is(code, 0, stderr)
    return JSON.parse(readFileSync(path.join(run('best'), 'eval.json'), 'utf8'))
  }
  const { model: named, perProblem } = await measured('-m', run('whole'), '--best')
  assert.is(named, best)
  assert.equal(perProblem, (await measured('-m', best, '-c', configFile)).perProblem)
  const generated = async (...args: string[]) => {
    const { code, stdout, stderr } = await rapo('generate', ...args, '-i', problems, '--max-new-tokens', '8')
    assert.is(code, 0, stderr)
    return stdout
  }
  const ofBest = await generated('-m', run('whole'), '--best')
  assert.is(ofBest, await generated('-m', best, '-c', configFile))
  assert.is.not(ofBest, await generated('-m', run('whole')))
})

test("generate takes a run's settings, and grade judges what it writes", async () => {
  const [generated, graded] = [path.join(dir, 'generated.jsonl'), path.join(dir, 'judged.jsonl')]
  const prompts = ['-m', run('whole'), '-i', problems, '--n', '2', '-o', generated]
  const made = await rapo('generate', ...prompts, '--template', '7{prompt}')
  assert.is(made.code, 0, made.stderr)
  const longest = (file: string) => {
    const rows = readFileSync(file, 'utf8')
      .trim()
      .split('\n')
      .map(line => JSON.parse(line) as { completions: { tokenIds: number[] }[] })
    assert.is(rows.length, 12)
    return Math.max(...rows.flatMap(({ completions }) => completions.map(({ tokenIds }) => tokenIds.length)))
  }
  // The run's sampling.maxNewTokens, not the command's 64.
  assert.is(longest(generated), 8)
  const judged = await rapo('grade', '--task', verifier, '-i', generated, '-o', graded)
  assert.is(judged.code, 0, judged.stderr)
  assert.match(judged.stderr, /of 24 correct/)
  assert.is(longest(graded), 8)
})

test('a fault in the middle of a run says how to go on', async () => {
  const failing = path.join(dir, 'failing.mjs')
  writeFileSync(
    failing,
    `let calls = 0
    export default { checkAnswer() {}, verify() { if (++calls > 50) throw new Error('it broke'); return { reward: 1, reason: '' } } }`,
  )
  const args = ['--run.output', run('failing'), '--run.save-every', '2', '--task.verifier', failing]
  const { code, stderr } = await rapo('train', '-c', configFile, ...args)
  assert.is(code, 1)
  assert.match(
    stderr,
    /rapo: the verifier failed on problem "p\d+", completion .*: it broke \(.*:\d+:\d+\)\n/,
  )
  assert.match(stderr, `to go on from step 3: npx rapo train --resume ${run('failing')}\n`)
})

test('generate and logprobs agree, from standard input to standard output', async () => {
  const pipe = async (input: object, ...args: string[]) => {
    const { child, done } = startCli(args)
    child.stdin!.end(`${JSON.stringify(input)}\n`)
    const { code, stdout, stderr } = await done
    assert.is(code, 0, stderr)
    return JSON.parse(stdout)
  }
  const args = ['-m', model, '--device', 'cpu', '--dtype', 'float32']
  const generated = await pipe(
    { prompt: '3 5=8:' },
    'generate',
    ...args,
    '--n',
    '2',
    '--max-new-tokens',
    '6',
    '--seed',
    '3',
  )
  assert.equal(
    generated,
    await pipe({ prompt: '3 5=8:' }, 'generate', ...args, '--n', '2', '--max-new-tokens', '6', '--seed', '3'),
  )
  assert.is(generated.completions.length, 2)
  for (const { tokenIds, logprobs } of generated.completions) {
    const scored = await pipe({ prompt: '3 5=8:', completionIds: tokenIds }, 'logprobs', ...args)
    for (const [i, value] of scored.logprobs.entries()) {
      // Two float32 computations of log-probs near −3: some units of 2.4e-7.
      assert.ok(Math.abs(value - logprobs[i]) < 5e-6, `${value} ${logprobs[i]}`)
      assert.ok(scored.entropy[i] > 0 && scored.entropy[i] <= Math.log(22) + 1e-6)
    }
  }
  const greedy = await pipe(
    { prompt: '3 5=8:' },
    'generate',
    ...args,
    '--temperature',
    '0',
    '--max-new-tokens',
    '4',
  )
  const again = await pipe(
    { prompt: '3 5=8:' },
    'generate',
    ...args,
    '--temperature',
    '0',
    '--max-new-tokens',
    '4',
    '--seed',
    '9',
  )
  assert.equal(greedy.completions, again.completions)
})

test('doctor says what there is', async () => {
  const { stdout } = await rapo('doctor')
  assert.match(stdout, /^node +v\d/m)
  assert.match(stdout, /^libtorch/m)
  assert.match(stdout, /\n\nEverything is in place\.\n$/)
  // The machine is told also where the configuration is wrong.
  const broken = path.join(dir, 'broken.mjs')
  writeFileSync(broken, 'export default 1')
  const wrong = path.join(dir, 'wrong.yaml')
  writeFileSync(wrong, readFileSync(configFile, 'utf8').replace(verifier, broken))
  const failed = await rapo('doctor', '-c', wrong)
  assert.match(failed.stdout, /^node +v\d/m)
  assert.match(failed.stderr, `rapo: task.verifier ${broken}: its default export must be a function`)
  assert.is(failed.code, 1)
})

/** A module whose promise never settles; with `isOpen` something keeps the process alive all the same. */
function hangingVerifier(name: string, isOpen: boolean): string {
  const file = path.join(dir, `${name}.mjs`)
  writeFileSync(
    file,
    `${isOpen ? 'setInterval(() => {}, 1000)' : ''}
    let isTold = false
    export default { checkAnswer() {}, verify() {
      if (!isTold) console.log('judging')
      isTold = true
      return new Promise(() => {})
    } }`,
  )
  return file
}

test('a verifier that never answers: train, eval and grade say so and fail', async () => {
  const file = hangingVerifier('never', false)
  const graded = path.join(dir, 'graded.jsonl')
  writeFileSync(graded, '{"answer":"1","reference":"1"}\n')
  const never =
    /^rapo: the verifier failed on (problem "p\d+", completion ".*"|.*graded.jsonl:1): its promise can never settle/m
  const commands = [
    ['train', '-c', configFile, '--run.output', run('never'), '--task.verifier', file],
    ['eval', '-m', model, '-c', configFile, '--output', run('never-eval'), '--task.verifier', file],
    ['grade', '--task', file, '-i', graded],
  ]
  for (const args of commands) {
    const { code, stderr } = await rapo(...args)
    assert.is(code, 1, args.join(' '))
    assert.match(stderr, never)
  }
  assert.not(existsSync(path.join(run('never'), 'run.lock')))
  assert.not(existsSync(path.join(run('never-eval'), 'eval.lock')))
})

test('Ctrl-C ends what a verifier or a hook hangs in, and saves the steps that are done', async () => {
  const verifier_ = hangingVerifier('hanging', true)
  const hook = path.join(dir, 'hook.mjs')
  writeFileSync(
    hook,
    `setInterval(() => {}, 1000)
    export default () => { console.log('judging'); return new Promise(() => {}) }`,
  )
  const interrupt = async (...args: string[]) => {
    const { child, done } = startCli(args)
    child.stdin!.end()
    child.stdout!.on('data', data => String(data).includes('judging') && child.kill('SIGINT'))
    return done
  }
  const train = ['train', '-c', configFile, '--run.output']
  const first = await interrupt(...train, run('hanging'), '--task.verifier', verifier_)
  assert.is(first.code, 130)
  assert.match(first.stderr, 'rapo: stopped before the first step was done: nothing is saved')
  assert.not(existsSync(path.join(run('hanging'), 'run.lock')))
  const second = await interrupt(...train, run('hooked'), '--observe.hook', hook)
  assert.is(second.code, 130)
  assert.match(second.stdout, `saved after step 1; to go on: npx rapo train --resume ${run('hooked')}`)
  assert.is(readLatestCheckpoint(run('hooked'))!.trainer.step, 1)
  const third = await interrupt(
    ...['eval', '-m', model, '-c', configFile, '--output', run('hanging-eval'), '--task.verifier', verifier_],
  )
  assert.is(third.code, 130)
  assert.match(third.stderr, 'rapo: stopped by SIGINT')
  assert.not(existsSync(path.join(run('hanging-eval'), 'eval.lock')))
})

test('commands to paste are called as this one was: a TypeScript verifier needs tsx again', () => {
  const bin = path.resolve('node_modules/.bin/rapo')
  const loader = 'file:///p/node_modules/tsx/dist/loader.mjs'
  const cases: [argv: string[], execArgv: string[], expected: string][] = [
    [[process.execPath, bin], [], 'npx rapo'],
    [[process.execPath, bin], ['--require', '/p/tsx.d/x.cjs'], 'npx rapo'],
    [[process.execPath, bin], ['--import', loader], 'npx tsx node_modules/.bin/rapo'],
    [[process.execPath, bin], ['--import', 'tsx'], 'npx tsx node_modules/.bin/rapo'],
    [[process.execPath, path.resolve('lib/cli/cli.ts')], [], 'npx tsx lib/cli/cli.ts'],
  ]
  for (const [argv, execArgv, expected] of cases) assert.is(invocation({ argv, execArgv }), expected)
})

test('what a verifier leaves open keeps no finished command alive', async () => {
  const file = path.join(dir, 'open.mjs')
  writeFileSync(
    file,
    `setInterval(() => {}, 1000)
    export default { checkAnswer() {}, verify: () => ({ reward: 1, reason: 'r' }) }`,
  )
  const { child, done } = startCli(['grade', '--task', file])
  child.stdin!.end('{"answer":"1","reference":"1"}\n')
  const { code, stdout } = await done
  assert.is(code, 0)
  assert.is(stdout, '{"answer":"1","reference":"1","correct":true,"reason":"r"}\n')
})

test.run()
