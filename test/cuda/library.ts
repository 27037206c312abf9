/**
 * Which CUDA library the tests run through: the one that RAPO_CUDA_LIBRARY names (npm run test:gpu), else the emulator,
 * built when its sources have changed. Import it before anything that loads the addon.
 */
import { execFile } from 'node:child_process'
import { cpSync, existsSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { promisify } from 'node:util'

const here = fileURLToPath(new URL('.', import.meta.url))
const root = join(here, '..', '..')
const suffix = process.platform === 'darwin' ? 'dylib' : 'so'

export const emulated = !process.env.RAPO_CUDA_LIBRARY
if (emulated) process.env.RAPO_CUDA_LIBRARY = await build('cuda-emulator')

/** The emulator around gather.cu in one place of which row.h says `to` instead of `from`. */
export async function buildBroken(name: string, from: string, to: string): Promise<string> {
  const sources = join(root, 'build', `${name}-sources`)
  rmSync(sources, { recursive: true, force: true })
  cpSync(join(root, 'native'), sources, { recursive: true, filter: path => !path.endsWith('engine') })
  const file = join(sources, 'kernels', 'cuda', 'row.h')
  const text = readFileSync(file, 'utf8')
  if (text.split(from).length !== 2) throw new Error(`row.h does not have, once: ${from}`)
  writeFileSync(file, text.replace(from, to))
  return build(name, [`-DRAPO_NATIVE=${sources}`, '-DRAPO_GATHER_ALONE=ON', '-DCMAKE_BUILD_TYPE=Debug'])
}

async function build(name: string, options: string[] = []): Promise<string> {
  const directory = join(root, 'build', name)
  const ninja = existsInPath('ninja') ? ['-G', 'Ninja'] : []
  if (!['build.ninja', 'Makefile'].some(file => existsSync(join(directory, file)))) {
    // A configuration that failed leaves these, with the generator and the compiler of that time.
    for (const left of ['CMakeCache.txt', 'CMakeFiles']) {
      rmSync(join(directory, left), { recursive: true, force: true })
    }
    await run('cmake', [...ninja, '-S', here, '-B', directory, ...options])
  }
  await run('cmake', ['--build', directory, '--parallel'])
  return join(directory, `librapo_cuda_emulator.${suffix}`)
}

/** What a command prints; throws with all of it where it fails. */
export async function run(command: string, args: string[], env = process.env): Promise<string> {
  try {
    return (await promisify(execFile)(command, args, { env, cwd: root, encoding: 'utf8' })).stdout
  } catch (error) {
    const { stdout = '', stderr = '' } = error as { stdout?: string; stderr?: string }
    throw new Error(`${command} ${args.join(' ')} failed:\n${stdout}${stderr}`)
  }
}

function existsInPath(name: string): boolean {
  return (process.env.PATH ?? '').split(':').some(dir => existsSync(join(dir, name)))
}
