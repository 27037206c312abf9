// npm test: does all set-up and the type check, then runs every test file in a process of its own. With arguments, only the
// files whose path contains one of them.
import { spawn } from 'node:child_process'
import { readdirSync } from 'node:fs'
import { join } from 'node:path'
import { bootstrap, root } from './bootstrap.mjs'

const FILE_TIMEOUT_MS = 12 * 60_000 // the package's test compiles with zig if nothing is cached

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

const totals = { passed: 0, failed: 0, skipped: 0 }
const failures = []
const start = performance.now()

if (filters.length === 0) {
  const { ok, taken } = await run(['node_modules/typescript/bin/tsc', '--noEmit'])
  count('type check', { passed: ok ? 1 : 0, failed: ok ? 0 : 1, skipped: 0 }, taken)
}
for (const file of files) {
  console.log(`\n── ${file}`)
  const { output, ok, problem, taken } = await run(['--import', 'tsx', file])
  count(file, { ...parse(output), ...(ok ? {} : { problem }) }, taken)
}

console.log(`\n${files.length} test files in ${((performance.now() - start) / 1000).toFixed(0)} s`)
for (const failure of failures) console.log(`FAILED ${failure}`)
const skipped = totals.skipped ? `, ${totals.skipped} skipped` : ''
console.log(`${totals.passed} passed, ${totals.failed} failed${skipped}`)
process.exitCode = totals.failed ? 1 : 0

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

/** Runs node in the repository's root. Shows its output at once and returns it. */
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
    const interrupt = () => {
      kill()
      process.exit(130)
    }
    process.once('SIGINT', interrupt).once('SIGTERM', interrupt)
    let output = ''
    for (const [from, to] of [
      [child.stdout, process.stdout],
      [child.stderr, process.stderr],
    ]) {
      from.setEncoding('utf8').on('data', text => {
        output += text
        to.write(text)
      })
    }
    child.on('close', (code, signal) => {
      clearTimeout(timer)
      process.off('SIGINT', interrupt).off('SIGTERM', interrupt)
      const taken = (performance.now() - begin) / 1000
      const ended = signal ? `ended by ${signal}` : `exit status ${code}`
      const problem = hung ? `no end within ${FILE_TIMEOUT_MS / 60_000} minutes` : ended
      resolve({ output, ok: code === 0, problem, taken })
    })
  })
}
