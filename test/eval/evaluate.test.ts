import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import { appendFileSync, existsSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { bootstrapMeans } from '../../lib/base/bootstrap.js'
import { listKs, passAtK } from '../../lib/base/stats.js'
import { parseConfig } from '../../lib/config/load.js'
import { evaluate } from '../../lib/eval/evaluate.js'
import { formatPassAtK, summarizeEval } from '../../lib/eval/groups.js'
import type { LoadPolicy } from '../../lib/model/policy.js'
import { train } from '../../lib/train/train.js'
import { evalConfig } from '../helpers/eval-child.js'
import { loadFakePolicy, makeFakeModel, makeTempDir } from '../helpers/fake-policy.js'

/** 1 − C(n−c, k) / C(n, k) with whole numbers of any size, rounded once. */
function exactPassAtK(n: number, c: number, k: number): number {
  const choose = (a: number, b: number) => {
    let result = 1n
    for (let i = 1; i <= b; i++) result = (result * BigInt(a - b + i)) / BigInt(i)
    return a < b ? 0n : result
  }
  const all = choose(n, k)
  const scale = 10n ** 25n
  return Number(((all - choose(n - c, k)) * scale) / all) / 1e25
}

test('pass@k by hand', () => {
  assert.is(passAtK(4, 0, 2), 0)
  assert.is(passAtK(4, 4, 1), 1)
  // One of four correct: a pair holds it with 3 of 6.
  assert.ok(Math.abs(passAtK(4, 1, 2) - 0.5) < 1e-15)
  // Two of four: only one pair of six misses both.
  assert.ok(Math.abs(passAtK(4, 2, 2) - 5 / 6) < 1e-15)
  assert.is(passAtK(4, 3, 2), 1)
  // k = 1 is the share of correct ones.
  assert.ok(Math.abs(passAtK(10, 3, 1) - 0.3) < 1e-15)
})

test('pass@k agrees with exact binomials, up to n = 2048, k = 1024', () => {
  for (const n of [2, 7, 64, 2048]) {
    for (const k of [...listKs(n), n - 1, n]) {
      for (const c of [0, 1, 2, 3, Math.floor(n / 10), Math.floor(n / 2), n - 1, n]) {
        if (c > n) continue
        const [actual, expected] = [passAtK(n, c, k), exactPassAtK(n, c, k)]
        // c terms of the product, half an ulp each, in a sum that expm1 passes on: 2048 · 1.1e-16, and some slack.
        assert.ok(
          Math.abs(actual - expected) <= 1e-12 * Math.max(expected, 1e-3),
          `${n} ${c} ${k}: ${actual} ${expected}`,
        )
      }
    }
  }
})

test('pass@k refuses numbers that make no sense', () => {
  for (const [n, c, k] of [
    [4, 5, 1],
    [4, -1, 1],
    [4, 1, 5],
    [4, 1, 0],
    [4, 1, Number.NaN],
    [4.5, 1, 2],
    [4, 1.5, 2],
    [4, 1, 1.5],
    [Infinity, 1, 1],
  ] as const) {
    assert.throws(() => passAtK(n, c, k), /needs 1 ≤ k ≤ n/)
  }
})

test('k doubles up to half of n', () => {
  assert.equal(listKs(1), [1])
  assert.equal(listKs(2), [1])
  assert.equal(listKs(9), [1, 2, 4])
  assert.equal(listKs(2048), [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024])
  assert.equal(listKs(16, 16), [1, 2, 4, 8, 16])
  assert.equal(listKs(9, 100), [1, 2, 4, 8])
})

test('the bootstrap: same seed same numbers, and the interval of a known distribution', () => {
  const rows = Array.from({ length: 100 }, (_, i) => [i < 50 ? 0 : 1, 0.25])
  const first = bootstrapMeans(rows, 2000, 1)
  assert.equal(bootstrapMeans(rows, 2000, 1), first)
  assert.not.equal(bootstrapMeans(rows, 2000, 2), first)
  assert.equal(first.mean, [0.5, 0.25])
  // A mean over 100 fair coins: standard deviation .05, so about .5 ± .098; the percentiles of 2000 draws are good to
  // about .004 (one standard deviation), the values lie .01 apart.
  assert.ok(Math.abs(first.low[0]! - 0.402) < 0.021, String(first.low[0]))
  assert.ok(Math.abs(first.high[0]! - 0.598) < 0.021, String(first.high[0]))
  // Problems that do not differ leave no doubt.
  assert.equal([first.low[1], first.high[1]], [0.25, 0.25])
  assert.equal(bootstrapMeans([[0.5]], 100, 1), { mean: [0.5], low: [0.5], high: [0.5] })
})

test('the summary splits by difficulty', () => {
  const results = [
    { id: 'a', difficulty: 'hard', n: 4, correct: 0 },
    { id: 'b', difficulty: 'easy', n: 4, correct: 4 },
    { id: 'c', difficulty: 'hard', n: 4, correct: 2 },
    { id: 'd', n: 4, correct: 4 },
  ]
  const groups = summarizeEval(results, [1, 2], 100, 1)
  assert.equal(Object.keys(groups), ['all', 'easy', 'hard'])
  assert.equal([groups.all!.problems, groups.easy!.problems, groups.hard!.problems], [4, 1, 2])
  assert.ok(Math.abs(groups.all!.passAtK[0]! - 2.5 / 4) < 1e-15)
  assert.ok(Math.abs(groups.hard!.passAtK[1]! - 5 / 12) < 1e-15)
})

const dir = makeTempDir()
const lines = [
  { id: 'a', prompt: '7=7:', answer: { numbers: [7], target: 7 }, difficulty: 'easy' },
  { id: 'b', prompt: '8=8:', answer: { numbers: [8], target: 8 }, difficulty: 'hard' },
]
const problems = path.join(dir, 'problems.jsonl')
/** Mostly writes 7 (id 10) or the end (id 1), sometimes 8 (id 11). */
const model = makeFakeModel({ 1: 10, 10: 10, 11: 8 })

async function measure(file: string, name: string, n = 64, samplesPerCall = 2048) {
  const config = parseConfig({
    model: { dir: model },
    task: { verifier: 'countdown' },
    data: { eval: file },
    sampling: { maxNewTokens: 4 },
    eval: { samples: n, keepSamples: 3, bootstrap: 100, samplesPerCall },
  })
  const output = path.join(dir, name)
  return {
    output,
    result: await evaluate(config, { dir: model, model: 'm', name, output, loadPolicy: loadFakePolicy }),
  }
}

test('measures a model and writes both files', async () => {
  writeFileSync(problems, lines.map(line => `${JSON.stringify(line)}\n`).join(''))
  const { output, result } = await measure(problems, 'first')
  assert.equal(JSON.parse(readFileSync(path.join(output, 'eval.json'), 'utf8')), result)
  assert.equal(result.k, [1, 2, 4, 8, 16, 32])
  assert.equal(
    result.perProblem.map(problem => [problem.id, problem.difficulty, problem.n]),
    [
      ['a', 'easy', 64],
      ['b', 'hard', 64],
    ],
  )
  // "7<eos>": 7 after 7 with probability ½ (.47), then the end (.47): .22, of 64 about 14, standard deviation 3.3.
  const [a, b] = result.perProblem.map(problem => problem.correct)
  assert.ok(a! > 0 && a! < 31, String(a))
  assert.ok(b! < a!, String(b))
  assert.ok(result.groups.easy!.passAtK.every((value, i, all) => i === 0 || value >= all[i - 1]!))
  const samples = readFileSync(path.join(output, 'eval-samples.jsonl'), 'utf8').trim().split('\n')
  assert.is(samples.length, 6)
  assert.equal(Object.keys(JSON.parse(samples[0]!)), [
    'problemId',
    'prompt',
    'renderedPrompt',
    'completion',
    'reward',
    'reason',
    'finishReason',
  ])
  const table = formatPassAtK([result])
  assert.match(table, 'easy (1 problem)')
  assert.match(table, result.groups.easy!.passAtK[0]!.toFixed(3))
})

test('maj@k: wrong answers vote by their value; greedy: one completion a problem, the likeliest', async () => {
  const file = path.join(dir, 'voted.jsonl')
  const row = (id: string) => ({ id, prompt: `${id}=8:`, answer: { numbers: [7, 8], target: 8 } })
  writeFileSync(file, ['5', '6'].map(id => `${JSON.stringify(row(id))}\n`).join(''))
  const { result } = await measure(file, 'voted')
  const { all } = result.groups
  assert.is(all!.majority!.majAtK[0], all!.passAtK[0])
  assert.equal([all!.majority!.low[0], all!.majority!.high[0]], [all!.low[0], all!.high[0]])
  for (const { n, correct, wrongVotes } of result.perProblem) {
    // The only wrong value that the model writes is 7; much of what it writes is no expression.
    assert.is(wrongVotes!.length, 1)
    assert.ok(wrongVotes![0]! > 0 && wrongVotes![0]! + correct < n, `${wrongVotes} ${correct}`)
  }
  assert.match(formatPassAtK([result]), /maj@k +1 +2 /)

  const greedy = (temperature: number, own?: number) =>
    evaluate(
      parseConfig({
        ...{ model: { dir: model }, task: { verifier: 'countdown' }, data: { eval: problems } },
        sampling: { maxNewTokens: 4, temperature },
        eval: { samples: 1, bootstrap: 100, ...(own !== undefined && { temperature: own }) },
      }),
      { dir: model, model: 'm', name: 'n', output: makeTempDir(), loadPolicy: loadFakePolicy },
    )
  for (const result of [await greedy(0), await greedy(1, 0)]) {
    // The likeliest is the end, at once: nothing is right, and nothing is an answer.
    assert.equal([result.k, result.temperature, result.tokens], [[1], 0, 2])
    assert.equal(result.groups.all!.passAtK, [0])
    assert.equal(
      result.perProblem.map(({ n, wrongVotes }) => [n, wrongVotes]),
      [
        [1, []],
        [1, []],
      ],
    )
  }
})

test('a verifier that gives no answers has no maj@k; one that gives them has', async () => {
  const evaluateWith = (code: string) => {
    const file = path.join(makeTempDir(), 'verifier.mjs')
    writeFileSync(file, code)
    const config = {
      ...evalConfig(model, problems),
      task: { ...evalConfig(model, problems).task, verifier: file },
    }
    return evaluate(config, {
      dir: model,
      model: 'm',
      name: 'n',
      output: makeTempDir(),
      loadPolicy: loadFakePolicy,
    })
  }
  const without = await evaluateWith("export default text => (text === '7' ? 1 : 0)")
  assert.is(without.groups.all!.majority, undefined)
  assert.ok(without.perProblem.every(result => !('wrongVotes' in result)))
  const given = await evaluateWith(
    "export default text => ({ reward: text === '7' ? 1 : 0, answer: text[0] })",
  )
  assert.ok(given.groups.all!.majority)
  const wrong = evaluateWith('export default () => ({ reward: 1, answer: 7 })')
  await wrong.then(assert.unreachable as never, error => {
    assert.match(error.message, /its answer is 7; it must be a text, or be left out/)
  })
})

test("a problem's result depends on the seed and the problem, not on the others", async () => {
  const { result: both } = await measure(problems, 'first')
  const single = path.join(dir, 'single.jsonl')
  writeFileSync(single, JSON.stringify(lines[1]))
  const { result: alone } = await measure(single, 'second')
  assert.equal(alone.perProblem[0], both.perProblem[1])
  // One problem a call, not both.
  const { result: apart } = await measure(problems, 'apart', 64, 64)
  assert.equal(apart.perProblem, both.perProblem)
})

test('each call for each problem samples with a seed of its own', async () => {
  const seeds: number[] = []
  const loadPolicy: LoadPolicy = async (from, options) => {
    const policy = await loadFakePolicy(from, options)
    return {
      ...policy,
      generate: (prompts, params) => {
        seeds.push(...[params.seed].flat())
        return policy.generate(prompts, params)
      },
    }
  }
  const config = evalConfig(model, problems, { samples: 12, samplesPerCall: 4 })
  const output = path.join(dir, 'seeds')
  await evaluate(config, { dir: model, model: 'm', name: 'n', output, loadPolicy })
  assert.is(seeds.length, 6)
  assert.is(new Set(seeds).size, 6)
})

test('an evaluation that cannot begin writes nothing', async () => {
  const broken = path.join(dir, 'broken.jsonl')
  writeFileSync(broken, '{"prompt": "7=7:", "answer": {"numbers": [7]}}\n')
  try {
    await measure(broken, 'third')
    assert.unreachable()
  } catch (error) {
    assert.match((error as Error).message, `${broken}:1: answer.target must be a whole number`)
  }
  assert.not(existsSync(path.join(dir, 'third')))
})

/** Ten problems, measured in four calls each. */
const ten = path.join(dir, 'ten.jsonl')
const tenLines = Array.from({ length: 10 }, (_, i) => ({ ...lines[i % 2]!, id: `p${i}`, prompt: `${i}=7:` }))
writeFileSync(ten, tenLines.map(line => `${JSON.stringify(line)}\n`).join(''))

const measureTen = (output: string, changes?: object, options?: object) =>
  evaluate(evalConfig(model, ten, changes), {
    ...{ dir: model, model: 'm', name: 'n', output, loadPolicy: loadFakePolicy },
    ...options,
  })

/** All that must be the same in two measurements of the same. */
function outcome(output: string) {
  const { seconds: _, ...result } = JSON.parse(readFileSync(path.join(output, 'eval.json'), 'utf8'))
  return { result, samples: readFileSync(path.join(output, 'eval-samples.jsonl'), 'utf8') }
}

/** Calls that are in the file more than once. */
function measuredTwice(progress: string): string[] {
  const [, ...lines] = readFileSync(progress, 'utf8').split('\n').slice(0, -1)
  const calls = lines.map(line => `${JSON.parse(line).problemId} ${JSON.parse(line).call}`)
  return calls.filter((call, i) => calls.indexOf(call) < i)
}

test('killed again and again, a measurement goes on where it stopped, to the same result', async () => {
  const [whole, killed] = [path.join(dir, 'whole'), path.join(dir, 'killed')]
  await measureTen(whole)
  const progress = path.join(killed, 'eval-progress.jsonl')
  const countLines = () => (existsSync(progress) ? readFileSync(progress, 'utf8').split('\n').length - 1 : 0)
  const reached: number[] = []
  for (let isDone = false; !isDone; ) {
    const call = reached.length < 3 ? String(6 + reached.length) : ''
    const args = ['--import', 'tsx', 'test/helpers/eval-child.ts', killed, model, ten, call]
    const child = spawn(process.execPath, args, { stdio: 'inherit' })
    const [code, signal] = (await once(child, 'exit')) as [number | null, string | null]
    assert.ok(code === 0 || signal === 'SIGKILL', `the child ended with ${code ?? signal}`)
    isDone = code === 0
    if (!isDone) reached.push(countLines())
    // Of the killed process; it does not keep the next one out.
    assert.is(existsSync(path.join(killed, 'eval.lock')), !isDone)
    if (!isDone) assert.equal(measuredTwice(progress), [])
    // As a kill in the middle of a write leaves it.
    if (reached.length === 2) appendFileSync(progress, '{"problemId":"p9","ca')
  }
  assert.is(reached.length, 3)
  // Each one got further.
  assert.ok(reached[0]! < reached[1]! && reached[1]! < reached[2]!, String(reached))
  assert.equal(outcome(killed), outcome(whole))
  assert.not(existsSync(progress))
  assert.is(outcome(whole).samples.trim().split('\n').length, 10 * 20)
})

test('one measurement at a time in a directory: a second one is told so and changes nothing', async () => {
  const output = path.join(dir, 'twice')
  let release = () => {}
  const waiting = new Promise<void>(resolve => (release = resolve))
  const slow: LoadPolicy = async (from, options) => {
    await waiting
    return loadFakePolicy(from, options)
  }
  const first = measureTen(output, {}, { loadPolicy: slow })
  const lock = path.join(output, 'eval.lock')
  while (!existsSync(lock)) await new Promise(resolve => setTimeout(resolve, 1))
  const messageOf = (options: object) =>
    measureTen(output, {}, options).then(assert.unreachable as never, error => {
      assert.is(error.code, 'ERR_RAPO_CONFIG')
      return error.message as string
    })
  const expected = (pid: number) =>
    `${output} is in use by process ${pid}; if that is no \`rapo eval\`, remove ${lock}`
  assert.is(await messageOf({}), expected(process.pid))
  assert.is(await messageOf({ restart: true }), expected(process.pid))
  release()
  await first
  assert.not(existsSync(lock))

  // Of another process that is alive.
  writeFileSync(lock, String(process.ppid))
  assert.is(await messageOf({}), expected(process.ppid))
  assert.is(readFileSync(lock, 'utf8'), String(process.ppid))
})

test('an interrupted measurement is not mixed with another', async () => {
  const output = path.join(dir, 'mixed')
  const stop = new Error('stop')
  const failing: LoadPolicy = async (from, options) => {
    const policy = await loadFakePolicy(from, options)
    let calls = 0
    return {
      ...policy,
      generate: async (...call) => (++calls > 5 ? Promise.reject(stop) : policy.generate(...call)),
    }
  }
  await measureTen(output, {}, { loadPolicy: failing }).then(
    () => assert.unreachable(),
    error => assert.is(error, stop),
  )
  await measureTen(output, { seed: 2 }).then(
    () => assert.unreachable(),
    error => {
      assert.is(error.code, 'ERR_RAPO_CONFIG')
      assert.match(error.message, 'an interrupted measurement with eval.seed 1, not 2')
    },
  )
  await measureTen(output, { seed: 2 }, { restart: true })
  const clean = path.join(dir, 'clean')
  await measureTen(clean, { seed: 2 })
  assert.equal(outcome(output), outcome(clean))
})

test('progress counts completions: within a call, and those that an interrupted measurement left', async () => {
  const output = path.join(dir, 'progress')
  let seen: number[][] = []
  let calls = 0
  const loadPolicy: LoadPolicy = async (from, options) => {
    const policy = await loadFakePolicy(from, options)
    return {
      ...policy,
      async generate(prompts, sampling, told) {
        if (++calls === 4) throw new Error('stop')
        told?.onProgress?.(3, 4)
        return policy.generate(prompts, sampling, told)
      },
    }
  }
  const options = { loadPolicy, onProgress: (...all: number[]) => seen.push(all) }
  await measureTen(output, {}, options).then(
    () => assert.unreachable(),
    error => assert.is(error.message, 'stop'),
  )
  // Calls of 16, three quarters of whose tokens there are: of 15, rounded down.
  assert.equal(seen, [
    [0, 600, 0],
    [11, 600, 0],
    [16, 600, 0],
    [27, 600, 0],
    [32, 600, 0],
    [43, 600, 0],
    [48, 600, 0],
  ])
  seen = []
  const { perProblem } = await measureTen(output, {}, options)
  assert.equal(seen[0], [48, 600, 0])
  assert.equal(seen.at(-1), [600, 600, perProblem.filter(({ correct }) => correct > 0).length])
})

test('problems that are hard for the base are a group of their own', async () => {
  const output = path.join(dir, 'hard')
  const base = path.join(dir, 'base.json')
  const perProblem = tenLines.map(({ id }, i) => ({ id, n: 100, correct: [0, 1, 2, 50][i] ?? 90 }))
  writeFileSync(base, JSON.stringify({ perProblem }))
  const never = await measureTen(output, { base })
  assert.is(never.groups['hard for base']!.problems, 1)
  const rarely = await measureTen(output, { base, hardBelow: 0.02 })
  assert.equal(
    rarely.perProblem.filter(result => result.hardForBase).map(({ id }) => id),
    ['p0', 'p1'],
  )
  const own = rarely.perProblem.slice(0, 2).map(({ n, correct }) => correct / n)
  assert.ok(Math.abs(rarely.groups['hard for base']!.passAtK[0]! - (own[0]! + own[1]!) / 2) < 1e-15)
  assert.not.ok('hard for base' in (await measureTen(output)).groups)

  writeFileSync(base, JSON.stringify({ perProblem: perProblem.slice(1) }))
  const messageOf = (changes: object) =>
    measureTen(output, changes).then(assert.unreachable as never, error => error.message)
  assert.match(await messageOf({ base }), 'has no result for 1 of 10 problems, such as "p0"')
  writeFileSync(base, '{}')
  assert.match(await messageOf({ base }), 'is no eval.json')
})

test('a problem longer than the context: an error that names it, or left out', async () => {
  const file = path.join(dir, 'long.jsonl')
  const long = { ...lines[0]!, id: 'long', prompt: `${'7'.repeat(70)}:` }
  writeFileSync(file, [lines[0]!, long].map(line => `${JSON.stringify(line)}\n`).join(''))
  const options = {
    dir: model,
    model: 'm',
    name: 'n',
    output: path.join(dir, 'long'),
    loadPolicy: loadFakePolicy,
  }
  const config = evalConfig(model, file)
  await evaluate(config, options).then(
    () => assert.unreachable(),
    error => {
      assert.is(error.code, 'ERR_RAPO_DATA')
      assert.match(
        error.message,
        'problem "long": its prompt of 71 tokens and sampling.maxNewTokens 4 exceed',
      )
    },
  )
  let told: readonly string[] = []
  config.data.dropUnusable = true
  const result = await evaluate(config, { ...options, onUnusable: rows => (told = rows) })
  assert.equal(
    result.perProblem.map(({ id }) => id),
    ['a'],
  )
  assert.is(told.length, 1)

  // As an evaluation of the base with the same settings leaves it out, the base needs no result for it.
  const declared = makeFakeModel()
  writeFileSync(path.join(declared, 'config.json'), '{"max_position_embeddings":64}')
  config.eval.base = path.join(dir, 'base-without-long.json')
  writeFileSync(config.eval.base, JSON.stringify({ perProblem: [{ id: 'a', n: 4, correct: 0 }] }))
  const { groups } = await evaluate(config, { ...options, dir: declared, onUnusable: () => {} })
  assert.is(groups['hard for base']!.problems, 1)
})

test('what is wrong with the data is said before the model is loaded, and nothing is written', async () => {
  const declared = makeFakeModel()
  writeFileSync(path.join(declared, 'config.json'), '{"max_position_embeddings":20}')
  const unloaded: LoadPolicy = () => assert.unreachable('the model is loaded') as never
  const output = path.join(dir, 'unusable')
  const attempt = (name: string, content: string | Buffer, data: object = {}) => {
    const file = path.join(dir, name)
    writeFileSync(file, content)
    const config = parseConfig({
      ...evalConfig(declared, file),
      data: { eval: file, train: file, ...data },
      run: { output },
    })
    const evaluating = evaluate(config, {
      dir: declared,
      model: 'm',
      name: 'n',
      output,
      loadPolicy: unloaded,
    })
    const training = train(config, { loadPolicy: unloaded })
    return Promise.all(
      [evaluating, training].map(work =>
        (work as Promise<unknown>).then<never, string>(assert.unreachable as never, error => {
          assert.is(error.code, 'ERR_RAPO_DATA')
          return error.message as string
        }),
      ),
    )
  }
  const good = JSON.stringify(lines[0])
  const long = JSON.stringify({ ...lines[0]!, id: 'long', prompt: '7'.repeat(17) })
  const cases: [string, string | Buffer, RegExp, object?][] = [
    [
      'too-long.jsonl',
      `${good}\n${long}\n`,
      /problem "long": its prompt of 17 tokens and sampling.maxNewTokens 4 exceed the model's context of 20\n1 of 2 cannot be used/,
    ],
    ['no-answer.jsonl', `${good}\n{"prompt":"p","answer":""}\n`, /no-answer.jsonl:2: answer/],
    [
      'no-field.jsonl',
      `${good}\n`,
      /has no field "solution" \(data.answerField\); it has id, prompt, answer/,
      { answerField: 'solution' },
    ],
    ['cut.parquet', Buffer.from('PAR1 cut'), /cut.parquet is no readable Parquet file: /],
  ]
  for (const [name, content, message, data] of cases) {
    for (const found of await attempt(name, content, data)) assert.match(found, message)
  }
  assert.not(existsSync(output))
})

test('every call samples with seeds of its own: no problem and no call shares one', async () => {
  const seeds: number[] = []
  const loadPolicy: LoadPolicy = async (from, options) => {
    const policy = await loadFakePolicy(from, options)
    return {
      ...policy,
      generate(prompts, sampling, told) {
        seeds.push(...(sampling.seed as number[]))
        return policy.generate(prompts, sampling, told)
      },
    }
  }
  await measureTen(path.join(dir, 'seeds'), {}, { loadPolicy })
  assert.is(seeds.length, 40)
  assert.is(new Set(seeds).size, 40)
})

/** The calls that a stopped measurement has kept. */
const kept = (output: string) =>
  readFileSync(path.join(output, 'eval-progress.jsonl'), 'utf8').split('\n').length - 2

test('a signal stops between calls and in one, rejects with its reason, and the finished calls are kept', async () => {
  const whole = path.join(dir, 'unstopped')
  await measureTen(whole)
  for (const isWithin of [false, true]) {
    const output = path.join(dir, `signal-${isWithin}`)
    const stop = new AbortController()
    const reason = new Error('enough')
    let calls = 0
    const loadPolicy: LoadPolicy = async (from, options) => {
      const policy = await loadFakePolicy(from, options)
      return {
        ...policy,
        async generate(prompts, sampling, told) {
          if (++calls === 3) stop.abort(reason)
          if (isWithin) told?.signal?.throwIfAborted()
          return policy.generate(prompts, sampling, told)
        },
      }
    }
    const error = await measureTen(output, {}, { loadPolicy, signal: stop.signal }).catch(error => error)
    assert.is(error, reason)
    assert.is(calls, 3)
    assert.is(kept(output), isWithin ? 2 : 3)
    assert.not(existsSync(path.join(output, 'eval.lock')))
    await measureTen(output)
    assert.equal(outcome(output), outcome(whole))
  }
})

test('an onProgress that throws, as the engine calls it from a timer: the call that is running is kept', async () => {
  const output = path.join(dir, 'throwing')
  const boom = new Error('boom')
  let fromTimer: unknown
  const loadPolicy: LoadPolicy = async (from, options) => {
    const policy = await loadFakePolicy(from, options)
    return {
      ...policy,
      async generate(prompts, sampling, told) {
        try {
          told?.onProgress?.(1, 2)
        } catch (error) {
          fromTimer = error
        }
        return policy.generate(prompts, sampling, told)
      },
    }
  }
  const onProgress = (done: number) => {
    if (done > 0) throw boom
  }
  const error = await measureTen(output, {}, { loadPolicy, onProgress }).catch(error => error)
  assert.is(error, boom)
  assert.is(fromTimer, undefined)
  assert.is(kept(output), 1)
})

test('an onProgress that never answers is an error that says so, in a process with nothing left to do', () => {
  const output = path.join(dir, 'silent')
  const args = ['--import', 'tsx', 'test/helpers/eval-child.ts', output, model, ten, 'silent']
  const { status, stderr } = spawnSync(process.execPath, args, { encoding: 'utf8' })
  assert.is(status, 1)
  assert.match(stderr, 'the promise of a callback can never settle')
  assert.not(existsSync(path.join(output, 'eval.lock')))
})

test('an interrupted measurement knows the module that judged; one of an older version goes on', async () => {
  const output = path.join(dir, 'judged')
  const verifier = path.join(dir, 'judge.mjs')
  const write = (reward: number) =>
    writeFileSync(
      verifier,
      `export default { checkAnswer() {}, verify: () => ({ reward: ${reward}, reason: '' }) }`,
    )
  const config = evalConfig(model, ten)
  config.task.verifier = verifier
  const measure = (options: object = {}) =>
    evaluate(config, {
      ...{ dir: model, model: 'm', name: 'n', output, loadPolicy: loadFakePolicy },
      ...options,
    })
  let calls = 0
  const failing: LoadPolicy = async (from, options) => {
    const policy = await loadFakePolicy(from, options)
    return {
      ...policy,
      generate: (...call) => (++calls > 2 ? Promise.reject(new Error('stop')) : policy.generate(...call)),
    }
  }
  write(1)
  await measure({ loadPolicy: failing }).catch(() => {})
  const progress = path.join(output, 'eval-progress.jsonl')
  const before = readFileSync(progress, 'utf8')
  write(0)
  const error = await measure().catch(error => error)
  assert.is(error.code, 'ERR_RAPO_CONFIG')
  assert.match(error.message, /an interrupted measurement with verifier module "\w+", not "\w+"/)
  assert.is(readFileSync(progress, 'utf8'), before)
  // The module may read the other columns.
  write(1)
  const problems = readFileSync(ten, 'utf8')
  writeFileSync(ten, problems.replaceAll('}\n', ',"more":1}\n'))
  const changed = await measure().catch(error => error)
  assert.match(changed.message, /an interrupted measurement with columns "\w+", not "\w+"/)
  writeFileSync(ten, problems)
  write(0)
  writeFileSync(progress, before.replace(/"verifier module":"\w+",/, ''))
  assert.is((await measure()).perProblem.length, 10)
})

test.run()
