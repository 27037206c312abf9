/**
 * Which CUDA library the tests run through: the one that RAPO_CUDA_LIBRARY names (npm run test:gpu), else the emulator,
 * built when its sources have changed. Import it before anything that loads the addon.
 */
import { execFileSync } from 'node:child_process'
import { existsSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'

const here = fileURLToPath(new URL('.', import.meta.url))
const root = join(here, '..', '..')

export const emulated = !process.env.RAPO_CUDA_LIBRARY
if (emulated) process.env.RAPO_CUDA_LIBRARY = buildEmulator('cuda-emulator')

/** sources: a copy of native/kernels/cuda, for tests that break it. */
export function buildEmulator(name: string, sources?: string): string {
  const build = join(root, 'build', name)
  if (!existsSync(join(build, 'CMakeCache.txt')) || sources) {
    const ninja = existsInPath('ninja') ? ['-G', 'Ninja'] : []
    run('cmake', [...ninja, '-S', here, '-B', build, ...(sources ? [`-DRAPO_CUDA_SOURCES=${sources}`] : [])])
  }
  run('cmake', ['--build', build, '--parallel'])
  return join(build, `librapo_cuda_emulator.${process.platform === 'darwin' ? 'dylib' : 'so'}`)
}

function run(command: string, args: string[]): void {
  try {
    execFileSync(command, args, { stdio: 'pipe', encoding: 'utf8' })
  } catch (error) {
    const { stdout = '', stderr = '' } = error as { stdout?: string; stderr?: string }
    throw new Error(`${command} ${args.join(' ')} failed:\n${stdout}${stderr}`)
  }
}

function existsInPath(name: string): boolean {
  return (process.env.PATH ?? '').split(':').some(dir => existsSync(join(dir, name)))
}
