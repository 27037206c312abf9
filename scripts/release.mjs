// npm run release -- --dry-run: everything that a release takes, except publishing. It builds the kernels addon for every
// platform, runs the addons that this machine can run, packs the tarball, uses the tarball in an empty project, and writes
// build/release/SHA256SUMS. Without --dry-run the tarball is then published.
import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join, relative } from 'node:path'
import { parseArgs } from 'node:util'
import { root } from './bootstrap.mjs'

const { values: flags } = parseArgs({ options: { 'dry-run': { type: 'boolean', default: false } } })
const isDry = flags['dry-run']
const out = join(root, 'build', 'release')
const run = (command, ...args) => execFileSync(command, args, { cwd: root, stdio: 'inherit' })
const ask = (command, ...args) => execFileSync(command, args, { cwd: root, encoding: 'utf8' }).trim()

const { name, version, repository } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'))
const lacking = [
  ask('git', 'status', '--porcelain') !== '' && 'the working tree has changes that are not committed',
  !readFileSync(join(root, 'CHANGELOG.md'), 'utf8').includes(`## ${version}`) &&
    `CHANGELOG.md has no section "## ${version}"`,
].filter(Boolean)
if (lacking.length > 0) {
  console.error(lacking.map(what => `release: ${what}`).join('\n'))
  if (!isDry) process.exit(1)
}

rmSync(out, { recursive: true, force: true })
mkdirSync(out, { recursive: true })
run('npm', 'run', 'test:prebuilds')
run('npm', 'run', 'test:package')
run('npm', 'pack', '--pack-destination', out)
const tarball = readdirSync(out).find(file => file.endsWith('.tgz'))

const prebuilds = readdirSync(join(root, 'prebuilds'), { recursive: true })
  .filter(file => file.endsWith('.node'))
  .sort()
  .map(file => join(root, 'prebuilds', file))
const sums = [join(out, tarball), ...prebuilds].map(file => {
  const hash = createHash('sha256').update(readFileSync(file)).digest('hex')
  return `${hash}  ${relative(file.startsWith(out) ? out : root, file)}\n`
})
writeFileSync(join(out, 'SHA256SUMS'), sums.join(''))
console.log(`\n${name} ${version}, in ${relative(root, out)}:\n${sums.join('')}`)

if (!repository) {
  console.log(
    'Publishing with provenance needs: the field repository in package.json with the address of the public repository; a ' +
      'workflow of that repository which has the right to ask for an OIDC token (id-token: write); the package set up at the ' +
      'registry for that workflow; and `npm publish --provenance` run there on this tarball.',
  )
}
if (isDry) console.log('Nothing was published: --dry-run.')
else run('npm', 'publish', join(out, tarball), ...(repository ? ['--provenance'] : []))
