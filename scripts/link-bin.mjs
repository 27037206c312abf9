// Makes `npx rapo` work in a clone: npm links the commands of dependencies, but not those of the package itself. npm runs it as
// the script `dependencies`, whenever it has changed node_modules; for `prepare`, whoever installs the tarball gets a warning.
import { existsSync, mkdirSync, rmSync, symlinkSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { root } from './bootstrap.mjs'

const bin = join(root, 'node_modules', '.bin')
if (existsSync(join(root, 'node_modules'))) {
  mkdirSync(bin, { recursive: true })
  const link = join(bin, process.platform === 'win32' ? 'rapo.cmd' : 'rapo')
  rmSync(link, { force: true })
  if (process.platform === 'win32') writeFileSync(link, '@node "%~dp0\\..\\..\\bin\\rapo.mjs" %*\r\n')
  else symlinkSync('../../bin/rapo.mjs', link)
}
