/** The Python environment of the peers, in the user's cache. */
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { cacheDir } from '../../lib/setup/cache.js'
import { makeVenv } from '../../lib/setup/venv.js'

const here = fileURLToPath(new URL('.', import.meta.url))

/** Its python, with what the requirements here name, and the log of its installation. Made on the first call. */
export async function peersPython(): Promise<{ python: string; log: string }> {
  const files = ['requirements.txt', 'requirements-no-deps.txt'].map(name => join(here, name))
  const wanted = files.map(file => readFileSync(file, 'utf8')).join('')
  const dir = join(cacheDir(), 'peers')
  const done = join(dir, 'rapo-done')
  const log = `${dir}.log`
  const python = join(dir, 'bin', 'python')
  if (existsSync(done) && readFileSync(done, 'utf8') === wanted) return { python, log }
  console.log(`installing TRL, liger-kernel and torch into ${dir}, some minutes and 1.5 GB`)
  rmSync(dir, { recursive: true, force: true })
  mkdirSync(cacheDir(), { recursive: true })
  writeFileSync(log, '')
  const install = await makeVenv(dir, { env: process.env, log })
  await install('the peers', ['-r', files[0]!])
  await install('liger-kernel', ['--no-deps', '-r', files[1]!])
  writeFileSync(done, wanted)
  return { python, log }
}
