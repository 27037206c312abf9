// Makes a clone ready to run: packages, the kernels addon, libtorch, the engine addon. Parts that are ready are skipped. This
// file is plain JavaScript without dependencies, since it runs before node_modules exists.
import { spawn } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, writeFileSync } from 'node:fs'
import { availableParallelism } from 'node:os'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'

export const root = dirname(dirname(fileURLToPath(import.meta.url)))

/**
 * Prepares everything; if that fails, ends the process with a message. addons: false prepares node_modules only, for commands
 * that need no addon.
 */
export async function bootstrap({ addons = true } = {}) {
  const start = performance.now()
  try {
    requireNode()
    if (!packagesInstalled()) {
      await timed('packages', 'npm ci', () => installPackages())
    }
    if (addons) await makeAddons()
  } catch (error) {
    status.clear()
    console.error(error?.code?.startsWith('ERR_RAPO_') ? error.message : error)
    process.exit(error?.code === 'ERR_RAPO_ABORTED' ? 130 : 1)
  }
  status.clear()
  report('ready', `after ${seconds(start)} of set-up`)
}

async function makeAddons() {
  const [cache, processes, setups, tools, trees] = await Promise.all(
    ['cache.ts', 'process.ts', 'setup.ts', 'tools.ts', 'tree.ts'].map(load),
  )
  // The kernels compile while pip works, since neither needs the other. If both fail, the engine's error is shown: it names
  // every tool that is missing.
  const made = await Promise.allSettled([prepareEngine(setups), buildKernels(cache, processes, tools, trees)])
  const failed = made.find(result => result.status === 'rejected')
  if (failed) throw failed.reason
}

/** Imports a module of lib/setup/. node_modules must exist. */
export async function load(file) {
  const { tsImport } = await import('tsx/esm/api')
  return tsImport(`../lib/setup/${file}`, import.meta.url)
}

function requireNode() {
  const [major, minor] = process.versions.node.split('.').map(Number)
  if (major > 22 || (major === 20 && minor >= 19) || (major === 22 && minor >= 12)) return
  throw setupError(
    `rapo needs Node.js >= 20.19 or >= 22.12; this is ${process.version} (${process.execPath})`,
  )
}

/** Whether node_modules holds exactly what package-lock.json asks for, packages for other platforms excepted. */
function packagesInstalled() {
  try {
    const read = file => JSON.parse(readFileSync(join(root, file), 'utf8')).packages
    const wanted = read('package-lock.json')
    const present = read('node_modules/.package-lock.json')
    return Object.entries(wanted).every(
      ([path, { version, optional }]) => path === '' || optional || present[path]?.version === version,
    )
  } catch {
    return false
  }
}

async function installPackages() {
  // --include=dev, since NODE_ENV=production would leave out the packages that run TypeScript.
  const args = ['ci', '--include=dev', '--no-audit', '--no-fund', '--loglevel=error']
  const { code, output } = await run('npm', args)
  if (code !== 0) throw setupError(`npm ci failed with exit status ${code}\n${output}`)
}

async function buildKernels({ hashSources }, { work }, { findTools, requireTools }, { dropBrokenCache }) {
  const stamp = join(root, 'build', 'sources.sha256')
  const sources = hashSources()
  const addon = join(root, 'build', 'Release', 'rapo_kernels.node')
  if (existsSync(addon) && existsSync(stamp) && readFileSync(stamp, 'utf8') === sources) return
  requireTools(await findTools(), ['compiler', 'cmake'])
  await timed('kernels', 'compiling the kernels addon', async () => {
    const log = join(root, 'build', 'kernels.log')
    mkdirSync(dirname(log), { recursive: true })
    writeFileSync(log, '')
    // cmake-js configures only where there is no cache.
    dropBrokenCache(join(root, 'build'))
    const cmakeJs = join(root, 'node_modules', 'cmake-js', 'bin', 'cmake-js')
    await work(
      'building the kernels addon',
      process.execPath,
      [cmakeJs, ...kernelsArguments, '-p', `${availableParallelism()}`],
      {
        env: process.env,
        log,
        cwd: root,
      },
    )
    writeFileSync(stamp, sources)
  })
}

/**
 * The same arguments as build:kernels in package.json. The command `compile` would delete the directory and rebuild everything
 * after a failure.
 */
const kernelsArguments = ['build', '-O', 'build', '-T', 'rapo_kernels']

async function prepareEngine({ setup }) {
  await setup({
    onProgress({ part, message, done, total, seconds: taken }) {
      if (taken !== undefined) {
        status.end(part)
        // A part that was ready before is not reported.
        if (taken >= 0.1) report(part, `${message} (${taken.toFixed(1)} s)`)
      } else if (done !== undefined) {
        status.show(part, `${message} ${done}/${total}`)
      } else {
        status.show(part, message)
        if (!status.live) report(part, `${message} …`)
      }
    },
  })
}

async function timed(part, what, body) {
  const start = performance.now()
  status.show(part, what)
  if (!status.live) report(part, `${what} …`)
  await body()
  status.end(part)
  report(part, `${what}: done (${seconds(start)})`)
}

/** On a terminal, shows one line with the current work and its duration. Elsewhere shows nothing. */
const status = {
  live: Boolean(process.stderr.isTTY),
  parts: new Map(),
  timer: undefined,
  show(part, text) {
    this.parts.set(part, { text, start: this.parts.get(part)?.start ?? performance.now() })
    if (!this.live) return
    this.timer ??= setInterval(() => this.draw(), 250).unref()
    this.draw()
  },
  end(part) {
    this.parts.delete(part)
    this.clear()
  },
  draw() {
    const texts = [...this.parts].map(([part, { text, start }]) => `${part}: ${text} ${seconds(start)}`)
    const line = texts.join('  ·  ').slice(0, (process.stderr.columns ?? 80) - 1)
    process.stderr.write(`\r${line}\x1b[K`)
  },
  clear() {
    if (this.live) process.stderr.write('\r\x1b[K')
  },
}

function report(part, text) {
  status.clear()
  console.error(`${part.padEnd(9)} ${text}`)
}

function seconds(start) {
  return `${((performance.now() - start) / 1000).toFixed(1)} s`
}

function setupError(message) {
  return Object.assign(new Error(message), { code: 'ERR_RAPO_SETUP' })
}

/** Runs a command in the repository's root. Its output is kept, and shown in a message if it fails. */
function run(command, args) {
  return new Promise((resolve, reject) => {
    // Windows finds npm.cmd only through a shell.
    const child = spawn(command, args, {
      cwd: root,
      stdio: ['ignore', 'pipe', 'pipe'],
      shell: process.platform === 'win32',
    })
    let output = ''
    for (const stream of [child.stdout, child.stderr]) {
      stream.setEncoding('utf8').on('data', text => {
        output += text
      })
    }
    child.on('error', reject)
    child.on('close', code => resolve({ code, output }))
  })
}
