/**
 * npm run pack:cuda [-- --library FILE] [--out DIR]: the npm package rapo-cuda-linux-x64 as a directory (build/), around
 * the library that npm run build:cuda made. `npm install DIR`, `npm pack DIR` and `npm publish DIR` take it from there.
 */
import { copyFileSync, existsSync, mkdirSync, readFileSync, rmSync, statSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { readBinary } from '../test/binary.js'

const NAME = 'rapo-cuda-linux-x64'

const root = fileURLToPath(new URL('..', import.meta.url))
const { values: flags } = parseArgs({
  options: {
    library: { type: 'string', default: join(root, 'build', 'Release', 'librapo_cuda.so') },
    out: { type: 'string', default: join(root, 'build', NAME) },
  },
})

/** What it may need of the machine: glibc 2.28 and a libstdc++ of that age (GCC 8). */
const allowed = {
  library: /^(lib(c|m|dl|rt|pthread)\.so\.\d|libstdc\+\+\.so\.6|libgcc_s\.so\.1|ld-linux-x86-64\.so\.2)$/,
  GLIBC: [2, 28],
  GLIBCXX: [3, 4, 25],
  CXXABI: [1, 3, 11],
} as const

const problem = problemOf(flags.library)
if (problem) {
  console.error(`pack:cuda: ${flags.library} ${problem}`)
  process.exit(1)
}
rmSync(flags.out, { recursive: true, force: true })
mkdirSync(flags.out, { recursive: true })
copyFileSync(flags.library, join(flags.out, 'librapo_cuda.so'))
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
console.log(
  `${flags.out}: ${NAME} ${rapo.version}, ${(statSync(flags.library).size / 2 ** 20).toFixed(2)} MiB`,
)

function problemOf(file: string): string | undefined {
  if (!existsSync(file)) return 'is not there: npm run build:cuda makes it'
  const binary = readBinary(readFileSync(file))
  if (binary.format !== 'elf' || binary.arch !== 'x64') return `is for ${binary.format} ${binary.arch}`
  if (!binary.exported.includes('rapo_cuda_functions')) return 'does not export rapo_cuda_functions'
  const foreign = binary.libraries.filter(library => !allowed.library.test(library))
  if (foreign.length) return `needs ${foreign.join(', ')}`
  const late = binary.versions.filter(isLate)
  return late.length ? `needs ${late.join(', ')}, later than glibc 2.28 and GCC 8` : undefined
}

/** GLIBC_2.34 is later than GLIBC_2.28. */
function isLate(version: string): boolean {
  const [name, numbers = ''] = version.split('_')
  const most = name === 'GLIBC' || name === 'GLIBCXX' || name === 'CXXABI' ? allowed[name] : undefined
  if (!most) return name !== 'GCC'
  const parts = numbers.split('.').map(Number)
  const at = parts.findIndex((part, i) => part !== (most[i] ?? 0))
  return at >= 0 && parts[at]! > (most[at] ?? 0)
}
