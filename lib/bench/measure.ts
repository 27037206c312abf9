/** Value and gradient of the rapo preset: rapo against torch where it is there, same batch, same threads, in turns. */
import { cpus } from 'node:os'
import { RapoError } from '../base/errors.js'
import { packageVersion } from '../base/package.js'
import { type GradMode, kernelsInfo, policyLoss, setKernelThreads } from '../loss/kernels.js'
import { rapo } from '../loss/objective.js'
import { type Batch, type BenchDType, makeBatch, oracle, spread, timed, validate } from './batch.js'
import { findPython, type Peer, startPeer } from './peer.js'
import type { BenchReport, BenchResult, Machine } from './results.js'

export interface BenchOptions {
  readonly dtypes: readonly BenchDType[]
  readonly rows: readonly number[]
  readonly vocabSize: number
  readonly rounds: number
  /** 0: one a core. */
  readonly threads: number
  /** What is going on, or was left out and why: a line each. */
  readonly onLine?: (line: string) => void
}

/** Nothing is timed that the oracle has not confirmed; throws ERR_RAPO_INTERNAL where it does not. */
export async function measureBench(options: BenchOptions): Promise<BenchReport> {
  const { onLine = () => {}, rounds, threads } = options
  setKernelThreads(threads)
  const info = kernelsInfo()
  const found = await findPython()
  if ('reasons' in found) {
    onLine('torch: skipped, no Python has it (RAPO_PYTHON may name one that does)')
    for (const reason of found.reasons) onLine(`  ${reason}`)
  }
  const machine: Machine = {
    cpu: cpus()[0]?.model ?? 'unknown',
    cores: cpus().length,
    platform: `${process.platform}-${process.arch}`,
    node: process.version,
    isa: info.isa,
    threads: info.threads,
  }
  const results: BenchResult[] = []
  for (const dtype of options.dtypes) {
    for (const rows of options.rows) {
      onLine(`${dtype}, ${rows} × ${options.vocabSize} …`)
      const batch = makeBatch(dtype, rows, options.vocabSize)
      const peer = 'python' in found ? startPeer(found.python, batch, objective, info.threads) : undefined
      try {
        const theirs = await peers(peer, batch, machine, onLine)
        results.push(...(await measure(batch, theirs, rounds)))
      } finally {
        await peer?.close()
      }
    }
  }
  return { machine, rapo: packageVersion, rounds, results }
}

const objective = rapo()

/** Takes one measurement, in milliseconds. */
interface Contender {
  readonly name: string
  run(): number | Promise<number>
}

/** Those that work; sets machine.torch. */
async function peers(
  peer: Peer | undefined,
  batch: Batch,
  machine: Machine,
  onLine: (line: string) => void,
): Promise<Contender[]> {
  const usable: Contender[] = []
  const want = peer && oracle(batch, objective)
  for (const name of peer ? ['eager', 'compile'] : []) {
    const answer = await peer!.prepare(name)
    if ('error' in answer) {
      onLine(`torch ${name}: skipped (${answer.error})`)
      continue
    }
    machine.torch = answer.torch
    confirm(() => validate(`torch ${name}`, answer, want!, objective, 1024, batch.vocabSize))
    usable.push({ name: `torch ${name}`, run: () => peer!.time(name) })
  }
  return usable
}

async function measure(batch: Batch, theirs: readonly Contender[], rounds: number): Promise<BenchResult[]> {
  const grad = batch.logits.slice()
  const { loss } = policyLoss(batch, objective, { grad })
  const want = oracle(batch, objective)
  confirm(() => validate('rapo', { loss, grad }, want, objective, 64, batch.vocabSize))
  const own = (name: string, mode: GradMode): Contender => ({
    name,
    run: () => timed(() => policyLoss(batch, objective, { grad: mode })),
  })
  const contenders = [
    own('rapo', grad),
    own('rapo, into a new array', 'new'),
    own('rapo, value alone', 'none'),
    ...theirs,
  ]
  const times = contenders.map((): number[] => [])
  // In turns, so that a change in the machine's load hits all of them.
  for (let round = 0; round < rounds; round++) {
    for (const [i, contender] of contenders.entries()) times[i]!.push(await contender.run())
  }
  const { dtype, vocabSize } = batch
  return contenders.map(({ name }, i) => {
    const others = i === 0 ? theirs : []
    const ratios = others.map(other => {
      const own = times[0]!
      const ratio = times[contenders.indexOf(other)]!.map((ms, round) => ms / own[round]!)
      return [other.name, spread(ratio)] as const
    })
    const rest = { ms: spread(times[i]!), ratios: Object.fromEntries(ratios) }
    return { name, dtype, rows: batch.tokenIds.length, vocabSize, ...rest }
  })
}

function confirm(check: () => void): void {
  try {
    check()
  } catch (cause) {
    throw new RapoError('ERR_RAPO_INTERNAL', (cause as Error).message, { cause })
  }
}
