/**
 * npm run pack:cuda [-- --build DIR] [--out DIR]: makes the npm package rapo-cuda-linux-x64 as a directory (build/) from what
 * npm run build:cuda compiled in DIR (build/cuda). `npm install`, `npm pack` and `npm publish` accept the directory. zig links
 * the library again for glibc 2.28, since a library linked on this machine refers to this machine's glibc. --library FILE packs
 * a library as it is.
 */
import { execFileSync, spawnSync } from 'node:child_process'
import {
  copyFileSync,
  existsSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { readBinary } from '../test/helpers/binary.js'
// @ts-expect-error: no types
import { prepareZig, targets } from './prebuilds.mjs'

const NAME = 'rapo-cuda-linux-x64'

const root = fileURLToPath(new URL('..', import.meta.url))
const { values: flags } = parseArgs({
  options: {
    library: { type: 'string' },
    build: { type: 'string', default: join(root, 'build', 'cuda') },
    out: { type: 'string', default: join(root, 'build', NAME) },
  },
})

/** What the library may require of a machine: glibc 2.28 and a libstdc++ of the same age (GCC 8). */
const allowed = {
  library: /^(lib(c|m|dl|rt|pthread)\.so\.\d|libstdc\+\+\.so\.6|libgcc_s\.so\.1|ld-linux-x86-64\.so\.2)$/,
  GLIBC: [2, 28],
  GLIBCXX: [3, 4, 25],
  CXXABI: [1, 3, 11],
} as const

const library = flags.library ?? (await link(flags.build))
const problem = problemOf(library)
if (problem) fail(`${library} ${problem}`)
rmSync(flags.out, { recursive: true, force: true })
mkdirSync(flags.out, { recursive: true })
copyFileSync(library, join(flags.out, 'librapo_cuda.so'))
copyFileSync(join(root, 'LICENSE'), join(flags.out, 'LICENSE'))
const rapo = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
const manifest = {
  name: NAME,
  version: rapo.version,
  description: 'The CUDA kernels of the npm package rapo, for Linux on x86-64 with glibc >= 2.28.',
  license: rapo.license,
  os: ['linux'],
  cpu: ['x64'],
  libc: ['glibc'],
  files: ['librapo_cuda.so'],
}
writeFileSync(join(flags.out, 'package.json'), `${JSON.stringify(manifest, null, 2)}\n`)
writeFileSync(
  join(flags.out, 'README.md'),
  `# ${NAME}

The CUDA kernels of [rapo](https://www.npmjs.com/package/rapo), in a library that holds NVIDIA's CUDA runtime: install it
beside rapo, in the same version, where the driver of an NVIDIA GPU is. \`npx rapo doctor\` says whether it is found.
`,
)
console.log(`${flags.out}: ${NAME} ${rapo.version}, ${(statSync(library).size / 2 ** 20).toFixed(2)} MiB`)

/** Links the objects of a build tree to a library for the oldest supported glibc. */
async function link(build: string): Promise<string> {
  const objects = filesIn(join(build, 'CMakeFiles', 'rapo_cuda.dir'), /\.(cu|cpp)\.o$/)
  const compiler = filesIn(join(build, 'CMakeFiles'), /CMakeCUDACompiler\.cmake$/)[0]
  if (!objects.length || !compiler) fail(`there is nothing compiled in ${build}: npm run build:cuda does it`)
  const [, directories] =
    /set\(CMAKE_CUDA_HOST_IMPLICIT_LINK_DIRECTORIES "(.*)"\)/.exec(readFileSync(compiler!, 'utf8')) ?? []
  const exports = join(build, 'exports.map')
  writeFileSync(exports, '{ global: rapo_cuda_functions; local: *; };\n')
  // g++ compiles nvcc's host code, which therefore needs g++'s runtime, not zig's.
  const runtime = ['libstdc++.so.6', 'libgcc_s.so.1'].map(name =>
    execFileSync(process.env.CXX ?? 'g++', [`-print-file-name=${name}`], { encoding: 'utf8' }).trim(),
  )
  const out = join(build, 'librapo_cuda.portable.so')
  const args = ['c++', '-target', targets['linux-x64-glibc'], '-nostdlib++', '-shared', '-s', '-o', out]
  args.push(`-Wl,--version-script=${exports}`, '-Wl,-soname,librapo_cuda.so', '-Wl,-z,defs', ...objects)
  args.push(
    ...(directories ?? '')
      .split(';')
      .filter(existsSync)
      .map(directory => `-L${directory}`),
  )
  args.push('-lcudadevrt', '-lcudart_static', '-lrt', '-lpthread', '-ldl', ...runtime)
  execFileSync(await prepareZig(), args, { stdio: 'inherit' })
  return out
}

function filesIn(directory: string, name: RegExp): string[] {
  if (!existsSync(directory)) return []
  return readdirSync(directory, { recursive: true, encoding: 'utf8' })
    .filter(file => name.test(file))
    .map(file => join(directory, file))
}

function fail(message: string): never {
  console.error(`pack:cuda: ${message}`)
  process.exit(1)
}

function problemOf(file: string): string | undefined {
  if (!existsSync(file)) return 'is not there'
  const binary = readBinary(readFileSync(file))
  if (binary.format !== 'elf' || binary.arch !== 'x64') return `is for ${binary.format} ${binary.arch}`
  if (!binary.exported.includes('rapo_cuda_functions')) return 'does not export rapo_cuda_functions'
  const missing = missingParts(file)
  if (missing.length) return `lacks ${missing.join(', ')}: an object of rapo_cuda was left out`
  const foreign = binary.libraries.filter(library => !allowed.library.test(library))
  if (foreign.length) return `needs ${foreign.join(', ')}`
  const late = binary.versions.filter(isLate)
  return late.length ? `needs ${late.join(', ')}, later than glibc 2.28 and GCC 8` : undefined
}

/** Functions of rapo that the library refers to but does not contain; there must be none. */
function missingParts(file: string): string[] {
  const { status, stdout, stderr, error } = spawnSync('nm', ['-D', '-C', '--undefined-only', file], {
    encoding: 'utf8',
  })
  if (status !== 0) fail(`nm (binutils) does not read ${file}: ${error?.message ?? stderr}`)
  return [...stdout.matchAll(/^ +\w (.*\brapo::.*)$/gm)].map(match => match[1]!)
}

/** Compares versions: GLIBC_2.34 is later than GLIBC_2.28. */
function isLate(version: string): boolean {
  const [name, numbers = ''] = version.split('_')
  const most = name === 'GLIBC' || name === 'GLIBCXX' || name === 'CXXABI' ? allowed[name] : undefined
  if (!most) return name !== 'GCC'
  const parts = numbers.split('.').map(Number)
  const at = parts.findIndex((part, i) => part !== (most[i] ?? 0))
  return at >= 0 && parts[at]! > (most[at] ?? 0)
}
