// npm run test:prebuilds: builds the addon for every platform, checks each file, and runs the kernels' numeric tests with the
// addons that this machine can run: linux-x64 on Node 20, 22 and 24; linux-arm64 in qemu-user, win32-x64 in Wine and linux-x64
// on musl if these are installed (Debian: qemu-user libc6-arm64-cross libstdc++6-arm64-cross libatomic1-arm64-cross wine64
// musl), and loads modules of users with each Node. darwin, win32-arm64 and musl on arm64 are only built. Ends with
// "N passed, N failed, N skipped". Node.js comes from npm, for musl from PyPI.
import { execFileSync, spawn } from 'node:child_process'
import {
  closeSync,
  existsSync,
  mkdirSync,
  openSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
} from 'node:fs'
import { join } from 'node:path'
import { build } from 'esbuild'
import { tsImport } from 'tsx/esm/api'
import { bootstrap, load, root } from './bootstrap.mjs'
import { buildModulesCheck } from './modules-check.mjs'
import { muslNode } from './musl-node.mjs'
import { hostTarget, prebuild, prebuildPath } from './prebuilds.mjs'

const TIMEOUT_MS = 30 * 60_000 // QEMU is about twenty times slower than the processor
const ARM64_ROOT = '/usr/aarch64-linux-gnu'
const WINE = '/usr/lib/wine/wine64'
const MUSL = '/lib/ld-musl-x86_64.so.1'

await bootstrap({ addons: false })
await prebuild()
const [{ cacheDir }, { makeVenv }] = await Promise.all(['cache.ts', 'venv.ts'].map(load))
const { x86Isas } = await tsImport('../test/helpers/machine.ts', import.meta.url)
const work = join(root, 'build', 'prebuilds')
const [check, worker] = ['prebuild-check', 'prebuild-worker'].map(name => join(work, `${name}.mjs`))
await build({
  entryPoints: ['prebuild-check', 'prebuild-worker'].map(name => join(root, 'test', 'helpers', `${name}.ts`)),
  outdir: work,
  outExtension: { '.js': '.mjs' },
  bundle: true,
  platform: 'node',
  format: 'esm',
  define: { RAPO_VERSION: '"0"' }, // otherwise the import would look for package.json
  // Some packages are CommonJS and need a `require`.
  banner: {
    js: "import { createRequire as inModule } from 'node:module'; const require = inModule(import.meta.url)",
  },
  logLevel: 'warning',
})

const totals = { passed: 0, failed: 0, skipped: 0 }
await test('files', true, () =>
  run(process.execPath, ['--import', 'tsx', join(root, 'test', 'package', 'prebuilds.test.ts')], {
    RAPO_PREBUILDS: 'all',
  }),
)
for (const major of [20, 22, 24]) {
  const canRun = process.platform === 'linux' && process.arch === 'x64'
  await testBoth(`linux-x64-glibc on Node ${major}`, canRun, program =>
    run(nodeFor('linux-x64', major), [program], addon('linux-x64-glibc')),
  )
  await test(`modules of users on Node ${major}`, canRun, async () =>
    run(nodeFor('linux-x64', major), [await buildModulesCheck()], {}),
  )
}
// The tests of calls, which otherwise test the addon compiled on this machine, with the prebuilt one.
await test("the kernels' calls on this machine's addon", true, () =>
  run(
    process.execPath,
    ['--import', 'tsx', join(root, 'test', 'kernels', 'kernels-calls.test.ts')],
    addon(hostTarget()),
  ),
)
await testBoth('linux-arm64-glibc in qemu-user', existsSync(ARM64_ROOT) && has('qemu-aarch64'), program =>
  run('qemu-aarch64', ['-L', ARM64_ROOT, nodeFor('linux-arm64', 20), program], addon('linux-arm64-glibc')),
)
await testBoth('win32-x64 in Wine', existsSync(WINE), program =>
  run(WINE, [nodeFor('win-x64', 20), program], {
    ...addon('win32-x64'),
    RAPO_KERNELS_ADDON: `Z:${join(root, prebuildPath('win32-x64'))}`,
    WINEPREFIX: join(work, 'wine'),
    WINEDEBUG: '-all',
    NODE_SKIP_PLATFORM_CHECK: '1',
  }),
)
await testBoth('linux-x64-musl on Node 24', existsSync(MUSL), async program =>
  run(MUSL, [await muslNode(cacheDir(), makeVenv), program], addon('linux-x64-musl')),
)
console.log(`${totals.passed} passed, ${totals.failed} failed, ${totals.skipped} skipped`)
process.exitCode = totals.failed ? 1 : 0

/** Tests the kernels' results, and that the addon leaves nothing behind in worker threads. */
async function testBoth(name, canRun, runProgram) {
  await test(name, canRun, () => runProgram(check))
  await test(`${name}, in worker threads alone`, canRun, () => runProgram(worker))
}

async function test(name, canRun, body) {
  if (!canRun) {
    totals.skipped += 1
    console.log(`── ${name}: skipped`)
    return
  }
  const start = performance.now()
  console.log(`── ${name}`)
  const result = await body()
  const failed = (result.code ?? result) !== 0
  totals[failed ? 'failed' : 'passed'] += 1
  console.log(
    `── ${name}: ${failed ? 'FAILED' : 'passed'} (${((performance.now() - start) / 1000).toFixed(0)} s)`,
  )
}

function addon(target) {
  return {
    RAPO_KERNELS_ADDON: join(root, prebuildPath(target)),
    RAPO_EXPECTED_ISAS: target.includes('arm64') ? 'neon,portable' : x86Isas().join(),
  }
}

function has(command) {
  return process.env.PATH.split(':').some(dir => existsSync(join(dir, command)))
}

/** Runs a command with its output in a file, since Wine cannot open a pipe. Shows and returns the output. */
async function run(command, args, env) {
  const file = join(work, 'output.txt')
  const output = openSync(file, 'w')
  const child = spawn(command, args, {
    cwd: root,
    env: { ...process.env, ...env },
    stdio: ['ignore', output, output],
    timeout: TIMEOUT_MS,
    killSignal: 'SIGKILL',
  })
  const code = await new Promise(resolve => {
    child
      .on('error', error => resolve(error.message))
      .on('close', (status, signal) => resolve(status ?? signal))
  })
  closeSync(output)
  const text = readFileSync(file, 'utf8')
  console.log(text.trimEnd())
  return { code, output: text }
}

/** The node of a platform and major version, from npm. */
function nodeFor(platform, major) {
  const dir = join(cacheDir(), 'node', `${platform}-${major}`)
  const file = join(dir, 'bin', platform.startsWith('win') ? 'node.exe' : 'node')
  if (existsSync(file)) return file
  // npm install would refuse a package for another platform.
  const part = `${dir}.part`
  rmSync(part, { recursive: true, force: true })
  mkdirSync(part, { recursive: true })
  execFileSync('npm', ['pack', '--silent', `node-${platform}@${major}`], { cwd: part })
  execFileSync('tar', ['-xzf', readdirSync(part)[0], '--strip-components=1'], { cwd: part })
  rmSync(dir, { recursive: true, force: true })
  renameSync(part, dir)
  return file
}
