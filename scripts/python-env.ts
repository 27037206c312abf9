/** Python environments of the scripts that compare rapo with other projects, each in the user's cache. */
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { cacheDir } from '../lib/setup/cache.js'
import { makeVenv } from '../lib/setup/venv.js'

export interface PythonEnv {
  readonly dir: string
  readonly python: string
  /** Where the output of what runs in it may go. */
  readonly log: string
}

/**
 * The environment of this name, made anew where it is not complete or was made for other packages.
 * @param wanted the packages, as a text that changes when they do
 * @param install installs them
 */
export async function pythonEnv(
  name: string,
  wanted: string,
  install: (pip: Awaited<ReturnType<typeof makeVenv>>, env: PythonEnv) => Promise<void>,
): Promise<PythonEnv> {
  const dir = join(cacheDir(), name)
  const done = join(dir, 'rapo-done')
  const env = { dir, python: join(dir, 'bin', 'python'), log: `${dir}.log` }
  if (existsSync(done) && readFileSync(done, 'utf8') === wanted) return env
  rmSync(dir, { recursive: true, force: true })
  mkdirSync(cacheDir(), { recursive: true })
  writeFileSync(env.log, '')
  await install(await makeVenv(dir, { env: process.env, log: env.log }), env)
  writeFileSync(done, wanted)
  return env
}
