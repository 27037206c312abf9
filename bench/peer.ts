/** Finds the Python whose torch is compared with rapo. */
import { existsSync, readdirSync, rmSync, writeFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { benchPython, findPython } from '../lib/bench/peer.js'
import { cacheDir } from '../lib/setup/cache.js'
import { TORCH_VERSION } from '../lib/setup/libtorch.js'
import { makeVenv } from '../lib/setup/venv.js'

/** Python packages that torch needs. `rapo setup` does not install them, since libtorch alone does not need them. */
const needs = ['typing_extensions', 'sympy', 'networkx', 'jinja2', 'fsspec', 'filelock', 'setuptools']

/**
 * findPython(), or a Python with the torch of `rapo setup`, whose further packages are fetched once. If there is none, prints
 * the reason and returns undefined.
 */
export async function preparePython(): Promise<string | undefined> {
  const found = await findPython()
  if ('python' in found) return found.python
  try {
    if (process.env.RAPO_PYTHON) throw new Error(found.reasons.join('; '))
    const site = sitePackages(join(cacheDir(), `torch-${TORCH_VERSION}`))
    if (!site) throw new Error('python3 has no torch, and `rapo setup` has installed none')
    const dir = dirname(dirname(benchPython()))
    rmSync(dir, { recursive: true, force: true })
    const install = await makeVenv(dir, { env: process.env, log: `${dir}.log` })
    await install('what torch needs', needs)
    writeFileSync(join(sitePackages(dir)!, 'torch.pth'), `${site}\n`)
    const made = await findPython()
    if ('reasons' in made) throw new Error(made.reasons.join('; '))
    return made.python
  } catch (error) {
    console.log(`no peers: ${error instanceof Error ? error.message : error}`)
    return undefined
  }
}

function sitePackages(venv: string): string | undefined {
  const lib = join(venv, 'lib')
  const name = existsSync(lib) ? readdirSync(lib).find(name => name.startsWith('python')) : undefined
  return name && join(lib, name, 'site-packages')
}
