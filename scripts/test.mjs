// npm test: does all set-up and the type check, then runs every test file in a process of its own, several at a time. With
// arguments, only the files whose path contains one of them. RAPO_TEST_JOBS is the number of files at a time.
import { spawn } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { availableParallelism, totalmem } from 'node:os'
import { join } from 'node:path'
import { bootstrap, root } from './bootstrap.mjs'

const FILE_TIMEOUT_MS = 12 * 60_000 // the package's test compiles with zig if nothing is cached
const FILE_BYTES = 4e9 // memory of the largest test
const MAX_JOBS = 4
/** Files of a group build in the same directory: one after another. */
const GROUPS = [/^test\/cuda\//, /^test\/package\//]
/** Begin first, since none of the others takes as long. */
const LONGEST = ['test/package/package.test.ts', 'test/cli/cli.test.ts', 'test/study/study.test.ts']

await bootstrap()
const filters = process.argv.slice(2)
const files = readdirSync(join(root, 'test'), { recursive: true })
  .map(name => join('test', name).replaceAll('\\', '/'))
  .filter(file => file.endsWith('.test.ts'))
  .filter(file => filters.length === 0 || filters.some(filter => file.includes(filter)))
  .sort()
if (files.length === 0) {
  console.error(`no test file matches ${filters.join(', ')}`)
  process.exit(1)
}

for (const signal of ['SIGINT', 'SIGTERM']) process.once(signal, () => process.exit(130)) // ends what runs, see run()

const totals = { passed: 0, failed: 0, skipped: 0 }
const failures = []
const start = performance.now()

const jobs =
  Number(process.env.RAPO_TEST_JOBS) ||
  Math.max(1, Math.min(availableParallelism(), MAX_JOBS, Math.floor(totalmem() / FILE_BYTES)))
const waiting = units(files).map(unit => async () => {
  for (const file of unit) await runFile(file)
})
if (filters.length === 0) waiting.unshift(checkTypes)
await Promise.all(
  Array.from({ length: jobs }, async () => {
    for (let next = waiting.shift(); next; next = waiting.shift()) await next()
  }),
)

console.log(`\n${files.length} test files in ${((performance.now() - start) / 1000).toFixed(0)} s`)
for (const failure of failures) console.log(`FAILED ${failure}`)
const skipped = totals.skipped ? `, ${totals.skipped} skipped` : ''
console.log(`${totals.passed} passed, ${totals.failed} failed${skipped}`)
process.exitCode = totals.failed ? 1 : 0

/** What runs at the same time: single files and groups, the longest first. */
function units(files) {
  const rank = file => (LONGEST.includes(file) ? LONGEST.indexOf(file) : LONGEST.length)
  const found = new Map()
  for (const file of files.toSorted((a, b) => rank(a) - rank(b))) {
    const group = GROUPS.find(pattern => pattern.test(file)) ?? file
    found.set(group, [...(found.get(group) ?? []), file])
  }
  return [...found.values()]
}

async function checkTypes() {
  const { output, ok, taken } = await run(['node_modules/typescript/bin/tsc', '--noEmit'])
  process.stdout.write(output)
  count('type check', { passed: ok ? 1 : 0, failed: ok ? 0 : 1, skipped: 0 }, taken)
}

async function runFile(file) {
  const { output, ok, problem, taken } = await run(['--import', 'tsx', file])
  process.stdout.write(`\n── ${file}\n${output}`)
  count(file, { ...parse(output), ...(ok ? {} : { problem }) }, taken)
}

/** uvu's totals. A file with several suites may print several. */
function parse(output) {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: these are the terminal's colours
  const plain = output.replaceAll(/\x1b\[[0-9;]*m/g, '')
  const sum = name =>
    [...plain.matchAll(new RegExp(`^ {2}${name}: +(\\d+)`, 'gm'))].reduce(
      (all, match) => all + Number(match[1]),
      0,
    )
  const passed = sum('Passed')
  return { passed, failed: sum('Total') - passed, skipped: sum('Skipped') }
}

function count(name, { passed, failed, skipped, problem }, taken) {
  // A file that crashed, hung or never ran its tests has failed, even if none of its tests reports a failure.
  const silent = passed + failed + skipped === 0 ? 'it ran no tests' : undefined
  const crash = failed === 0 ? (problem ?? silent) : undefined
  totals.passed += passed
  totals.failed += failed + (crash ? 1 : 0)
  totals.skipped += skipped
  if (failed || crash) failures.push(`${name}: ${crash ?? `${failed} failed`}`)
  const outcome = crash ?? `${passed} passed, ${failed} failed${skipped ? `, ${skipped} skipped` : ''}`
  console.log(`── ${name}: ${outcome} (${taken.toFixed(1)} s)`)
}

/** Runs node in the repository's root and returns the output of both streams. */
function run(args) {
  return new Promise(resolve => {
    const begin = performance.now()
    // A process group of its own, so that a file that hangs can be ended together with its children.
    const child = spawn(process.execPath, args, {
      cwd: root,
      stdio: ['ignore', 'pipe', 'pipe'],
      detached: true,
    })
    const kill = () => {
      try {
        process.kill(-child.pid, 'SIGKILL')
      } catch {} // the process has ended already
    }
    let hung = false
    const timer = setTimeout(() => {
      hung = true
      kill()
    }, FILE_TIMEOUT_MS)
    process.once('exit', kill)
    let output = ''
    for (const stream of [child.stdout, child.stderr]) {
      stream.setEncoding('utf8').on('data', text => {
        output += text
      })
    }
    child.on('close', (code, signal) => {
      clearTimeout(timer)
      process.off('exit', kill)
      const taken = (performance.now() - begin) / 1000
      const ended = signal ? `ended by ${signal}` : `exit status ${code}`
      const problem = hung ? `no end within ${FILE_TIMEOUT_MS / 60_000} minutes` : ended
      resolve({ output, ok: code === 0, problem, taken })
    })
  })
}
