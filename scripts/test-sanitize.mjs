// npm run test:sanitize: tests the kernels' memory and threads (test/native/kernels_calls.cpp) under AddressSanitizer with
// UndefinedBehaviorSanitizer, and under ThreadSanitizer. Prints one line per sanitizer, then "N passed, N failed".
import { spawnSync } from 'node:child_process'
import { join } from 'node:path'
import { bootstrap, root } from './bootstrap.mjs'

const sanitizers = {
  'address,undefined': {
    name: 'AddressSanitizer and UndefinedBehaviorSanitizer',
    env: { ASAN_OPTIONS: 'detect_leaks=1' },
  },
  thread: { name: 'ThreadSanitizer', env: { TSAN_OPTIONS: 'halt_on_error=1' } },
}

await bootstrap({ addons: false }) // CMakeLists.txt needs the N-API headers
let failed = 0
for (const [flags, { name, env }] of Object.entries(sanitizers)) {
  const start = performance.now()
  const build = join(root, 'build-sanitize', flags.replace(',', '-'))
  const target = 'rapo_kernels_calls_test'
  const problem =
    run('cmake', ['-S', root, '-B', build, '-DRAPO_NATIVE_TESTS=ON', `-DRAPO_SANITIZE=${flags}`]) ??
    run('cmake', ['--build', build, '--target', target, '-j', '2']) ??
    run(join(build, 'native', 'kernels', target), [], env)
  if (problem) failed++
  if (problem) console.log(problem)
  console.log(
    `${name}: ${problem ? 'FAILED' : 'clean'} (${((performance.now() - start) / 1000).toFixed(1)} s)`,
  )
}
console.log(`${Object.keys(sanitizers).length - failed} passed, ${failed} failed`)
process.exitCode = failed ? 1 : 0

/** The output of a command that failed. */
function run(command, args, env = {}) {
  const { status, signal, stdout, stderr, error } = spawnSync(command, args, {
    cwd: root,
    env: { ...process.env, ...env },
    encoding: 'utf8',
  })
  if (status === 0) return undefined
  return `${stdout ?? ''}${stderr ?? ''}${command} ${error?.message ?? `ended with ${signal ?? status}`}`
}
