/** The oracle, in double precision, on the inputs that scripts/peers/run_peers.py gave to the peers. */
import { readFileSync } from 'node:fs'
import path from 'node:path'
import { type Aggregation, tokenWeights } from '../lib/batch.js'
import { defineObjective, type Objective } from '../lib/objective.js'
import { raw } from './kernels-cases.js'

export const peerNames = ['trl', 'liger'] as const

interface PeerInputs {
  name: string
  /** (B × T) */
  mask: number[]
  tokenIds: number[]
  /** (B) */
  advantages: number[]
  logits: string
  refLogits: string
  oldLogprobs: string
}

export interface PeerCase {
  name: string
  objective: Objective
  aggregation: Aggregation
  inputs: string
  /** The peer's own names for it. */
  options: Record<string, string | boolean>
  /** Why the peer computes another number. */
  differs?: string
  policyWeights?: string
  loss: number
  gradLogits: string
}

export interface Comparison extends PeerCase {
  peer: string
  version: string
  /** |difference| of the losses, and the largest one of the gradients, as parts of the peer's largest gradient. */
  lossOff: number
  gradOff: number
}

export function readJson<T>(directory: string, name: string): T {
  const text = readFileSync(path.join(directory, `${name}.json`), 'utf8')
  return JSON.parse(text, (_, value) => (value === 'Infinity' ? Infinity : value))
}

const bytes = (base64: string) => new Uint8Array(Buffer.from(base64, 'base64')).buffer
export const floats = (base64: string) => new Float32Array(bytes(base64))
export const doubles = (base64: string) => new Float64Array(bytes(base64))

/** Every case of every peer, as written to `directory`. */
export function comparePeers(directory: string): Comparison[] {
  const shape = readJson<{ vocabSize: number; width: number; maxLength: number; entries: PeerInputs[] }>(
    directory,
    'inputs',
  )
  return peerNames.flatMap(peer => {
    const { version, entries } = readJson<{ version: string; entries: PeerCase[] }>(directory, peer)
    return entries.map(entry => {
      const inputs = shape.entries.find(({ name }) => name === entry.inputs)!
      const { loss, gradLogits } = oracle(shape, inputs, entry)
      const theirs = doubles(entry.gradLogits)
      const scale = theirs.reduce((most, x) => Math.max(most, Math.abs(x)), 0)
      const gradOff = theirs.reduce((most, x, i) => Math.max(most, Math.abs(x - gradLogits[i]!)), 0)
      const lossOff = Math.abs(loss - entry.loss)
      return { ...entry, peer, version, lossOff: lossOff / scale, gradOff: gradOff / scale }
    })
  })
}

function oracle(
  { vocabSize, width, maxLength }: { vocabSize: number; width: number; maxLength: number },
  inputs: PeerInputs,
  { objective, aggregation, policyWeights }: PeerCase,
) {
  const sequences = inputs.advantages.map((_, b) => ({
    completionMask: inputs.mask.slice(b * width, (b + 1) * width),
  }))
  const weights = tokenWeights(sequences, aggregation, maxLength)
  const sequenceOf = (row: number) => Math.floor(row / width)
  const wide = (base64: string) => Float64Array.from(floats(base64))
  const logits = wide(inputs.logits)
  const gradLogits = new Float64Array(logits.length)
  const { loss } = raw.policyLossReference(
    {
      rows: inputs.mask.length,
      vocabSize,
      dtype: 'float64',
      logits,
      ...(objective.penalty !== 'none' && { refLogits: wide(inputs.refLogits) }),
      tokenIds: Int32Array.from(inputs.tokenIds),
      tokenWeights: Float32Array.from(inputs.mask, (mask, row) => mask * weights[sequenceOf(row)]!),
      advantages: Float32Array.from(inputs.mask, (_, row) => inputs.advantages[sequenceOf(row)]!),
      oldLogprobs: floats(inputs.oldLogprobs),
      ...(policyWeights !== undefined && { policyWeights: floats(policyWeights) }),
      ...(objective.surrogate === 'gspo' && {
        sequenceOffsets: Int32Array.from({ length: sequences.length + 1 }, (_, b) => b * width),
      }),
    },
    defineObjective(objective),
    { gradLogits, gradDtype: 'float64' },
  )
  return { loss, gradLogits }
}

/** The comparison as a table in Markdown. */
export function tableOf(comparisons: readonly Comparison[]): string {
  const number = (x: number) => (x === 0 ? '0' : x.toExponential(1))
  const lines = comparisons.map(({ peer, version, name, aggregation, lossOff, gradOff, differs }) =>
    [`${peer} ${version}`, name, aggregation, number(lossOff), number(gradOff), differs ?? 'same'].join(' | '),
  )
  return [
    '| peer | objective | aggregation | loss | gradient | |',
    '|---|---|---|---|---|---|',
    ...lines.map(line => `| ${line} |`),
  ].join('\n')
}
