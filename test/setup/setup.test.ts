/** Set-up with temporary caches and fake tools (small shell scripts on PATH): no network, nothing compiled. */
import { spawn, spawnSync } from 'node:child_process'
import { once } from 'node:events'
import {
  chmodSync,
  existsSync,
  mkdirSync,
  mkdtempSync,
  readdirSync,
  readFileSync,
  realpathSync,
  rmSync,
  symlinkSync,
  truncateSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import { isAbsolute, join } from 'node:path'
import { setTimeout as sleep } from 'node:timers/promises'
import { suite } from 'uvu'
import * as assert from 'uvu/assert'
import { packageRoot } from '../../lib/base/package.js'
import { doctor, formatDoctor } from '../../lib/cli/doctor.js'
import { cacheDir, findEngine, hashSources } from '../../lib/setup/cache.js'
import { locateEngine } from '../../lib/setup/engine-addon.js'
import { inspectLibtorch } from '../../lib/setup/inspect.js'
import { findLibtorch, lackOfWheel } from '../../lib/setup/libtorch.js'
import { type SetupEvent, setup } from '../../lib/setup/setup.js'
import { findTools, requireTools } from '../../lib/setup/tools.js'
import { dropBrokenCache } from '../../lib/setup/tree.js'

interface Context {
  root: string
  cache: string
  env: Record<string, string>
}

const test = suite<Context>('setup')

test.before.each(context => {
  const root = realpathSync(mkdtempSync(join(tmpdir(), 'rapo-setup-')))
  const bin = join(root, 'bin')
  mkdirSync(bin)
  const real = ['cat', 'cp', 'dirname', 'mkdir', 'printf', 'seq', 'sleep', 'touch']
  for (const name of real) {
    const dir = ['/bin', '/usr/bin'].find(path => existsSync(join(path, name)))
    symlinkSync(join(dir!, name), join(bin, name))
  }
  const cache = join(root, 'cache')
  Object.assign(context, { root, cache, env: { PATH: bin, RAPO_CACHE: cache, FAKE_LOG: join(root, 'log') } })
  for (const [name, script] of Object.entries(fakes)) addTool(context, name, script)
})

test.after.each(({ root }) => rmSync(root, { recursive: true, force: true }))

/** Each tells FAKE_LOG how it was called. */
const fakes = {
  'c++': 'echo "c++ 12.2.0"',
  cmake: `
    echo "cmake $*" >> "$FAKE_LOG"
    case "$1" in
      --version) echo "cmake version \${FAKE_CMAKE:-3.25.1}" ;;
      -S)
        [ ! -e "$4/half.o" ] || echo "found half.o" >> "$FAKE_LOG"
        if [ -n "$FAKE_STALE" ] && [ -e "$4/CMakeCache.txt" ]; then
          echo "CMake Error: CMAKE_CXX_COMPILER is not a full path to an existing compiler tool"
          exit 1
        fi
        [ -z "$FAKE_UNUSABLE" ] || { echo "CMake Error: no"; exit 1; }
        echo "CMAKE_CXX_COMPILER:FILEPATH=$FAKE_COMPILER" > "$4/CMakeCache.txt"
        touch "$4/Makefile" ;;
      --build)
        touch "$2/half.o"
        [ -z "$FAKE_HANG" ] || sleep 1000000
        while [ -n "$FAKE_GATE" ] && [ ! -e "$FAKE_GATE" ]; do sleep 0.05; done
        if [ -n "$FAKE_BROKEN" ]; then
          echo "qwen2.cpp:3:1: error: expected ';'"
          seq 1000 1100
          exit 2
        fi
        echo "[1/2] Building"
        [ -z "$FAKE_STUCK" ] || sleep 1000000
        echo "[2/2] Linking"
        echo addon > "$2/rapo_engine.node" ;;
    esac`,
  python3: `
    echo "python3 $*" >> "$FAKE_LOG"
    case "$2" in
      *"import torch"*)
        [ -n "$FAKE_TORCH" ] && echo "$FAKE_TORCH/share/cmake" && exit
        echo "ModuleNotFoundError: No module named 'torch'" >&2
        exit 1 ;;
      *"import venv"*) echo "\${FAKE_PYTHON:-3.11.2}" ;;
      *urllib*) exit \${FAKE_INDEX:-1} ;;
      venv) mkdir -p "$4/bin" ;;
      pip)
        [ "$5" = --version ] && exit
        [ -z "$FAKE_PIP_BROKEN" ] || { echo "ERROR: No matching distribution found"; exit 1; }
        site=$(dirname "$(dirname "$4")")/lib/python3.11/site-packages
        mkdir -p "$site"
        cp -r "$FAKE_WHEEL" "$site/torch" ;;
    esac`,
}

function addTool({ env }: Context, name: string, script: string): void {
  const file = join(env.PATH!, name)
  writeFileSync(file, `#!/bin/sh\n${script}\n`)
  chmodSync(file, 0o755)
}

const addGpu = (context: Context) => addTool(context, 'nvidia-smi', 'echo "GPU 0: NVIDIA H200 (UUID: GPU-1)"')

/** A directory that looks like libtorch. */
function makeTorch(dir: string, version: string, options: { cuda?: boolean; oldAbi?: boolean } = {}): string {
  const cmake = join(dir, 'share', 'cmake', 'Torch')
  mkdirSync(cmake, { recursive: true })
  mkdirSync(join(dir, 'lib'), { recursive: true })
  const abi = options.oldAbi ? 0 : 1
  writeFileSync(join(cmake, 'TorchConfig.cmake'), `set(TORCH_CXX_FLAGS "-D_GLIBCXX_USE_CXX11_ABI=${abi}")\n`)
  writeFileSync(join(cmake, 'TorchConfigVersion.cmake'), `set(PACKAGE_VERSION "${version.split('+')[0]}")\n`)
  writeFileSync(join(dir, 'version.py'), `__version__ = '${version}'\n`)
  if (options.cuda) writeFileSync(join(dir, 'lib', 'libtorch_cuda.so'), '')
  return dir
}

/** setup() that never looks at the libtorch of the machine that the tests run on. */
function runSetup(
  { env }: Context,
  options: { force?: boolean; onProgress?: (event: SetupEvent) => unknown } = {},
) {
  return setup({ env, prefixes: [], ...options })
}

function calls({ env }: Context, what: string): string[] {
  const log = env.FAKE_LOG!
  return existsSync(log)
    ? readFileSync(log, 'utf8')
        .split('\n')
        .filter(line => line.includes(what))
    : []
}

async function failure(promise: Promise<unknown>): Promise<Error & { code?: string }> {
  try {
    await promise
  } catch (error) {
    return error as Error
  }
  throw new Error('it did not fail')
}

test('libtorch is looked for in order', async context => {
  const { root, cache, env } = context
  const options = { cache, env, prefixes: [join(root, 'usr')] }
  const first = async () => (await findLibtorch(options)).at(-1)!

  const none = await findLibtorch(options)
  assert.equal(
    none.map(candidate => candidate.source),
    ['RAPO_LIBTORCH', 'python3', 'system', 'private'],
  )
  assert.ok(none.every(candidate => !candidate.found && candidate.reason))
  assert.match(none[1]!.reason!, "No module named 'torch'")

  const site = join(cache, 'torch-2.13.0', 'lib', 'python3.11', 'site-packages', 'torch')
  makeTorch(site, '2.13.0+cpu')
  assert.match((await first()).reason!, 'interrupted installation')
  writeFileSync(join(cache, 'torch-2.13.0', 'rapo-done'), '')
  assert.equal((await first()).found!.source, 'private')

  // As Debian lays it out.
  makeTorch(join(root, 'usr'), '2.6.0')
  mkdirSync(join(root, 'usr', 'lib', 'x86_64-linux-gnu', 'cmake'), { recursive: true })
  cpTorch(join(root, 'usr', 'share', 'cmake', 'Torch'), join(root, 'usr/lib/x86_64-linux-gnu/cmake/Torch'))
  rmSync(join(root, 'usr', 'share'), { recursive: true })
  rmSync(join(root, 'usr', 'version.py'))
  assert.equal((await first()).found!.source, 'system')
  assert.equal((await first()).found!.version, '2.6.0')

  addTool(context, 'nvcc', 'echo "nvcc: NVIDIA (R) Cuda compiler driver"')
  env.FAKE_TORCH = makeTorch(join(root, 'python'), '2.4.1+cu121', { cuda: true, oldAbi: true })
  const python = (await first()).found!
  assert.equal(python.source, 'python3')
  assert.equal([python.version, python.cuda, python.cxx11Abi], ['2.4.1+cu121', true, false])

  env.RAPO_LIBTORCH = makeTorch(join(root, 'mine'), '2.5.0')
  assert.equal((await first()).found!.source, 'RAPO_LIBTORCH')
  assert.equal((await first()).found!.dir, join(root, 'mine'))

  const all = await findLibtorch(options, true)
  assert.ok(all.every(candidate => candidate.found))
})

function cpTorch(from: string, to: string) {
  mkdirSync(to)
  for (const name of readdirSync(from)) writeFileSync(join(to, name), readFileSync(join(from, name)))
}

test('a libtorch that is too old is passed over, with the reason', async context => {
  const { root, cache, env } = context
  env.FAKE_TORCH = makeTorch(join(root, 'python'), '2.3.1')
  const [, python, system] = await findLibtorch({
    cache,
    env,
    prefixes: [makeTorch(join(root, 'usr'), '2.10.0')],
  })
  assert.match(python!.reason!, '2.3.1')
  assert.match(python!.reason!, 'older than 2.4')
  assert.equal(system!.found!.version, '2.10.0')
})

test('a libtorch with CUDA is passed over where there is no nvcc, with the reason', async context => {
  const { root, cache, env } = context
  env.FAKE_TORCH = makeTorch(join(root, 'python'), '2.13.0+cu130', { cuda: true })
  const withCuda = makeTorch(join(root, 'usr-local'), '2.13.0+cu130', { cuda: true })
  const prefixes = [withCuda, makeTorch(join(root, 'usr'), '2.12.0+cpu')]
  const found = () => findLibtorch({ cache, env, prefixes })
  const [, python, system] = await found()
  assert.match(python!.reason!, `2.13.0+cu130 in ${join(root, 'python')} is built with CUDA`)
  assert.match(python!.reason!, 'no nvcc on PATH')
  assert.equal(system!.found!.version, '2.12.0+cpu')
  env.CUDACXX = join(root, 'no-nvcc')
  assert.match((await found())[1]!.reason!, `CUDACXX=${env.CUDACXX} does not run`)

  const mine = { ...env, RAPO_LIBTORCH: withCuda }
  const error = await failure(setup({ env: mine, prefixes: [] }))
  assert.equal((error as { code?: string }).code, 'ERR_RAPO_SETUP')
  assert.match(error.message, `RAPO_LIBTORCH=${withCuda} cannot be used`)
  assert.match(error.message, 'takes nvcc')

  const toolkit = { ...context, env: { ...env, PATH: join(root, 'cuda', 'bin') } }
  mkdirSync(toolkit.env.PATH, { recursive: true })
  addTool(toolkit, 'nvcc', 'echo "nvcc: NVIDIA (R) Cuda compiler driver"')
  env.CUDACXX = join(toolkit.env.PATH, 'nvcc')
  assert.equal((await found()).at(-1)!.source, 'python3')
  env.CUDACXX = ''
  env.CUDA_PATH = join(root, 'cuda')
  assert.equal((await found()).at(-1)!.source, 'python3')
})

test('RAPO_LIBTORCH that cannot be used is an error, not passed over', async context => {
  const { root, env } = context
  env.FAKE_TORCH = makeTorch(join(root, 'python'), '2.13.0')
  env.RAPO_LIBTORCH = join(root, 'nowhere')
  const error = await failure(runSetup(context))
  assert.equal(error.code, 'ERR_RAPO_SETUP')
  assert.match(error.message, `RAPO_LIBTORCH=${join(root, 'nowhere')} cannot be used`)
  mkdirSync(env.RAPO_LIBTORCH)
  assert.match((await failure(runSetup(context))).message, 'TorchConfig.cmake')
})

test('one message names everything that is missing, with the fix for each system', async context => {
  const { root, env } = context
  env.PATH = join(root, 'empty')
  const error = await failure(runSetup(context))
  assert.equal(error.code, 'ERR_RAPO_SETUP')
  for (const text of ['C++17 compiler', 'CMake >= 3.19', 'Python 3 with venv'])
    assert.match(error.message, text)
  assert.match(error.message, /Debian.*apt-get install g\+\+ make cmake python3-venv/)
  assert.match(error.message, /Fedora.*dnf install gcc-c\+\+ make cmake python3/)
  assert.match(error.message, /macOS.*xcode-select --install && brew install cmake python/)
})

test('only what is missing is named; Python only where libtorch must be installed', async context => {
  const { root, env } = context
  env.FAKE_CMAKE = '3.18.6'
  rmSync(join(env.PATH!, 'python3'))
  const error = await failure(runSetup(context))
  assert.match(error.message, '3.18.6 is older than 3.19')
  assert.match(error.message, 'no python3 on PATH')
  assert.not.match(error.message, 'compiler')

  env.RAPO_LIBTORCH = makeTorch(join(root, 'mine'), '2.13.0')
  assert.not.match((await failure(runSetup(context))).message, 'python3')
  requireTools(await findTools(env), ['compiler'])
})

test('a Python too old for torch is named where torch must be installed, and only there', async context => {
  const { root, env } = context
  env.FAKE_PYTHON = '3.9.19'
  const error = await failure(runSetup(context))
  assert.equal(error.code, 'ERR_RAPO_SETUP')
  assert.match(error.message, '3.9.19 is older than 3.10, the least for torch 2.13.0')
  assert.equal(calls(context, 'install'), [])
  requireTools(await findTools(env), ['python'])

  env.RAPO_LIBTORCH = makeTorch(join(root, 'mine'), '2.13.0')
  await runSetup(context)
})

test('platforms without a wheel of torch are known before pip', () => {
  const lack = (platform: string, arch: string, glibc?: string) => lackOfWheel({ platform, arch, glibc })
  assert.is(lack('linux', 'x64', '2.28'), undefined)
  assert.is(lack('linux', 'arm64', '2.28'), undefined)
  assert.is(lack('darwin', 'arm64'), undefined)
  assert.match(lack('darwin', 'x64')!, /no wheel of it for darwin-x64; let RAPO_LIBTORCH name/)
  assert.match(lack('linux', 'x64')!, 'no wheel of it for linux-x64 without glibc (musl)')
  assert.match(lack('linux', 'riscv64', '2.38')!, 'linux-riscv64')
})

test('torch is installed once, into the cache, and the engine built against it', async context => {
  const { root, cache, env } = context
  env.FAKE_WHEEL = makeTorch(join(root, 'wheel'), '2.13.0+cpu')
  const events: SetupEvent[] = []
  const engine = await runSetup(context, { onProgress: event => events.push(event) })
  assert.equal(engine.marker.libtorch.version, '2.13.0+cpu')
  assert.ok(engine.addon.startsWith(join(cache, 'engine')))
  assert.equal(readFileSync(engine.addon, 'utf8'), 'addon\n')
  assert.equal(
    events.filter(event => event.seconds !== undefined).map(event => event.part),
    ['libtorch', 'engine'],
  )
  assert.ok(events.some(event => event.done === 1 && event.total === 2))
  const [install, ...more] = calls(context, 'install')
  assert.equal(more, [])
  assert.match(install!, 'torch==2.13.0 --no-deps')
  // The CPU index did not answer, which the message says.
  assert.not.match(install!, '--index-url')
  assert.ok(events.some(event => /did not answer/.test(event.message)))
  const configure = calls(context, '-DRAPO_ENGINE=ON')[0]!
  assert.match(configure, `-DTorch_DIR=${engine.marker.libtorch.dir}/share/cmake/Torch`)
  const napi = configure.match(/-DRAPO_NODE_ADDON_API=(\S+)/)![1]!
  assert.ok(isAbsolute(napi) && existsSync(join(napi, 'napi.h')), napi)

  assert.equal((await runSetup(context)).addon, engine.addon)
  assert.equal(calls(context, 'cmake --build').length, 1)
  assert.equal(calls(context, 'install').length, 1)
})

test('without a GPU torch comes from the CPU index where that answers', async context => {
  const { root, env } = context
  env.FAKE_WHEEL = makeTorch(join(root, 'wheel'), '2.13.0+cpu')
  env.FAKE_INDEX = '0'
  await runSetup(context)
  const installs = calls(context, 'install')
  assert.equal(installs.length, 1)
  assert.match(installs[0]!, /--index-url \S+\/whl\/cpu$/)
})

test('with a GPU and no nvcc torch comes from the CPU index, and it is said why', async context => {
  const { root, env } = context
  env.FAKE_WHEEL = makeTorch(join(root, 'wheel'), '2.13.0+cpu')
  env.FAKE_INDEX = '0'
  addGpu(context)
  const events: SetupEvent[] = []
  await runSetup(context, { onProgress: event => events.push(event) })
  const installs = calls(context, 'install')
  assert.equal(installs.length, 1)
  assert.match(installs[0]!, /--index-url \S+\/whl\/cpu$/)
  assert.ok(events.some(event => /the GPU is not used.*no nvcc on PATH/.test(event.message)))
})

test('a torch with CUDA that pip brought is refused where there is no nvcc', async context => {
  const { root, env } = context
  env.FAKE_WHEEL = makeTorch(join(root, 'wheel'), '2.13.0+cu130', { cuda: true })
  const error = await failure(runSetup(context))
  assert.equal(error.code, 'ERR_RAPO_SETUP')
  assert.match(error.message, /pip installed a torch that cannot be used: 2\.13\.0\+cu130 .*no nvcc on PATH/)
  // Not the gigabytes of CUDA libraries that it would need.
  assert.equal(calls(context, 'install').length, 1)
})

test('with a GPU torch comes with its CUDA libraries', async context => {
  const { root, env } = context
  env.FAKE_WHEEL = makeTorch(join(root, 'wheel'), '2.13.0+cu130', { cuda: true })
  env.FAKE_INDEX = '0'
  addGpu(context)
  addTool(context, 'nvcc', 'echo "nvcc: NVIDIA (R) Cuda compiler driver"')
  await runSetup(context)
  const installs = calls(context, 'install')
  assert.equal(installs.length, 2)
  assert.ok(installs.every(call => !call.includes('--index-url')))
  assert.ok(installs[0]!.includes('--no-deps') && !installs[1]!.includes('--no-deps'))
})

test('a failing pip is told with its last lines; the next attempt starts afresh', async context => {
  const { root, cache, env } = context
  env.FAKE_PIP_BROKEN = '1'
  const error = await failure(runSetup(context))
  assert.equal(error.code, 'ERR_RAPO_SETUP')
  assert.match(error.message, 'No matching distribution found')
  assert.match(error.message, join(cache, 'torch-2.13.0.log'))
  env.FAKE_PIP_BROKEN = ''
  env.FAKE_WHEEL = makeTorch(join(root, 'wheel'), '2.13.0')
  await runSetup(context)
})

test('a failing build is told with its first error, its last lines and the log', async context => {
  const { root, env } = context
  env.RAPO_LIBTORCH = makeTorch(join(root, 'mine'), '2.13.0')
  env.FAKE_BROKEN = '1'
  const error = await failure(runSetup(context))
  assert.equal(error.code, 'ERR_RAPO_SETUP')
  assert.match(error.message, "qwen2.cpp:3:1: error: expected ';'")
  assert.match(error.message, '| 1100\n')
  assert.not.match(error.message, '| 1050\n')
  const log = error.message.match(/the whole log: (.*)$/)![1]!
  assert.match(readFileSync(log, 'utf8'), '1050')
  assert.is(findEngine(cacheDir(env), env), undefined)

  // The compiler ended by itself: what it compiled is kept.
  env.FAKE_BROKEN = ''
  await runSetup(context)
  assert.equal(calls(context, 'found half.o').length, 1)
})

test('another compiler starts with a tree of its own', async context => {
  const { root, env } = context
  env.RAPO_LIBTORCH = makeTorch(join(root, 'mine'), '2.13.0')
  env.FAKE_BROKEN = '1'
  await failure(runSetup(context))
  env.FAKE_BROKEN = ''
  addTool(context, 'clang++', 'echo "clang version 19.1.0"')
  env.CXX = 'clang++'
  await runSetup(context)
  assert.equal(calls(context, 'found half.o'), [])
})

test('a tree is configured anew where an attempt to configure failed, or what its cache names is gone', ({
  root,
}) => {
  const tree = join(root, 'tree')
  const cache = join(tree, 'CMakeCache.txt')
  const isKept = (content: string, generated = 'Makefile') => {
    mkdirSync(join(tree, 'CMakeFiles'), { recursive: true })
    writeFileSync(cache, content)
    if (generated) writeFileSync(join(tree, generated), '')
    dropBrokenCache(tree)
    assert.is(existsSync(join(tree, 'CMakeFiles')), existsSync(cache))
    rmSync(join(tree, generated || 'none'), { force: true })
    return existsSync(cache)
  }
  for (const generated of ['Makefile', 'build.ninja', 'rapo.slnx', 'rapo.xcodeproj']) {
    assert.ok(isKept('', generated), generated)
  }
  assert.not(isKept('', ''))
  const gone = join(root, 'gone')
  for (const name of ['CMAKE_CXX_COMPILER', 'CMAKE_MAKE_PROGRAM']) {
    assert.ok(isKept(`// A tool\n${name}:FILEPATH=${process.execPath}\n`), name)
    assert.not(isKept(`// A tool\n${name}:FILEPATH=${gone}\n`), name)
  }
  assert.ok(isKept(`CMAKE_CACHEFILE_DIR:INTERNAL=${tree}`))
  assert.not(isKept(`CMAKE_CACHEFILE_DIR:INTERNAL=${root}`))
  assert.not(isKept(`CMAKE_CACHEFILE_DIR:INTERNAL=${gone}`))
})

test('with the real CMake: a tree whose compiler is deleted is configured anew', ({ root }) => {
  const compiler = join(root, 'my-c++')
  const [source, tree] = [join(root, 'source'), join(root, 'tree')]
  mkdirSync(source)
  writeFileSync(
    join(source, 'CMakeLists.txt'),
    'cmake_minimum_required(VERSION 3.19)\nproject(tiny LANGUAGES CXX)\n',
  )
  const configure = (env: NodeJS.ProcessEnv) => {
    const { status, stderr } = spawnSync('cmake', ['-S', source, '-B', tree], { env, encoding: 'utf8' })
    return { status, stderr }
  }
  writeFileSync(compiler, '#!/bin/sh\nexec c++ "$@"\n', { mode: 0o755 })
  assert.is(configure({ ...process.env, CXX: compiler }).status, 0)
  rmSync(compiler)
  const failed = configure(process.env)
  assert.is.not(failed.status, 0)
  assert.match(failed.stderr, /is not a full path to an existing compiler tool/)
  dropBrokenCache(tree)
  assert.is(configure(process.env).status, 0)
})

test('an engine is built although the tree of an earlier build cannot be configured any more', async context => {
  const { root, cache, env } = context
  env.RAPO_LIBTORCH = makeTorch(join(root, 'mine'), '2.13.0')
  env.FAKE_COMPILER = join(env.PATH!, 'c++')
  env.FAKE_BROKEN = '1'
  await failure(runSetup(context))
  env.FAKE_BROKEN = ''
  // What is wrong with the tree is for CMake to say.
  env.FAKE_STALE = '1'
  const messages: string[] = []
  await runSetup(context, { onProgress: ({ message }) => messages.push(message) })
  assert.ok(findEngine(cache, env))
  assert.ok(messages.some(message => /cannot be configured any more/.test(message)))
  assert.equal(calls(context, 'found half.o').length, 1)
  assert.equal(trees(cache).length, 1)
})

test('a tree of a compiler that is gone is configured anew, at the first attempt', async context => {
  const { root, cache, env } = context
  env.RAPO_LIBTORCH = makeTorch(join(root, 'mine'), '2.13.0')
  env.FAKE_COMPILER = join(root, 'gone')
  env.FAKE_BROKEN = '1'
  await failure(runSetup(context))
  Object.assign(env, { FAKE_BROKEN: '', FAKE_STALE: '1', FAKE_COMPILER: join(env.PATH!, 'c++') })
  const before = calls(context, 'cmake -S').length
  await runSetup(context)
  assert.ok(findEngine(cache, env))
  assert.is(calls(context, 'cmake -S').length, before + 1)
})

test('what cannot be configured in a new tree is tried once', async context => {
  const { root, env } = context
  env.RAPO_LIBTORCH = makeTorch(join(root, 'mine'), '2.13.0')
  env.FAKE_UNUSABLE = '1'
  const error = await failure(runSetup(context))
  assert.match(error.message, 'CMake Error: no')
  assert.is(calls(context, 'cmake -S').length, 1)
})

test('a set-up that was killed is repeated from a clean tree', async context => {
  const { root, cache, env } = context
  env.RAPO_LIBTORCH = makeTorch(join(root, 'mine'), '2.13.0')
  const child = setupProcess({ ...env, FAKE_HANG: '1' })
  await until(
    () =>
      calls(context, 'cmake --build').length === 1 &&
      trees(cache).some(tree => existsSync(join(tree, 'half.o'))),
  )
  process.kill(-child.pid!, 'SIGKILL')
  assert.ok(existsSync(join(cache, 'set-up.lock')))
  await runSetup(context)
  assert.equal(calls(context, 'cmake --build').length, 2)
  assert.equal(calls(context, 'found half.o'), [])
  assert.ok(findEngine(cache, env))
})

test('a set-up that is told to end ends its tools, gives the lock back, and is repeated from a clean tree', async context => {
  const { root, cache, env } = context
  env.RAPO_LIBTORCH = makeTorch(join(root, 'mine'), '2.13.0')
  const child = setupProcess({ ...env, FAKE_HANG: '1' }, 'pipe')
  let said = ''
  child.stderr!.on('data', text => {
    said += text
  })
  const ended = new Promise(resolve => child.on('close', resolve))
  await until(() => trees(cache).some(tree => existsSync(join(tree, 'half.o'))))
  process.kill(child.pid!, 'SIGTERM')
  // It ends only once the hanging tool has, which holds its pipe.
  assert.equal(await ended, 1)
  assert.match(said, 'ERR_RAPO_ABORTED')
  assert.not.ok(existsSync(join(cache, 'set-up.lock')))
  await runSetup(context)
  assert.equal(calls(context, 'found half.o'), [])
})

test('an onProgress that fails ends the tools and the set-up, not the process', async context => {
  const { root, cache, env } = context
  env.RAPO_LIBTORCH = makeTorch(join(root, 'mine'), '2.13.0')
  env.FAKE_STUCK = '1'
  const boom = new Error('boom')
  const failing = {
    throws: () => {
      throw boom
    },
    rejects: () => Promise.reject(boom),
  }
  for (const [how, fail] of Object.entries(failing)) {
    const onProgress = ({ done }: SetupEvent) => (done === 1 ? fail() : undefined)
    assert.is(await failure(runSetup(context, { onProgress })), boom, how)
    assert.not(existsSync(join(cache, 'set-up.lock')), how)
  }
  assert.is(
    await failure(runSetup(context, { onProgress: failing.throws })),
    boom,
    'before anything is built',
  )
  env.FAKE_STUCK = ''
  await runSetup(context)
  assert.equal(calls(context, 'found half.o'), [])
})

test('an onProgress that fails while another set-up is waited for ends the waiting', async context => {
  const { root, env } = context
  env.RAPO_LIBTORCH = makeTorch(join(root, 'mine'), '2.13.0')
  env.FAKE_GATE = join(root, 'gate')
  const other = runSetup(context)
  await until(() => calls(context, 'cmake --build').length === 1)
  const boom = new Error('boom')
  const onProgress = ({ message }: SetupEvent) => {
    if (/waiting for another/.test(message)) throw boom
  }
  assert.is(await failure(runSetup(context, { onProgress })), boom)
  writeFileSync(env.FAKE_GATE, '')
  await other
})

test('an onProgress that fails when the engine is ready is a warning', async context => {
  const { root, env } = context
  env.RAPO_LIBTORCH = makeTorch(join(root, 'mine'), '2.13.0')
  for (const part of ['built', 'found']) {
    const warned = once(process, 'warning')
    const onProgress = (event: SetupEvent) => {
      if (event.part === 'engine' && event.seconds !== undefined) throw new Error('too late')
    }
    assert.ok(existsSync((await runSetup(context, { onProgress })).addon), part)
    const [warning] = await warned
    assert.is(warning.name, 'RapoWarning', part)
    assert.match(warning.message, 'onProgress failed', part)
  }
})

test('two set-ups at once build once', async context => {
  const { root, cache, env } = context
  env.RAPO_LIBTORCH = makeTorch(join(root, 'mine'), '2.13.0')
  env.FAKE_GATE = join(root, 'gate')
  const child = setupProcess(env)
  const ended = new Promise(resolve => child.on('close', resolve))
  await until(() => calls(context, 'cmake --build').length === 1)
  // The other's build ends only once this one waits for it.
  let isWaiting = false
  const onProgress = ({ message }: { message: string }) => {
    if (!/waiting for another/.test(message)) return
    isWaiting = true
    writeFileSync(env.FAKE_GATE!, '')
  }
  const engine = await runSetup(context, { onProgress })
  assert.equal(await ended, 0)
  assert.equal(calls(context, 'cmake --build').length, 1)
  assert.ok(isWaiting)
  assert.equal(findEngine(cache, env)!.addon, engine.addon)
})

/** `setup()` in a process group of its own, like one in another terminal. */
function setupProcess(env: Record<string, string>, stdio: 'inherit' | 'pipe' = 'inherit') {
  const script = "import { setup } from './lib/setup/setup.ts'; await setup({ prefixes: [] })"
  return spawn(process.execPath, ['--import', 'tsx', '--input-type=module', '-e', script], {
    cwd: packageRoot,
    env,
    stdio,
    detached: true,
  })
}

/** Comes true in a process that goes on until then. */
async function until(condition: () => boolean) {
  while (!condition()) await sleep(50)
}

function trees(cache: string): string[] {
  const dir = join(cache, 'build')
  return existsSync(dir) ? readdirSync(dir).map(name => join(dir, name)) : []
}

test('a broken marker or addon counts as not built', async context => {
  const { root, cache, env } = context
  env.RAPO_LIBTORCH = makeTorch(join(root, 'mine'), '2.13.0')
  const engine = await runSetup(context)
  const found = () => findEngine(cache, env)?.addon
  assert.equal(found(), engine.addon)

  for (const text of ['', '{"version": "0.1', 'null', '{}']) {
    writeFileSync(join(engine.dir, 'done.json'), text)
    assert.is(found(), undefined, text)
    await runSetup(context)
    assert.equal(found(), engine.addon, text)
  }
  truncateSync(engine.addon, 3)
  assert.is(found(), undefined)
  await runSetup(context)
  assert.equal(found(), engine.addon)
  assert.equal(calls(context, 'cmake --build').length, 6)
})

test('an engine is not used with another libtorch than it was built against', async context => {
  const { root, cache, env } = context
  env.RAPO_LIBTORCH = makeTorch(join(root, 'mine'), '2.13.0')
  await runSetup(context)
  assert.ok(findEngine(cache, env))
  assert.ok(findEngine(cache, { ...env, RAPO_LIBTORCH: '' }))

  assert.is(findEngine(cache, { ...env, RAPO_LIBTORCH: makeTorch(join(root, 'other'), '2.13.0') }), undefined)
  makeTorch(join(root, 'mine'), '2.13.1') // upgraded in place
  assert.is(findEngine(cache, env), undefined)
  rmSync(join(root, 'mine'), { recursive: true })
  assert.is(findEngine(cache, { ...env, RAPO_LIBTORCH: '' }), undefined)
})

test('force looks for libtorch anew and builds from nothing', async context => {
  const { root, env } = context
  env.FAKE_TORCH = makeTorch(join(root, 'python'), '2.9.0')
  const before = await runSetup(context)
  env.CMAKE_PREFIX_PATH = makeTorch(join(root, 'newer'), '2.13.0')
  env.FAKE_TORCH = ''
  assert.equal((await runSetup(context)).addon, before.addon)
  const after = await runSetup(context, { force: true })
  assert.equal(after.marker.libtorch.dir, join(root, 'newer'))
  await runSetup(context, { force: true })
  assert.equal(calls(context, 'cmake --build').length, 3)
  assert.equal(calls(context, 'found half.o'), [])
})

test('builds against the C++ ABI that libtorch was compiled with', async context => {
  const { root, env } = context
  env.RAPO_LIBTORCH = makeTorch(join(root, 'mine'), '2.5.0', { oldAbi: true })
  await runSetup(context)
  assert.match(calls(context, '-DRAPO_ENGINE=ON')[0]!, '-D_GLIBCXX_USE_CXX11_ABI=0')
})

test('old builds go, the last used stay', async context => {
  const { root, cache, env } = context
  const build = async (name: string) => {
    env.RAPO_LIBTORCH = makeTorch(join(root, name), '2.13.0')
    return runSetup(context)
  }
  const first = await build('torch-0')
  for (let i = 1; i < 6; i++) {
    await build(`torch-${i}`)
    await build('torch-0')
    await sleep(5) // so that the files' times differ
  }
  assert.equal(readdirSync(join(cache, 'engine')).length, 4)
  assert.equal(readdirSync(join(cache, 'build')).length, 2)
  assert.ok(existsSync(first.addon))
  assert.ok(existsSync((await build('torch-5')).addon))
  assert.equal(calls(context, 'cmake --build').length, 6)
})

test('without an engine the error says what to do', context => {
  const { RAPO_CACHE, RAPO_ENGINE_ADDON } = process.env
  process.env.RAPO_CACHE = context.cache
  process.env.RAPO_ENGINE_ADDON = ''
  try {
    assert.throws(locateEngine, /run `npx rapo setup`/)
  } finally {
    for (const [name, value] of Object.entries({ RAPO_CACHE, RAPO_ENGINE_ADDON })) {
      if (value === undefined) delete process.env[name]
      else process.env[name] = value
    }
  }
})

test('the hash of the sources sees every change', ({ root }) => {
  for (const dir of ['native/kernels', 'bindings']) mkdirSync(join(root, dir), { recursive: true })
  const files = ['CMakeLists.txt', 'native/kernels/a.cpp', 'bindings/b.cpp']
  for (const file of files) writeFileSync(join(root, file), file)
  const seen = new Set([hashSources(root)])
  assert.ok(seen.has(hashSources(root)))
  for (const file of files) {
    writeFileSync(join(root, file), `${file} changed`)
    seen.add(hashSources(root))
  }
  writeFileSync(join(root, 'native/kernels/c.cpp'), '')
  seen.add(hashSources(root))
  // The same text under another name.
  rmSync(join(root, 'native/kernels/c.cpp'))
  writeFileSync(join(root, 'native/kernels/d.cpp'), '')
  seen.add(hashSources(root))
  assert.equal(seen.size, 6)
})

test('libtorch directories are read as the distributions lay them out', ({ root }) => {
  assert.match(String(inspectLibtorch(join(root, 'none'))), 'does not exist')
  const zip = makeTorch(join(root, 'libtorch'), '2.13.0')
  rmSync(join(zip, 'version.py'))
  writeFileSync(join(zip, 'build-version'), '2.13.0+cu130\n')
  const found = inspectLibtorch(zip)
  assert.equal(typeof found === 'string' ? found : found.version, '2.13.0+cu130')
})

test('the doctor reports every place and every lack', async context => {
  const { root, cache, env } = context
  env.FAKE_TORCH = makeTorch(join(root, 'python'), '2.3.0')
  env.RAPO_LIBTORCH = makeTorch(join(root, 'mine'), '2.13.0')
  env.FAKE_CMAKE = '3.10.2'
  const report = await doctor(env)
  assert.equal(report.libtorch.map(candidate => candidate.found?.version ?? 'none').slice(0, 2), [
    '2.13.0',
    'none',
  ])
  assert.equal(report.cache, { dir: cache, entries: {} })
  assert.equal(JSON.parse(JSON.stringify(report)), report)
  const text = formatDoctor(report)
  for (const part of [
    '3.10.2 is older than 3.19',
    'older than 2.4',
    'RAPO_LIBTORCH: 2.13.0',
    process.version,
    cache,
  ]) {
    assert.ok(text.includes(part), part)
  }
  assert.not.ok(existsSync(cache))
})

test.run()
