// npm run build:cuda [-- --arch 90-real] [-- --build DIR] [-- --out DIR] [-- --tests]: compiles librapo_cuda.so, by default
// beside the kernels addon, and prints registers and spills of every kernel. Fails on a warning, and on a spill in a kernel
// that passes over rows. --tests also builds the program of test/cuda that captures graphs. Needs nvcc (CUDA 12.8 or later) and
// CMake, but no npm package.
import { spawnSync } from 'node:child_process'
import { existsSync, mkdirSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

const root = fileURLToPath(new URL('..', import.meta.url))
const { values: flags } = parseArgs({
  options: {
    arch: { type: 'string', default: '' },
    build: { type: 'string', default: join(root, 'build', 'cuda') },
    out: { type: 'string', default: join(root, 'build', 'Release') },
    tests: { type: 'boolean', default: false },
  },
})

/** The kernels that pass over rows, which take nearly all time of a call. */
const main = /loss_rows|gather_rows|row_logprobs/

const nvcc = [process.env.CUDACXX, 'nvcc', '/usr/local/cuda/bin/nvcc'].find(
  name => name && spawnSync(name, ['--version'], { stdio: 'ignore' }).status === 0,
)
if (!nvcc) fail('there is no nvcc: install the CUDA toolkit, or name its nvcc in CUDACXX')
const ninja = spawnSync('ninja', ['--version'], { stdio: 'ignore' }).status === 0 ? ['-G', 'Ninja'] : []
mkdirSync(flags.build, { recursive: true })
run('cmake', [
  ...ninja,
  '-S',
  join(root, 'native', 'kernels', 'cuda'),
  '-B',
  flags.build,
  `-DCMAKE_CUDA_COMPILER=${nvcc}`,
  `-DCMAKE_LIBRARY_OUTPUT_DIRECTORY=${flags.out}`,
  `-DRAPO_CUDA_ARCHITECTURES=${flags.arch.replaceAll(',', ';')}`,
  `-DRAPO_CUDA_TESTS=${flags.tests ? 'ON' : 'OFF'}`,
])
// A clean build, since an object that is up to date reports no registers.
const log = run('cmake', ['--build', flags.build, '--parallel', '--clean-first'])
writeFileSync(join(flags.build, 'build.log'), log)

const kernels = parseResources(log)
if (kernels.length === 0) fail(`the compiler reported no kernels:\n${log}`)
console.log('architecture  registers  stack  spilled  kernel')
for (const { arch, registers, stack, spilled, name } of kernels) {
  console.log(
    `${arch.padEnd(12)}  ${String(registers).padStart(9)}  ${String(stack).padStart(5)}  ${String(spilled).padStart(7)}  ${name}`,
  )
}
const library = join(flags.out, 'librapo_cuda.so')
if (!existsSync(library)) fail(`${library} was not made:\n${log}`)
console.log(`${library}: ${(statSync(library).size / 2 ** 20).toFixed(2)} MiB`)
const spilling = kernels.filter(kernel => main.test(kernel.name) && kernel.spilled > 0)
if (spilling.length) fail(`${spilling.length} of the main kernels spill registers, see above`)

/** The output of ptxas -v has three lines per kernel. */
function parseResources(text) {
  const found = []
  let kernel
  for (const line of text.split('\n')) {
    const entry = /Compiling entry function '(\w+)' for '(\w+)'/.exec(line)
    if (entry) kernel = { name: readable(entry[1]), arch: entry[2], stack: 0, spilled: 0, registers: 0 }
    const memory = /(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads/.exec(line)
    if (memory && kernel) {
      kernel.stack = Number(memory[1])
      kernel.spilled = Number(memory[2]) + Number(memory[3])
    }
    const used = /Used (\d+) registers/.exec(line)
    if (used && kernel) {
      found.push({ ...kernel, registers: Number(used[1]) })
      kernel = undefined
    }
  }
  return found.sort((a, b) => a.arch.localeCompare(b.arch) || a.name.localeCompare(b.name))
}

/** A kernel's name with its template arguments, from the mangled name. */
function readable(mangled) {
  const { status, stdout } = spawnSync('c++filt', [mangled], { encoding: 'utf8' })
  if (status !== 0) return mangled
  return stdout
    .trim()
    .replaceAll('rapo::cuda::', '')
    .replaceAll('(anonymous namespace)::', '')
    .replace(/^void /, '')
    .replace(/\((LossCall|GatherCall|HiddenRows)\)$/, '')
}

function run(command, args) {
  const { status, stdout, stderr, error } = spawnSync(command, args, {
    encoding: 'utf8',
    maxBuffer: 2 ** 28,
  })
  if (error || status !== 0) fail(`${command} ${args.join(' ')} failed:\n${error ?? ''}${stdout}${stderr}`)
  return stdout + stderr
}

function fail(message) {
  console.error(`build:cuda: ${message}`)
  process.exit(1)
}
