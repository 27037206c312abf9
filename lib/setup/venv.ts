/** Private Python environments in the cache. */
import { join } from 'node:path'
import { ask, type WorkOptions, work } from './process.js'

/** Makes a virtual environment in dir. Returns its `pip install`, which takes pip's further arguments. */
export async function makeVenv(
  dir: string,
  options: WorkOptions,
): Promise<(what: string, args: readonly string[]) => Promise<void>> {
  // An environment without pip is made quickly. The pip outside can install into it from version 22.3 on.
  await work('python3 -m venv', 'python3', ['-m', 'venv', '--without-pip', dir], options)
  const python = join(dir, 'bin', 'python')
  let pip = ['python3', '-m', 'pip', '--python', python]
  if (!(await ask(pip[0]!, [...pip.slice(1), '--version'], { env: options.env })).ok) {
    await work('python -m ensurepip', python, ['-m', 'ensurepip'], options)
    pip = [python, '-m', 'pip']
  }
  const flags = ['--no-compile', '--no-input', '--disable-pip-version-check', '--progress-bar=off']
  return (what, args) =>
    work(`pip install ${what}`, pip[0]!, [...pip.slice(1), 'install', ...flags, ...args], options)
}
