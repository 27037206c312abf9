/**
 * npm run test:peers: runs the losses of TRL and liger-kernel (scripts/peers/) in a Python environment of their own in the
 * user's cache, and compares them with the oracle and with the results in test/golden/peers/. `-- --write` writes
 * test/golden/peers/ instead. Needs the built kernels and access to PyPI.
 */
import { copyFileSync, mkdtempSync, readFileSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { work } from '../lib/setup/process.js'
import {
  type Comparison,
  comparePeers,
  doubles,
  peerNames,
  same,
  tableOf,
} from '../test/helpers/peers-compare.js'
import { type PythonEnv, pythonEnv } from './python-env.js'

const { values } = parseArgs({ options: { write: { type: 'boolean', default: false } } })
const here = fileURLToPath(new URL('peers', import.meta.url))
const golden = fileURLToPath(new URL('../test/golden/peers', import.meta.url))

const output = mkdtempSync(join(tmpdir(), 'rapo-peers-'))
try {
  const { python, log } = await environment()
  await work('run_peers.py', python, [join(here, 'run_peers.py'), output], { env: process.env, log })
  const comparisons = comparePeers(output)
  console.log(tableOf(comparisons))
  const problems = [...comparisons.flatMap(problemOf), ...(values.write ? [] : changes(comparisons))]
  if (values.write) {
    for (const name of ['inputs', ...peerNames])
      copyFileSync(join(output, `${name}.json`), join(golden, `${name}.json`))
  }
  for (const problem of problems) console.log(`FAILED ${problem}`)
  console.log(`${comparisons.length} comparisons, ${problems.length} failed`)
  process.exitCode = problems.length ? 1 : 0
} finally {
  rmSync(output, { recursive: true })
}

function problemOf({ peer, name, off, differs, partsOff }: Comparison): string[] {
  if (same(off) === Boolean(differs)) {
    return [
      `${peer}, ${name}: said to ${differs ? 'differ' : 'be the same'}, loss off by ${off.loss}, gradient ${off.gradLogits}`,
    ]
  }
  if (partsOff && !same(partsOff)) return [`${peer}, ${name}: the parts do not add up`]
  return []
}

/** The differences between a peer's results and the golden files. */
function changes(fresh: readonly Comparison[]): string[] {
  const old = comparePeers(golden)
  const key = ({ peer, name }: Comparison) => `${peer}, ${name}`
  if (fresh.map(key).join('\n') !== old.map(key).join('\n')) return ['test/golden/peers/ has other cases']
  return fresh.flatMap((entry, i) => {
    const [now, then] = [doubles(entry.gradLogits), doubles(old[i]!.gradLogits)]
    const scale = then.reduce((most, x) => Math.max(most, Math.abs(x)), 0)
    const gradLogits = now.reduce((most, x, j) => Math.max(most, Math.abs(x - then[j]!)), 0) / scale
    const unchanged = same({ loss: Math.abs(entry.loss - old[i]!.loss) / scale, gradLogits })
    return unchanged ? [] : [`${key(entry)}: not what test/golden/peers/ has`]
  })
}

async function environment(): Promise<PythonEnv> {
  const files = ['requirements.txt', 'requirements-no-deps.txt'].map(name => join(here, name))
  const wanted = files.map(file => readFileSync(file, 'utf8')).join('')
  return pythonEnv('peers', wanted, async (install, { dir }) => {
    console.log(`installing TRL, liger-kernel and torch into ${dir}, some minutes and 1.5 GB`)
    await install('the peers', ['-r', files[0]!])
    await install('liger-kernel', ['--no-deps', '-r', files[1]!])
  })
}
