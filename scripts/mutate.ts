/**
 * npm run mutate -- lib|kernels|engine: puts single small mistakes into the code, one at a time, and runs the tests that cover
 * the code. A mistake that no test notices shows a missing test, or code that is not needed.
 *
 *     --count 150      number of mistakes. --seed selects them; the selection stays the same while other lines change
 *     --seed 1
 *     --only lib/loss,lib/world  only files whose path contains one of these words
 *     --asked 4        lib: test files per mistake, those that import its file, the nearest and quickest first. The kernels'
 *                      are asked all, the engine's as listed below.
 *     --tests infer,eval  only the test files whose path contains one of these words, in place of those that would be asked
 *     --at lib/loss    of the selected mistakes, only those whose place contains this text, such as lib/loss/rows.ts:12
 *     --jobs 1         mistakes that are judged at once
 *     --again          judges again the mistakes that survived before
 *     --results FILE   where verdicts are kept; build/mutate/results.jsonl if left out
 *     --list           lists the survivors and runs nothing
 *     --plan           lists the selected mistakes and runs nothing
 *     --build          kernels and engine: only builds the copy with all mistakes
 *
 * A mistake counts as found if a test fails. In lib, and if the test took too long, the same test must then pass without the
 * mistake. Mistakes that change nothing are listed, with the reason, in scripts/equivalent-mutants.json; they are neither tried
 * nor counted. Works on a copy in build/mutate. Verdicts are kept at once, and an interrupted run goes on where it ended. A run
 * takes hours: start it with nice.
 */
import { spawn, spawnSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import {
  appendFileSync,
  cpSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { cacheDir } from '../lib/setup/cache.js'
import { drawNative, drawTypeScript, type Mutant } from './mutants.js'

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)))
const home = path.join(root, 'build', 'mutate')
/**
 * Limits for a test file, against mistakes that loop or wait for ever: seconds of CPU and of waiting beyond ten times the usual
 * ones, and GiB of memory. A busy machine lets a test wait for long.
 */
const SLACK = { cpu: 60, wall: 300 }
const MEMORY = 8
/** A test that fails with the mistake and then without it says nothing. Both are run again, this many times in all. */
const TRIES = 3

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    count: { type: 'string' },
    seed: { type: 'string', default: '1' },
    only: { type: 'string', default: '' },
    asked: { type: 'string', default: '4' },
    tests: { type: 'string' },
    at: { type: 'string', default: '' },
    jobs: { type: 'string', default: '1' },
    again: { type: 'boolean', default: false },
    results: { type: 'string', default: path.join(home, 'results.jsonl') },
    list: { type: 'boolean', default: false },
    plan: { type: 'boolean', default: false },
    build: { type: 'boolean', default: false },
  },
})
const ASKED = Number(values.asked)
const JOBS = Number(values.jobs)
const results = path.resolve(values.results)
const part = positionals[0] as 'lib' | 'kernels' | 'engine'
const parts = {
  // Left out: drawings, code that needs another program or a GPU, measurements, and math answers, whose rules are one by one
  // in tables of examples.
  lib: {
    count: 150,
    isDrawn: /^lib\/.*\.ts$/,
    isSpared: /^lib\/(report|bench|setup|reward\/math)\/|theory\/figure|loss\/cuda|cli\/(demo|doctor)/,
    tests: /./,
  },
  kernels: {
    count: 60,
    isDrawn: /^(native\/kernels|bindings\/(arrays|async|errors|executor|kernels|objective))/,
    isSpared: /cuda|select|x86/,
    tests: /^test\/(kernels\/|loss\/objective|cuda\/cuda-emulator)/,
  },
  engine: {
    count: 60,
    isDrawn: /^(native\/(engine|simd\/exp)|bindings\/engine)/,
    isSpared: /cuda|device|select|_none/,
    tests: /^test\/(engine|kernels|model|world)\/(?!hub|engine-python)|train\/(memory|ranks)/,
  },
}
/** The operations of other devices, on the CPU: engine-isa.test.ts runs these files so. */
const aten = ['golden', 'generate', 'aten', 'turns'].map(
  name => `RAPO_TEST_BACKEND=aten test/engine/engine-${name}.test.ts`,
)
/** The tests that cover the engine, by the path of the source file, the likeliest to notice a mistake first. */
const engineTests: readonly (readonly [RegExp, readonly string[]])[] = [
  [/native\/simd\//, ['kernels.test', 'engine-golden', 'engine.test', 'kernels-golden']],
  [/engine\/files\//, ['engine-files', 'models', 'engine-golden', 'engine.test']],
  [/engine\/comm\//, ['world/world', 'train/ranks']],
  [/ops\/aten\/|block_cache|sampler_aten/, [...aten, 'engine.test']],
  [/engine\/generate\//, ['engine-generate', 'engine-turns', 'engine-golden', 'engine-async']],
  [/model\/adapter/, ['engine-lora', 'engine-golden', 'engine.test']],
  [/model\/memory/, ['train/memory', 'models', 'engine.test']],
  [
    /engine\/ops\//,
    ['engine-golden', 'engine-generate', 'engine.test', 'engine-product', 'engine-reference'],
  ],
  [/./, ['engine-golden', 'engine.test', 'engine-files', 'engine-generate', 'engine-lora', 'models']],
]
if (!(part in parts)) throw new Error('what is to be mutated: lib, kernels or engine')
const { isDrawn, isSpared, tests, count } = parts[part]
const words = values.tests?.split(',')
const only = values.only.split(',')

/** Where and what a mutant is, independent of line numbers: the line's text, and its place among equal ones in the file. */
interface Name {
  readonly file: string
  readonly line: string
  readonly what: string
  readonly nth?: number
}
interface Drawn extends Mutant {
  readonly source: string
  readonly name: Name
  readonly key: string
  readonly place: string
}
interface Result {
  readonly key: string
  readonly place: string
  readonly what: string
  /** The test file that failed; absent if the mistake survived. */
  readonly by?: string
}
/** One of those that run tests at the same time. */
interface Job {
  /** The copy of the checkout that it runs tests in. */
  readonly tree: string
  /** Its own, since its files are removed after each test. */
  readonly temporary: string
}
interface Usual {
  /** Seconds of CPU, and seconds in all. */
  readonly cpu: number
  readonly wall: number
}

const drawn = draw()
mkdirSync(path.dirname(results), { recursive: true })
mkdirSync(home, { recursive: true })
/** Tests that were, or are, measured in this run. */
const measured = new Map<string, Promise<void>>()
const known = new Map(readResults().map(result => [result.key, result]))
if (values.plan) {
  for (const { place, name } of drawn) console.log(`${place}  ${name.what}  | ${name.line}`)
} else if (values.list) summarize()
else {
  const times = path.join(home, `usual-${part}.json`)
  const usual = new Map<string, Usual>(existsSync(times) ? JSON.parse(readFileSync(times, 'utf8')) : [])
  process.on('exit', () => writeFileSync(times, JSON.stringify([...usual])))
  for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => process.exit(1))
  if (part === 'lib') await judgeLib(usual)
  else await judgeNative(copyTree(part), usual)
  summarize()
}

/** A mistake's rank is a hash of its name, so that changes in other lines do not change the selection. */
function draw(): Drawn[] {
  const all: (Drawn & { rank: string })[] = []
  const reviewed = readEquivalents()
  for (const file of listFiles()) {
    if (!isDrawn.test(file) || isSpared.test(file) || !/\.(ts|cpp|h)$/.test(file)) continue
    const source = readFileSync(path.join(root, file), 'utf8')
    const lines = source.split('\n')
    const seen = new Map<string, number>()
    for (const mutant of part === 'lib' ? drawTypeScript(file, source) : drawNative(source)) {
      const number = source.slice(0, mutant.start).split('\n').length
      const line = lines[number - 1]!.trim()
      const again = seen.get(`${line}\n${mutant.what}`) ?? 0
      seen.set(`${line}\n${mutant.what}`, again + 1)
      const name = { file, line, what: mutant.what, ...(again > 0 && { nth: again }) }
      const key = hash(JSON.stringify(name))
      if (reviewed.delete(key) || !only.some(word => file.includes(word))) continue
      all.push({
        ...mutant,
        source,
        name,
        key,
        place: `${file}:${number}`,
        rank: hash(`${values.seed}\n${key}`),
      })
    }
  }
  for (const { file, line, what } of reviewed.values()) {
    console.error(`scripts/equivalent-mutants.json: the code has no such mutant: ${file} | ${line} | ${what}`)
    process.exitCode = 1
  }
  all.sort((a, b) => (a.rank < b.rank ? -1 : 1))
  const chosen: Drawn[] = []
  for (const mutant of all) {
    const isApart = (other: Drawn) =>
      other.name.file !== mutant.name.file || other.end <= mutant.start || other.start >= mutant.end
    if (part === 'lib' || chosen.every(isApart)) chosen.push(mutant)
    if (chosen.length === Number(values.count ?? count)) break
  }
  return chosen
}

function hash(text: string): string {
  return createHash('sha256').update(text).digest('hex').slice(0, 16)
}

/** By key, those of this part. */
function readEquivalents(): Map<string, Name> {
  const file = path.join(root, 'scripts', 'equivalent-mutants.json')
  const all: (Name & { reason: string })[] = JSON.parse(readFileSync(file, 'utf8'))
  return new Map(
    all
      .filter(entry => isDrawn.test(entry.file) && !isSpared.test(entry.file))
      .map(({ reason: _, file, line, what, nth }) => {
        const name = { file, line, what, ...(nth && { nth }) }
        return [hash(JSON.stringify(name)), name]
      }),
  )
}

function readResults(): Result[] {
  if (!existsSync(results)) return []
  return readFileSync(results, 'utf8')
    .split('\n')
    .filter(Boolean)
    .map(line => JSON.parse(line))
}

/** The files of this checkout, new ones included. */
function listFiles(): string[] {
  const listed = spawnSync('git', ['ls-files', '-z', '-co', '--exclude-standard'], {
    cwd: root,
    encoding: 'utf8',
  })
  return listed.stdout
    .split('\0')
    .filter(file => file && existsSync(path.join(root, file)))
    .sort()
}

/**
 * Copies the files of this checkout. The copy for lib uses the built addons; the others build their own, which is quick if only
 * the files that changed are written.
 */
function copyTree(to: string): string {
  const tree = path.join(home, to)
  const files = listFiles()
  const written = new Set(part === 'lib' ? [] : drawn.map(mutant => mutant.name.file))
  for (const name of ['lib', 'test', 'native', 'bindings']) {
    if (!existsSync(path.join(tree, name))) continue
    for (const file of readdirSync(path.join(tree, name), { recursive: true, encoding: 'utf8' })) {
      const place = path.posix.join(name, file)
      if (!files.includes(place) && !files.some(other => other.startsWith(`${place}/`)))
        rmSync(path.join(tree, place), { recursive: true, force: true })
    }
  }
  for (const file of files)
    if (!written.has(file)) cpSync(path.join(root, file), path.join(tree, file), { preserveTimestamps: true })
  for (const name of part === 'lib' ? ['node_modules', 'build'] : ['node_modules']) {
    if (!existsSync(path.join(tree, name))) symlinkSync(path.join(root, name), path.join(tree, name))
  }
  return tree
}

/**
 * Whether a test file passes within the limits, in seconds, and the seconds that it took. Settings of the environment may stand
 * before its path.
 */
async function runTest(job: Job, test: string, limit: Usual, env: Record<string, string> = {}) {
  const { tree, temporary } = job
  mkdirSync(temporary, { recursive: true })
  const limits = `ulimit -t ${Math.ceil(limit.cpu)}; ulimit -d ${MEMORY * 2 ** 20}`
  const [file, ...settings] = test.split(' ').reverse()
  const command = `${limits}; ${settings.join(' ')} "$0" --import tsx ${file}; code=$?; times >&2; exit $code`
  const begin = performance.now()
  const child = spawn('bash', ['-c', command, process.execPath], {
    cwd: tree,
    stdio: ['ignore', 'pipe', 'pipe'],
    detached: true,
    env: { ...process.env, TMPDIR: temporary, ...env },
  })
  const kill = () => {
    try {
      process.kill(-child.pid!, 'SIGKILL')
    } catch {}
  }
  let output = ''
  for (const stream of [child.stdout, child.stderr]) {
    stream.setEncoding('utf8').on('data', text => {
      output += text
      // uvu's mark of a failed test. The rest of the file is not needed.
      if (text.includes('✘')) kill()
    })
  }
  let isLate = false
  const timer = setTimeout(() => {
    isLate = true
    kill()
  }, limit.wall * 1000)
  const code = await new Promise(resolve => child.on('close', resolve))
  clearTimeout(timer)
  kill()
  for (const name of readdirSync(temporary)) {
    if (!name.startsWith('tsx-')) rmSync(path.join(temporary, name), { recursive: true, force: true })
  }
  const [, minutes, seconds, more, rest] = /\n(\d+)m([\d.]+)s (\d+)m([\d.]+)s\s*$/.exec(output) ?? []
  const cpu = Number(minutes) * 60 + Number(seconds) + Number(more) * 60 + Number(rest)
  return { passed: code === 0, isLate, taken: { cpu, wall: (performance.now() - begin) / 1000 }, output }
}

/** How long each test takes without a mistake. A test that fails by itself is left out. */
async function measure(
  job: Job,
  asked: readonly string[],
  usual: Map<string, Usual>,
  env: Record<string, string> = {},
): Promise<void> {
  for (const test of asked.filter(test => !usual.has(test))) {
    if (!measured.has(test)) {
      const run = runTest(job, test, { cpu: 3600, wall: 3600 }, env)
      measured.set(
        test,
        run.then(({ passed, taken, output }) => {
          if (passed) usual.set(test, taken)
          else console.log(`${test} fails by itself and is not asked:\n${output.slice(-1500)}`)
        }),
      )
    }
    await measured.get(test)
  }
}

/** Several at a time, each with the next of the mistakes that are not judged yet. */
async function judgeAll(
  trees: readonly string[],
  judgeOne: (mutant: Drawn, job: Job) => Promise<void>,
): Promise<void> {
  const waiting = drawn.filter(isOpen)
  const work = async (tree: string, number: number) => {
    const job = { tree, temporary: path.join(home, `tmp-${part}-${number}`) }
    for (let next = waiting.shift(); next; next = waiting.shift()) await judgeOne(next, job)
  }
  await Promise.all(trees.map(work))
}

/** Runs the tests with the mistake until one fails. `mutation` puts the mistake in, and returns how it is taken out. */
async function judge(
  job: Job,
  mutant: Drawn,
  asked: readonly string[],
  usual: Map<string, Usual>,
  env: Record<string, string>,
  mutation: () => { env?: Record<string, string>; undo?: () => void },
) {
  const answering = asked.filter(test => usual.has(test))
  if (asked.length > 0 && answering.length === 0) throw new Error('every test fails without a mistake')
  let by: string | undefined
  for (const test of answering) {
    const { cpu, wall } = usual.get(test)!
    const limit = { cpu: SLACK.cpu + 10 * cpu, wall: SLACK.wall + 10 * wall }
    const run = async (mistaken: boolean) => {
      const put = mistaken ? mutation() : {}
      try {
        return await runTest(job, test, limit, { ...env, ...put.env })
      } finally {
        put.undo?.()
      }
    }
    for (let tries = 0; tries < TRIES && !by; tries++) {
      const { passed, isLate } = await run(true)
      if (passed) break
      // The machine may be too busy for the test, or the test may fail now and then.
      if ((part !== 'lib' && !isLate) || (await run(false)).passed) by = test
      else console.log(`${test} failed without the mistake, too`)
    }
    if (by) break
  }
  const { key, place, name } = mutant
  const result: Result = { key, place, what: name.what, ...(by && { by }) }
  known.set(key, result)
  const record = { part, seed: values.seed, ...result, ...name, at: new Date().toISOString() }
  appendFileSync(results, `${JSON.stringify(record)}\n`)
  console.log(`${by ? `found by ${by}` : 'SURVIVED'}  ${place}  ${name.what}`)
}

function isOpen({ key, place }: Drawn): boolean {
  return place.includes(values.at) && (!known.has(key) || (values.again && !known.get(key)!.by))
}

async function judgeLib(usual: Map<string, Usual>): Promise<void> {
  const trees = Array.from({ length: JOBS }, (_, i) => copyTree(`${part}-${i}`))
  const covering = coverage(trees[0]!, usual)
  const listed = new Map(drawn.map(mutant => [mutant, words ? listTests(trees[0]!) : covering(mutant)]))
  await judgeAll(trees, async (mutant, job) => {
    const asked = listed.get(mutant)!
    await measure(job, asked, usual)
    const place = path.join(job.tree, mutant.name.file)
    const source = readFileSync(place, 'utf8')
    if (source !== mutant.source) throw new Error(`${mutant.name.file} was changed meanwhile: start again`)
    const undo = () => writeFileSync(place, source)
    await judge(job, mutant, asked, usual, {}, () => {
      writeFileSync(place, source.slice(0, mutant.start) + mutant.text + source.slice(mutant.end))
      return { undo }
    })
  })
}

/**
 * Test files in the order of their distance to the file by imports, then of their time. Those with the file's own name, and those
 * that name the function with the mistake, come first.
 */
function coverage(tree: string, usual: Map<string, Usual>): (mutant: Drawn) => string[] {
  const importsOf = new Map<string, string[]>()
  const read = (file: string): string[] => {
    if (!importsOf.has(file)) {
      const source = readFileSync(path.join(tree, file), 'utf8')
      const imports = [...source.matchAll(/(?:from|import\()\s*'(\.[^']+)'/g)].map(match =>
        path.posix.join(path.posix.dirname(file), match[1]!.replace(/\.js$/, '.ts')),
      )
      // Programs that a test starts as processes of their own.
      const programs = [...source.matchAll(/([\w-]+\.ts)['"`]/g)].map(match => `test/helpers/${match[1]}`)
      importsOf.set(
        file,
        [...imports, ...programs].filter(name => name.endsWith('.ts') && existsSync(path.join(tree, name))),
      )
    }
    return importsOf.get(file)!
  }
  const isSlow =
    /package|prebuilds|setup|examples|types|cuda|peers|browser|demo|readers|python|bench|fuzz|math-data|native|binary|machine/
  const testFiles = listTests(tree).filter(name => !isSlow.test(name))
  const timeOf = (test: string) => usual.get(test)?.wall ?? 1e9
  return ({ name: { file }, start }) => {
    const before = readFileSync(path.join(tree, file), 'utf8').slice(0, start)
    const declared = [...before.matchAll(/^export (?:async )?(?:function\*?|const|class) (\w+)/gm)].at(
      -1,
    )?.[1]
    const distanceOf = (test: string) => {
      const stem = path.basename(file, '.ts')
      const isNamed =
        declared && RegExp(`\\b${declared}\\b`).test(readFileSync(path.join(tree, test), 'utf8'))
      const near = path.basename(test).startsWith(`${stem}.`) || isNamed ? -1 : 0
      const seen = new Set([test])
      let level = [test]
      for (let distance = 1; level.length > 0; distance++) {
        level = level.flatMap(read).filter(name => !seen.has(name) && seen.add(name))
        if (level.includes(file)) return distance + near
      }
      return Infinity
    }
    const ranked = testFiles.map(test => ({ test, distance: distanceOf(test) }))
    // Tests cover the command line through processes of its own, which imports do not show.
    const named = /lib\/cli\//.test(file) ? ['infer', 'grade', 'progress', 'stop', 'hostile', 'cli'] : []
    const extra = named.map(name => `test/cli/${name}.test.ts`).filter(test => testFiles.includes(test))
    const near = ranked
      .filter(({ distance }) => distance < Infinity)
      .sort((a, b) => a.distance - b.distance || timeOf(a.test) - timeOf(b.test))
      .map(({ test }) => test)
      .slice(0, ASKED)
    return [...new Set([...near, ...extra])]
  }
}

function listTests(tree: string): string[] {
  return readdirSync(path.join(tree, 'test'), { recursive: true, encoding: 'utf8' })
    .map(name => path.posix.join('test', name.replaceAll('\\', '/')))
    .filter(name => name.endsWith('.test.ts'))
    .filter(name => (words ? words.some(word => name.includes(word)) : tests.test(name)))
    .sort()
}

/** All mistakes are in one build, each switched on by RAPO_MUTANT. Mistakes that do not compile are left out. */
async function judgeNative(tree: string, usual: Map<string, Usual>): Promise<void> {
  const header = path.join(tree, 'mutant.h')
  const text = `#pragma once
#include <cstdlib>
static const int rapo_chosen = std::getenv("RAPO_MUTANT") ? std::atoi(std::getenv("RAPO_MUTANT")) : 0;
static inline bool rapo_mutant(int id) { return rapo_chosen == id; }
`
  if (!existsSync(header) || readFileSync(header, 'utf8') !== text) writeFileSync(header, text)
  const wrong = new Set<string>()
  const chosen = () => drawn.filter(({ key }) => !wrong.has(key))
  /** The range of lines that each mutant takes in the copy, by file. */
  const write = () => {
    for (const file of new Set(drawn.map(mutant => mutant.name.file))) {
      let source = readFileSync(path.join(root, file), 'utf8')
      const here = chosen()
        .filter(mutant => mutant.name.file === file)
        .sort((a, b) => b.start - a.start)
      for (const { key, start, end, text } of here) {
        const id = numberOf(key)
        const right = source.slice(start, end)
        // On one line, followed by the lines that it had: errors are found by their line.
        const both = text
          ? `(rapo_mutant(${id}) ? (${text}) : (${right}))`
          : `{ if (!rapo_mutant(${id})) { ${right} } }`
        const lines = '\n'.repeat(right.split('\n').length - 1)
        source = source.slice(0, start) + both.replace(/\s*\n\s*/g, ' ') + lines + source.slice(end)
      }
      source = `#include "${header}"\n${source}`
      const place = path.join(tree, file)
      mkdirSync(path.dirname(place), { recursive: true })
      if (!existsSync(place) || readFileSync(place, 'utf8') !== source) writeFileSync(place, source)
    }
  }
  const env = {
    RAPO_CACHE: path.join(home, `cache-${part}`),
    // Some mistakes give warnings, which would be errors for the CUDA emulator.
    CXXFLAGS: '-w',
    RAPO_TEST_SMALL: '1',
  }
  mkdirSync(env.RAPO_CACHE, { recursive: true })
  for (const name of existsSync(cacheDir()) ? readdirSync(cacheDir()) : []) {
    const link = path.join(env.RAPO_CACHE, name)
    if (name.startsWith('torch-') && !existsSync(link)) symlinkSync(path.join(cacheDir(), name), link)
  }
  const kernels = ['node_modules/cmake-js/bin/cmake-js', 'build', '-O', 'build', '-T', 'rapo_kernels']
  const all = ['-e', "import('./scripts/bootstrap.mjs').then(m => m.bootstrap())"]
  for (;;) {
    write()
    const built = spawnSync(process.execPath, part === 'kernels' ? kernels : all, {
      cwd: tree,
      encoding: 'utf8',
      env: { ...process.env, ...env },
      maxBuffer: 2 ** 28,
    })
    if (built.status === 0) break
    const output = `${built.stdout}${built.stderr}`
    const before = wrong.size
    // The message of an error in a constant expression may name its place only in a note.
    for (const kind of ['error', '(?:note|error|warning)']) {
      for (const [, file, line] of output.matchAll(
        RegExp(`([\\w./-]+\\.(?:cpp|h)):(\\d+):\\d+: +${kind}`, 'g'),
      )) {
        for (const { key, name, place } of chosen())
          if (file!.endsWith(name.file) && Number(place.split(':')[1]) + 1 === Number(line)) wrong.add(key)
      }
      if (wrong.size > before) break
    }
    if (wrong.size === before) throw new Error(`the copy cannot be built:\n${output.slice(-4000)}`)
  }
  console.log(`${chosen().length} mistakes in one build, ${wrong.size} did not compile`)
  if (values.build) return
  const files = listTests(tree)
  await judgeAll(Array<string>(JOBS).fill(tree), async (mutant, job) => {
    if (wrong.has(mutant.key)) return
    const asked = part === 'engine' && !words ? engineTestsOf(mutant.name.file, files) : [...files]
    await measure(job, asked, usual, env)
    if (part === 'kernels') asked.sort((a, b) => (usual.get(a)?.wall ?? 0) - (usual.get(b)?.wall ?? 0))
    await judge(job, mutant, asked, usual, env, () => ({
      env: { RAPO_MUTANT: String(numberOf(mutant.key)) },
    }))
  })
}

function engineTestsOf(source: string, files: readonly string[]): string[] {
  const [, names] = engineTests.find(([place]) => place.test(source))!
  return names.flatMap(name => (name.includes(' ') ? name : files.filter(file => file.includes(name))))
}

/** What RAPO_MUTANT is for a mistake: the same number whatever else is selected. */
function numberOf(key: string): number {
  return Number.parseInt(key.slice(0, 7), 16)
}

function summarize(): void {
  const judged = drawn.flatMap(({ key }) => known.get(key) ?? [])
  const survived = judged.filter(({ by }) => !by)
  for (const { place, what } of survived) console.log(`survived  ${place}  ${what}`)
  const found = judged.length - survived.length
  const share = judged.length ? ((100 * found) / judged.length).toFixed(1) : '–'
  console.log(`${part}, seed ${values.seed}: ${found} of ${judged.length} found (${share} %)`)
}
