/** The package as a user gets it: built, packed, and installed from npm's own cache into an empty directory. */
import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { copyFileSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { locateKernels } from '../../lib/setup/addons.js'

const root = fileURLToPath(new URL('../..', import.meta.url))
const npm = process.platform === 'win32' ? 'npm.cmd' : 'npm'

/**
 * Installs the package with exactly the versions of package-lock.json. They are in npm's cache since `npm ci`, so that the
 * registry is asked only if the cache was lost. Returns the environment for the package's programs.
 */
export function installPacked(dir: string): NodeJS.ProcessEnv {
  const run = (cwd: string, ...args: string[]) =>
    execFileSync(npm, args, { cwd, encoding: 'utf8', stdio: ['ignore', 'pipe', 'pipe'] })
  run(root, 'run', 'build')
  const tarball = run(root, 'pack', '--silent', '--pack-destination', dir).trim().split('\n').at(-1)!
  copyFileSync(path.join(dir, tarball), path.join(dir, 'rapo.tgz'))
  const file = 'file:rapo.tgz'
  const lock = JSON.parse(readFileSync(path.join(root, 'package-lock.json'), 'utf8'))
  const { version, dependencies, bin } = lock.packages['']
  const integrity = `sha512-${createHash('sha512')
    .update(readFileSync(path.join(dir, tarball)))
    .digest('base64')}`
  const packages = {
    '': { dependencies: { rapo: file } },
    'node_modules/rapo': { version, resolved: file, integrity, dependencies, bin },
    ...Object.fromEntries(
      Object.entries<{ dev?: boolean }>(lock.packages).filter(([place, { dev }]) => place !== '' && !dev),
    ),
  }
  const write = (name: string, value: object) => writeFileSync(path.join(dir, name), JSON.stringify(value))
  write('package.json', { private: true, dependencies: { rapo: file } })
  write('package-lock.json', { lockfileVersion: 3, requires: true, packages })
  run(dir, 'ci', '--prefer-offline', '--ignore-scripts', '--no-audit', '--no-fund')
  return {
    ...process.env,
    // tsx and tsc, which an example's own `npm install` would install.
    PATH: [path.join(root, 'node_modules', '.bin'), process.env.PATH].join(path.delimiter),
    // The addon built from these sources: the packed prebuilds may be older or missing.
    RAPO_KERNELS_ADDON: locateKernels(),
  }
}
