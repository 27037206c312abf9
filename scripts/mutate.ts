/**
 * npm run mutate -- lib|kernels|engine: puts single small mistakes into the code, one at a time, and runs the tests that cover
 * the code. A mistake that no test notices shows a missing test, or code that is not needed.
 *
 *     --count 150      number of mistakes. --seed selects them; the selection stays the same while other lines change
 *     --seed 1
 *     --only lib/loss  only files whose path contains this text
 *     --asked 3        test files per mistake: those that import its file, the nearest and quickest first
 *     --again          judges again the mistakes that survived before
 *     --list           lists the survivors and runs nothing
 *     --build          kernels and engine: only builds the copy with all mistakes
 *
 * Works on a copy in build/mutate and continues an interrupted run.
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
import { constants, setPriority } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { drawNative, drawTypeScript, type Mutant } from './mutants.js'

const root = path.dirname(path.dirname(fileURLToPath(import.meta.url)))
const home = path.join(root, 'build', 'mutate')
const results = path.join(home, 'results.jsonl')
/**
 * Limits for a test file, against mistakes that loop or wait for ever: seconds of CPU beyond ten times its usual time, and
 * minutes in all.
 */
const CPU_SLACK = 60
const MINUTES = 10

const { values, positionals } = parseArgs({
  allowPositionals: true,
  options: {
    count: { type: 'string' },
    seed: { type: 'string', default: '1' },
    only: { type: 'string', default: '' },
    asked: { type: 'string', default: '3' },
    again: { type: 'boolean', default: false },
    list: { type: 'boolean', default: false },
    build: { type: 'boolean', default: false },
  },
})
const ASKED = Number(values.asked)
const part = positionals[0] as 'lib' | 'kernels' | 'engine'
const parts = {
  // Left out: drawings, code that needs another program or a GPU, and measurements.
  lib: {
    count: 150,
    from: 'lib',
    isDrawn: /\.ts$/,
    isSpared: /^lib\/(report|bench|setup|reward\/math)\/|theory\/figure|loss\/cuda|cli\/(demo|doctor)/,
    tests: [] as string[],
  },
  kernels: {
    count: 40,
    from: 'native/kernels',
    isDrawn: /\.(cpp|h)$/,
    isSpared: /cuda|select|x86/,
    tests: [
      'kernels-golden',
      'kernels',
      'kernels-gspo',
      'kernels-meaning',
      'kernels-properties',
      'kernels-calls',
    ],
  },
  engine: {
    count: 15,
    from: 'native/engine',
    isDrawn: /\.cpp$/,
    isSpared: /cuda|device|aten|select/,
    tests: [
      'engine-golden',
      'engine',
      'engine-generate',
      'engine-files',
      'engine-product',
      'engine-async',
      'memory',
    ],
  },
}
if (!(part in parts)) throw new Error('what is to be mutated: lib, kernels or engine')
const { from, isDrawn, isSpared, tests, count } = parts[part]

interface Drawn extends Mutant {
  readonly file: string
  readonly line: number
  readonly key: string
}
interface Result {
  readonly key: string
  readonly place: string
  readonly what: string
  /** The test file that failed; absent if the mistake survived. */
  readonly by?: string
}

setPriority(constants.priority.PRIORITY_LOW)
const drawn = draw()
mkdirSync(home, { recursive: true })
const known = new Map(readResults().map(result => [result.key, result]))
if (values.list) summarize()
else {
  const tree = copyTree()
  const times = path.join(home, `usual-${part}.json`)
  const usual = new Map<string, number>(existsSync(times) ? JSON.parse(readFileSync(times, 'utf8')) : [])
  process.on('exit', () => writeFileSync(times, JSON.stringify([...usual].filter(([, taken]) => taken))))
  for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => process.exit(1))
  if (part === 'lib') await judgeLib(tree, usual)
  else await judgeNative(tree, usual)
  summarize()
}

/** A mistake's rank is a hash of its line, so that changes in other lines do not change the selection. */
function draw(): Drawn[] {
  const all: Drawn[] = []
  for (const name of readdirSync(path.join(root, from), { recursive: true, encoding: 'utf8' }).sort()) {
    const file = path.posix.join(from, name.replaceAll('\\', '/'))
    if (!isDrawn.test(file) || isSpared.test(file) || !file.includes(values.only)) continue
    const source = readFileSync(path.join(root, file), 'utf8')
    const seen = new Map<string, number>()
    for (const mutant of part === 'lib' ? drawTypeScript(file, source) : drawNative(source)) {
      const line = source.slice(0, mutant.start).split('\n').length
      const text = `${file}\n${source.split('\n')[line - 1]}\n${mutant.what}`
      const again = seen.get(text) ?? 0
      seen.set(text, again + 1)
      const key = createHash('sha256').update(`${values.seed}\n${text}\n${again}`).digest('hex').slice(0, 16)
      all.push({ ...mutant, file, line, key })
    }
  }
  all.sort((a, b) => (a.key < b.key ? -1 : 1))
  const chosen: Drawn[] = []
  for (const mutant of all) {
    const isApart = (other: Drawn) =>
      other.file !== mutant.file || other.end <= mutant.start || other.start >= mutant.end
    if (part === 'lib' || chosen.every(isApart)) chosen.push(mutant)
    if (chosen.length === Number(values.count ?? count)) break
  }
  return chosen
}

function readResults(): Result[] {
  if (!existsSync(results)) return []
  return readFileSync(results, 'utf8')
    .trim()
    .split('\n')
    .map(line => JSON.parse(line))
}

/**
 * Copies the files of this checkout, changed ones included. The copy for lib uses the built addons; the others build their own.
 */
function copyTree(): string {
  const tree = path.join(home, part === 'lib' ? 'lib' : 'native')
  const listed = spawnSync('git', ['ls-files', '-z', '-co', '--exclude-standard'], {
    cwd: root,
    encoding: 'utf8',
  })
  for (const name of ['lib', 'test', 'native', 'bindings'])
    rmSync(path.join(tree, name), { recursive: true, force: true })
  for (const file of listed.stdout.split('\0')) {
    if (file && existsSync(path.join(root, file)))
      cpSync(path.join(root, file), path.join(tree, file), { preserveTimestamps: true })
  }
  for (const name of part === 'lib' ? ['node_modules', 'build'] : ['node_modules']) {
    if (!existsSync(path.join(tree, name))) symlinkSync(path.join(root, name), path.join(tree, name))
  }
  return tree
}

/** Whether a test file passes, and the seconds of CPU that it took. */
async function runTest(tree: string, test: string, limit: number, env: Record<string, string> = {}) {
  // Of its own: runs for two parts may go on at once.
  const temporary = path.join(home, `tmp-${part}`)
  mkdirSync(temporary, { recursive: true })
  const command = `ulimit -t ${Math.ceil(limit)}; "$0" --import tsx ${test}; code=$?; times >&2; exit $code`
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
  const timer = setTimeout(kill, MINUTES * 60_000)
  const code = await new Promise(resolve => child.on('close', resolve))
  clearTimeout(timer)
  kill()
  for (const name of readdirSync(temporary)) {
    if (!name.startsWith('tsx-')) rmSync(path.join(temporary, name), { recursive: true, force: true })
  }
  const [, minutes, seconds, more, rest] = /\n(\d+)m([\d.]+)s (\d+)m([\d.]+)s\s*$/.exec(output) ?? []
  const taken = Number(minutes) * 60 + Number(seconds) + Number(more) * 60 + Number(rest)
  return { passed: code === 0, taken, output }
}

/** A test that fails without any mistake would count every mistake as noticed. */
async function usualTime(
  tree: string,
  test: string,
  usual: Map<string, number>,
  env: Record<string, string> = {},
): Promise<number | undefined> {
  if (!usual.has(test)) {
    const { passed, taken, output } = await runTest(tree, test, 3600, env)
    if (!passed) console.log(`${test} fails by itself and is not asked:\n${output.slice(-1500)}`)
    usual.set(test, passed ? taken : Number.NaN)
  }
  const seconds = usual.get(test)!
  return Number.isNaN(seconds) ? undefined : seconds
}

async function judge(
  tree: string,
  mutant: Drawn,
  asked: readonly string[],
  usual: Map<string, number>,
  env: Record<string, string> = {},
  mutation: Record<string, string> = {},
) {
  let by: string | undefined
  let answers = 0
  for (const test of asked) {
    const seconds = await usualTime(tree, test, usual, env)
    if (seconds === undefined) continue
    answers++
    const { passed } = await runTest(tree, test, CPU_SLACK + 10 * seconds, { ...env, ...mutation })
    if (!passed) {
      by = test
      break
    }
  }
  if (asked.length > 0 && answers === 0) throw new Error('every test fails without a mistake')
  const { key, file, line, what } = mutant
  const result: Result = { key, place: `${file}:${line}`, what, ...(by && { by }) }
  known.set(key, result)
  appendFileSync(results, `${JSON.stringify(result)}\n`)
  console.log(`${by ? `found by ${by}` : 'SURVIVED'}  ${result.place}  ${what}`)
}

function isOpen({ key }: Drawn): boolean {
  return !known.has(key) || (values.again && !known.get(key)!.by)
}

async function judgeLib(tree: string, usual: Map<string, number>): Promise<void> {
  const covering = coverage(tree, usual)
  for (const mutant of drawn.filter(isOpen)) {
    const asked = covering(mutant.file).slice(0, ASKED)
    // A run without a mistake comes first: it shows that the copy works and how long each test takes.
    for (const test of asked) await usualTime(tree, test, usual)
    const place = path.join(tree, mutant.file)
    const source = readFileSync(place, 'utf8')
    writeFileSync(place, source.slice(0, mutant.start) + mutant.text + source.slice(mutant.end))
    try {
      await judge(tree, mutant, asked, usual)
    } finally {
      writeFileSync(place, source)
    }
  }
}

/**
 * Test files in the order of their distance to the file by imports, then by name. Those with the file's own name come first.
 */
function coverage(tree: string, usual: Map<string, number>): (file: string) => string[] {
  const importsOf = new Map<string, string[]>()
  const read = (file: string): string[] => {
    if (!importsOf.has(file)) {
      const source = readFileSync(path.join(tree, file), 'utf8')
      const specifiers = [...source.matchAll(/(?:from|import\()\s*'(\.[^']+)'/g)].map(match => match[1]!)
      const files = specifiers.map(name =>
        path.posix.join(path.posix.dirname(file), name.replace(/\.js$/, '.ts')),
      )
      importsOf.set(
        file,
        files.filter(name => existsSync(path.join(tree, name)) && name.endsWith('.ts')),
      )
    }
    return importsOf.get(file)!
  }
  const isSlow =
    /package|prebuilds|setup|examples|types|cuda|peers|browser|demo|readers|python|bench|fuzz|math-data|native|binary|machine/
  const testFiles = readdirSync(path.join(tree, 'test'), { recursive: true, encoding: 'utf8' })
    .map(name => path.posix.join('test', name.replaceAll('\\', '/')))
    .filter(name => name.endsWith('.test.ts') && !isSlow.test(name))
    .sort()
  const timeOf = (test: string) => usual.get(test) || 1e9
  return file => {
    const distanceOf = (test: string) => {
      const stem = path.basename(file, '.ts')
      const near = path.basename(test).startsWith(`${stem}.`) ? -1 : 0
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
    const named = /lib\/cli\//.test(file) ? ['cli', 'hostile', 'infer', 'grade', 'progress'] : []
    const extra = named.map(name => `test/cli/${name}.test.ts`).filter(test => testFiles.includes(test))
    const byImport = ranked
      .filter(({ distance }) => distance < Infinity)
      .sort((a, b) => a.distance - b.distance || timeOf(a.test) - timeOf(b.test))
      .map(({ test }) => test)
    const near = byImport.slice(0, extra.length > 0 ? 1 : ASKED)
    return [...new Set([...near, ...extra])]
  }
}

/** All mistakes are in one build, each switched on by RAPO_MUTANT. Mistakes that do not compile are left out. */
async function judgeNative(tree: string, usual: Map<string, number>): Promise<void> {
  const header = path.join(tree, 'mutant.h')
  writeFileSync(
    header,
    `#pragma once
#include <cstdlib>
static const int rapo_chosen = std::getenv("RAPO_MUTANT") ? std::atoi(std::getenv("RAPO_MUTANT")) : 0;
static inline bool rapo_mutant(int id) { return rapo_chosen == id; }
`,
  )
  const wrong = new Set<string>()
  const chosen = () => drawn.filter(({ key }) => !wrong.has(key))
  const write = () => {
    for (const file of new Set(drawn.map(mutant => mutant.file))) {
      let source = readFileSync(path.join(root, file), 'utf8')
      const here = chosen()
        .filter(mutant => mutant.file === file)
        .sort((a, b) => b.start - a.start)
      for (const { key, start, end, text } of here) {
        const id = drawn.findIndex(mutant => mutant.key === key) + 1
        const right = source.slice(start, end)
        source = `${source.slice(0, start)}(rapo_mutant(${id}) ? (${text}) : (${right}))${source.slice(end)}`
      }
      source = `#include "${header}"\n${source}`
      const place = path.join(tree, file)
      if (readFileSync(place, 'utf8') !== source) writeFileSync(place, source)
    }
  }
  const env = { RAPO_CACHE: path.join(home, 'cache') }
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
    for (const [, place, line] of output.matchAll(/([\w./-]+\.(?:cpp|h)):(\d+):\d+: error/g)) {
      for (const { key, file, line: of } of chosen())
        if (place!.endsWith(file) && of + 1 === Number(line)) wrong.add(key)
    }
    if (wrong.size === before) throw new Error(`the copy cannot be built:\n${output.slice(-4000)}`)
  }
  console.log(`${chosen().length} mistakes in one build, ${wrong.size} did not compile`)
  if (values.build) return
  const files = readdirSync(path.join(tree, 'test'), { recursive: true, encoding: 'utf8' })
  const asked = tests.map(name => {
    const file = files.find(file => path.basename(file) === `${name}.test.ts`)
    if (!file) throw new Error(`there is no test ${name}.test.ts`)
    return path.posix.join('test', file.replaceAll('\\', '/'))
  })
  for (const mutant of chosen().filter(isOpen)) {
    const id = drawn.indexOf(mutant) + 1
    await judge(tree, mutant, asked, usual, env, { RAPO_MUTANT: String(id) })
  }
}

function summarize(): void {
  const judged = drawn.flatMap(({ key }) => known.get(key) ?? [])
  const survived = judged.filter(({ by }) => !by)
  for (const { place, what } of survived) console.log(`survived  ${place}  ${what}`)
  const found = judged.length - survived.length
  const share = judged.length ? ((100 * found) / judged.length).toFixed(1) : '–'
  console.log(`${part}: ${found} of ${judged.length} found (${share} %)`)
}
