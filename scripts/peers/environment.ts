/** The Python environment of the peers: TRL, PEFT and liger-kernel, as the requirements here name them. */
import { readFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { type PythonEnv, pythonEnv } from '../python-env.js'

const here = fileURLToPath(new URL('.', import.meta.url))

/** Made in the user's cache on the first call. */
export async function peersPython(): Promise<PythonEnv> {
  const files = ['requirements.txt', 'requirements-no-deps.txt'].map(name => join(here, name))
  const wanted = files.map(file => readFileSync(file, 'utf8')).join('')
  return pythonEnv('peers', wanted, async (install, { dir }) => {
    console.log(`installing TRL, liger-kernel and torch into ${dir}, some minutes and 1.5 GB`)
    await install('the peers', ['-r', files[0]!])
    await install('liger-kernel', ['--no-deps', '-r', files[1]!])
  })
}
