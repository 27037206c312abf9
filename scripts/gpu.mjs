// npm run test:gpu and npm run bench:gpu, in a clone or in a directory made by scripts/gpu-pack.mjs.
//   test   builds the CUDA library and the kernels addon, runs every case of the kernels and of the fused head on the
//          device, captures both in CUDA graphs, and runs the smaller cases under compute-sanitizer (memcheck, racecheck,
//          initcheck; only memcheck for the fused head, since its products are cuBLASLt's)
//   bench  builds the same and runs bench/gpu.ts, to which further arguments are passed
// If a python3 (RAPO_PYTHON) has a torch with CUDA, the engine is built against that torch, and its tests and
// bench/gpu_engine.ts run on the device too, and ranks over NCCL, one a GPU, on one GPU and on two.
// Needs nvcc, CMake and a CUDA device. Without a device it builds everything, says so and ends with status 1.
import { spawnSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

const root = fileURLToPath(new URL('..', import.meta.url))
const build = join(root, 'build', 'gpu')
const [command, ...rest] = process.argv.slice(2)
if (command !== 'test' && command !== 'bench') fail('the command is test or bench')

const capability = spawnSync('nvidia-smi', ['--query-gpu=compute_cap', '--format=csv,noheader'], {
  encoding: 'utf8',
})
const arch = /^(\d+)\.(\d+)/.exec(capability.stdout ?? '')
// Without a device the builds still run.
run('the CUDA library', process.execPath, [
  join(root, 'scripts', 'build-cuda.mjs'),
  '--arch',
  arch ? `${arch[1]}${arch[2]}-real` : '90-real',
  '--build',
  join(build, 'cuda'),
  '--out',
  build,
  '--tests',
])
const modules = join(root, 'node_modules')
const ninja = spawnSync('ninja', ['--version'], { stdio: 'ignore' }).status === 0 ? ['-G', 'Ninja'] : []
run('the kernels addon', 'cmake', [
  ...ninja,
  '-S',
  root,
  '-B',
  join(build, 'addon'),
  `-DCMAKE_JS_INC=${join(modules, 'node-api-headers', 'include')}`,
  `-DRAPO_NODE_ADDON_API=${join(modules, 'node-addon-api')}`,
  `-DCMAKE_LIBRARY_OUTPUT_DIRECTORY=${build}`,
])
run('the kernels addon', 'cmake', ['--build', join(build, 'addon'), '--parallel', '--target', 'rapo_kernels'])

const addon = join(build, 'rapo_kernels.node')
const python = process.env.RAPO_PYTHON || 'python3'
const env = {
  ...process.env,
  ...cublasLt(),
  RAPO_KERNELS_ADDON: addon,
  RAPO_CUDA_LIBRARY: join(build, 'librapo_cuda.so'),
}
process.env.RAPO_CUDA_LIBRARY = env.RAPO_CUDA_LIBRARY
const engine = buildEngine()
if (engine) env.RAPO_ENGINE_ADDON = engine

const { createRequire } = await import('node:module')
const cuda = createRequire(import.meta.url)(addon).cudaInfo()
if (!cuda.available) fail(`no CUDA device: ${cuda.reason}`)
for (const { name, capability } of cuda.devices) console.log(`device: ${name}, ${capability}`)

if (command === 'bench') {
  run('the benchmark', process.execPath, [...script('bench', 'gpu'), ...rest], {
    ...env,
    RAPO_GPU_PEERS: join(root, 'bench', 'gpu_peers.py'),
    PYTHONPATH: [join(root, 'wheels', 'unpacked'), process.env.PYTHONPATH].filter(Boolean).join(':'),
  })
  if (engine) {
    run('the benchmark of the engine', process.execPath, script('bench', 'gpu_engine'), {
      ...env,
      RAPO_GPU_ENGINE_PEERS: join(root, 'bench', 'gpu_engine_peers.py'),
    })
  }
} else {
  run('every case', process.execPath, script('test/cuda', 'cuda-emulator.test'), env)
  run('the fused head', process.execPath, script('test/cuda', 'cuda-head.test'), env)
  run('CUDA graphs', join(build, 'rapo_cuda_graph'), [], env)
  for (const tool of ['memcheck', 'racecheck', 'initcheck']) {
    run(
      `compute-sanitizer ${tool}`,
      'compute-sanitizer',
      [
        '--tool',
        tool,
        '--error-exitcode',
        '1',
        process.execPath,
        ...script('test/cuda', 'cuda-emulator.test'),
      ],
      { ...env, RAPO_TEST_SMALL: '1' },
    )
  }
  run(
    'compute-sanitizer memcheck, the fused head',
    'compute-sanitizer',
    [
      '--tool',
      'memcheck',
      '--error-exitcode',
      '1',
      process.execPath,
      ...script('test/cuda', 'cuda-head.test'),
    ],
    env,
  )
  for (const name of engine ? ['engine-golden', 'engine-generate', 'engine', 'engine-aten'] : []) {
    // Attention is plain operations in float32, and libtorch's flash attention in bfloat16.
    run(`${name} on the device`, process.execPath, script('test/engine', `${name}.test`), {
      ...env,
      RAPO_TEST_DEVICE: 'cuda',
    })
  }
  if (engine)
    run('several ranks', process.execPath, script('test/world', 'nccl.test'), {
      ...env,
      RAPO_TEST_DEVICE: 'cuda',
    })
  console.log('test:gpu: all passed')
}

/** Where torch's packages keep cuBLASLt. A machine that has only nvcc may have no other cuBLASLt. */
function cublasLt() {
  if (process.env.RAPO_CUBLASLT) return {}
  const code =
    'import glob, nvidia; print(sorted(f for p in nvidia.__path__ for f in glob.glob(p + "/*/lib/libcublasLt.so.*"))[-1])'
  const { status, stdout } = spawnSync(python, ['-c', code], { encoding: 'utf8' })
  return status === 0 ? { RAPO_CUBLASLT: stdout.trim() } : {}
}

/** Builds the engine against Python's torch. Without CUDA in that torch, prints the reason and returns undefined. */
function buildEngine() {
  const code = 'import torch; print(torch.utils.cmake_prefix_path if torch.version.cuda else "")'
  const asked = spawnSync(python, ['-c', code], { encoding: 'utf8' })
  const prefix = asked.status === 0 ? asked.stdout.trim().split('\n').at(-1) : ''
  if (!prefix) {
    console.log(
      `the engine is left out: ${asked.status === 0 ? "Python's torch has no CUDA" : 'Python has no torch'}`,
    )
    return undefined
  }
  const tree = join(build, 'engine')
  run('the engine', 'cmake', [
    ...ninja,
    '-S',
    root,
    '-B',
    tree,
    '-DRAPO_ENGINE=ON',
    `-DTorch_DIR=${join(prefix, 'Torch')}`,
    `-DCMAKE_PREFIX_PATH=${join(prefix, '..', '..')}`,
    `-DCMAKE_JS_INC=${join(modules, 'node-api-headers', 'include')}`,
    `-DRAPO_NODE_ADDON_API=${join(modules, 'node-addon-api')}`,
    `-DCMAKE_LIBRARY_OUTPUT_DIRECTORY=${tree}`,
  ])
  run('the engine', 'cmake', ['--build', tree, '--parallel', '--target', 'rapo_engine'])
  return join(tree, 'rapo_engine.node')
}

/** How node runs a script: a bundled file in the pack, TypeScript in a clone. */
function script(directory, name) {
  const bundled = join(root, 'js', directory, `${name}.mjs`)
  return existsSync(bundled) ? [bundled] : ['--import', 'tsx', join(root, directory, `${name}.ts`)]
}

function run(what, program, args, environment = process.env) {
  const start = performance.now()
  console.log(`── ${what}`)
  const { status, error } = spawnSync(program, args, { cwd: root, env: environment, stdio: 'inherit' })
  if (error || status !== 0) fail(`${what}: ${program} ${error ? error.message : `ended with ${status}`}`)
  console.log(`── ${what}: done (${((performance.now() - start) / 1000).toFixed(1)} s)`)
}

function fail(message) {
  console.error(`${command ?? 'gpu'}:gpu: ${message}`)
  process.exit(1)
}
