/**
 * `npm run fuzz -- [TARGET …] [--seconds N]`: runs the engine's file readers under libFuzzer, AddressSanitizer and
 * UndefinedBehaviorSanitizer. Needs clang with its sanitizer runtimes; RAPO_CLANG names another clang. Findings and the grown
 * corpus are written to build/fuzz/. --merge rewrites test/fuzz/corpus/ with few inputs that together reach everything that any
 * input reached. A corpus is one file per target with one base64 input per line.
 */
import { execFileSync, spawn, spawnSync } from 'node:child_process'
import { mkdirSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'

const root = fileURLToPath(new URL('..', import.meta.url))
export const targets = ['json', 'safetensors', 'checkpoint']
/** What every target is compiled from: the readers, which need no libtorch. */
export const readers = ['json', 'safetensors', 'write'].map(name => `native/engine/files/${name}.cpp`)
export const includes = ['native', 'native/engine'].map(dir => `-I${dir}`)

if (process.argv[1] === fileURLToPath(import.meta.url)) process.exitCode = await main()

async function main(): Promise<number> {
  const { values, positionals } = parseArgs({
    allowPositionals: true,
    options: { seconds: { type: 'string', default: '150' }, merge: { type: 'boolean', default: false } },
  })
  const chosen = positionals.length ? positionals : targets
  const unknown = chosen.find(name => !targets.includes(name))
  if (unknown) throw new Error(`there is no target ${unknown}: ${targets.join(', ')}`)
  let failed = 0
  for (const target of chosen) {
    const binary = compile(target)
    const own = join('build', 'fuzz', 'corpus', target)
    const committed = join('build', 'fuzz', 'committed', target)
    mkdirSync(join(root, own), { recursive: true })
    unpackCorpus(target, join(root, committed))
    const limits = ['-max_len=2048', '-timeout=10', '-rss_limit_mb=2048']
    if (values.merge) {
      const chosen = join('build', 'fuzz', 'chosen')
      rmSync(join(root, chosen), { recursive: true, force: true })
      mkdirSync(join(root, chosen))
      failed += await fuzz(binary, [
        '-set_cover_merge=1',
        '-max_len=700',
        '-timeout=10',
        chosen,
        own,
        committed,
      ])
      packCorpus(target, join(root, chosen))
    } else {
      const dictionary = '-dict=test/fuzz/dictionary.txt'
      const finds = `-artifact_prefix=build/fuzz/${target}-`
      const time = [`-max_total_time=${values.seconds}`, '-print_final_stats=1']
      failed += await fuzz(binary, [dictionary, finds, ...limits, ...time, own, committed])
    }
    console.log(`${target}: ${readCorpus(target).length} inputs committed`)
  }
  return failed ? 1 : 0
}

const corpusFile = (target: string) => join(root, 'test', 'fuzz', 'corpus', `${target}.txt`)

/** The committed inputs of a target. */
export function readCorpus(target: string): Buffer[] {
  const lines = readFileSync(corpusFile(target), 'utf8').split('\n').slice(0, -1)
  return lines.map(line => Buffer.from(line, 'base64'))
}

/** Writes a target's committed inputs as one file each, as libFuzzer expects, into a new directory. */
export function unpackCorpus(target: string, dir: string): void {
  rmSync(dir, { recursive: true, force: true })
  mkdirSync(dir, { recursive: true })
  for (const [i, input] of readCorpus(target).entries()) writeFileSync(join(dir, `${i}`), input)
}

function packCorpus(target: string, dir: string): void {
  const inputs = readdirSync(dir).map(name => readFileSync(join(dir, name)).toString('base64'))
  writeFileSync(
    corpusFile(target),
    inputs
      .map(input => `${input}\n`)
      .sort()
      .join(''),
  )
}

function compile(target: string): string {
  const clang = process.env.RAPO_CLANG || ['clang++', 'clang++-14'].find(isThere)
  if (!clang) throw new Error('no clang++ found: install clang and its sanitizer runtimes, or set RAPO_CLANG')
  mkdirSync(join(root, 'build', 'fuzz'), { recursive: true })
  const binary = join('build', 'fuzz', target)
  const sanitizers = ['-fsanitize=fuzzer,address,undefined', '-fno-sanitize-recover=all']
  const flags = ['-std=c++17', '-O1', '-g', '-D_GLIBCXX_ASSERTIONS', ...sanitizers, ...includes]
  execFileSync(clang, [...flags, `test/fuzz/${target}.cpp`, ...readers, '-o', binary], {
    cwd: root,
    stdio: 'inherit',
  })
  return binary
}

function isThere(command: string): boolean {
  return spawnSync(command, ['--version'], { stdio: 'ignore' }).status === 0
}

/** Returns 0, or 1 if an input was found that makes the target fail. */
function fuzz(binary: string, args: readonly string[]): Promise<number> {
  return new Promise((resolve, reject) => {
    const child = spawn(join(root, binary), args, { cwd: root, stdio: 'inherit' })
    child.on('error', reject).on('close', code => resolve(code === 0 ? 0 : 1))
  })
}
