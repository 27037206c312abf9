/** Runs the oracle, in double precision, on the inputs that scripts/peers/run_peers.py gave to the peers. */
import { readFileSync } from 'node:fs'
import path from 'node:path'
import type { Objective } from '../../lib/loss/objective.js'
import { type Aggregation, tokenWeights } from '../../lib/model/batch.js'
import { raw } from './kernels-cases.js'

export const peerNames = ['trl', 'liger', 'gspo-token'] as const

export interface PeerInputs {
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

interface Part {
  objective: Objective
  aggregation: Aggregation
  policyWeights?: string
  /** Replaces the mask of the inputs. */
  mask?: number[]
}

export interface PeerCase extends Part {
  name: string
  inputs: string
  /** The peer's own options for this objective. */
  options: Record<string, string | boolean>
  /** Why the peer computes something else. */
  differs?: string
  /** The terms that add up to the peer's result if it differs. */
  parts?: Part[]
  loss: number
  gradLogits: string
}

/** Largest differences from the peer, divided by the peer's largest gradient. */
export interface Distance {
  loss: number
  gradLogits: number
}

/**
 * Both compute in double precision on lengths of 8 and vocabularies of 5. That makes some dozens of roundings of 1e-16, of
 * terms in which ρ reaches 6 and k3's e^d some hundred. Cases listed as different differ by 1e-3 or more.
 */
export function same({ loss, gradLogits }: Distance): boolean {
  return loss <= 1e-12 && gradLogits <= 1e-12
}

export interface Comparison extends PeerCase {
  peer: string
  version: string
  off: Distance
  /** Of the sum of the parts. */
  partsOff?: Distance
}

export function readJson<T>(directory: string, name: string): T {
  const text = readFileSync(path.join(directory, `${name}.json`), 'utf8')
  return JSON.parse(text, (_, value) => (value === 'Infinity' ? Infinity : value))
}

const bytes = (base64: string) => new Uint8Array(Buffer.from(base64, 'base64')).buffer
export const floats = (base64: string) => new Float32Array(bytes(base64))
export const doubles = (base64: string) => new Float64Array(bytes(base64))

export interface Shape {
  vocabSize: number
  /** T */
  width: number
  maxLength: number
}

/** Every case of every peer, from the files in `directory`. */
export function comparePeers(directory: string): Comparison[] {
  const shape = readJson<Shape & { entries: PeerInputs[] }>(directory, 'inputs')
  return peerNames.flatMap(peer => {
    const { version, entries } = readJson<{ version: string; entries: PeerCase[] }>(directory, peer)
    return entries.map(entry => {
      const inputs = shape.entries.find(({ name }) => name === entry.inputs)!
      const off = distance([oracle(shape, inputs, entry)], entry)
      const parts = entry.parts?.map(part => oracle(shape, inputs, part))
      return { ...entry, peer, version, off, ...(parts && { partsOff: distance(parts, entry) }) }
    })
  })
}

interface LossAndGradient {
  loss: number
  gradLogits: Float64Array
}

function distance(parts: readonly LossAndGradient[], peer: PeerCase): Distance {
  const theirs = doubles(peer.gradLogits)
  const scale = theirs.reduce((most, x) => Math.max(most, Math.abs(x)), 0)
  const sum = (of: (part: LossAndGradient) => number) => parts.reduce((total, part) => total + of(part), 0)
  const gradLogits = theirs.reduce(
    (most, x, i) => Math.max(most, Math.abs(x - sum(part => part.gradLogits[i]!))),
    0,
  )
  return { loss: Math.abs(peer.loss - sum(part => part.loss)) / scale, gradLogits: gradLogits / scale }
}

/** The rows of a batch, padding included; padding has weight 0. */
export function batchOf(shape: Shape, inputs: PeerInputs, part: Part) {
  const { mask = inputs.mask, objective, policyWeights } = part
  const { width } = shape
  const sequences = inputs.advantages.map((_, b) => ({
    completionMask: mask.slice(b * width, (b + 1) * width),
  }))
  const weights = tokenWeights(sequences, part.aggregation, shape.maxLength)
  const sequenceOf = (row: number) => Math.floor(row / width)
  const wide = (base64: string) => Float64Array.from(floats(base64))
  return {
    rows: mask.length,
    vocabSize: shape.vocabSize,
    dtype: 'float64',
    logits: wide(inputs.logits),
    ...(objective.penalty !== 'none' && { refLogits: wide(inputs.refLogits) }),
    tokenIds: Int32Array.from(inputs.tokenIds),
    tokenWeights: Float32Array.from(mask, (on, row) => on * weights[sequenceOf(row)]!),
    advantages: Float32Array.from(mask, (_, row) => inputs.advantages[sequenceOf(row)]!),
    oldLogprobs: floats(inputs.oldLogprobs),
    ...(policyWeights !== undefined && { policyWeights: floats(policyWeights) }),
    ...(objective.surrogate === 'gspo' && {
      sequenceOffsets: Int32Array.from({ length: sequences.length + 1 }, (_, b) => b * width),
    }),
  }
}

function oracle(shape: Shape, inputs: PeerInputs, part: Part): LossAndGradient {
  const batch = batchOf(shape, inputs, part)
  const gradLogits = new Float64Array(batch.logits.length)
  const outputs = { gradLogits, gradDtype: 'float64' }
  const { loss } = raw.policyLossReference({ ...batch, ...outputs, objective: part.objective })
  return { loss, gradLogits }
}

/** The comparison as a Markdown table with one line per case. */
export function tableOf(comparisons: readonly Comparison[]): string {
  const number = (x: number) => (x === 0 ? '0' : x.toExponential(0).replace('e-', 'e−'))
  const names = [...new Set(comparisons.map(({ name }) => name))]
  const versions = new Map(comparisons.map(({ peer, version }) => [peer, version]))
  const lines = names.map(name => {
    const cells = [...versions.keys()].map(peer => {
      const found = comparisons.find(entry => entry.name === name && entry.peer === peer)
      return found ? `${number(found.off.loss)}, ${number(found.off.gradLogits)}` : ''
    })
    const { aggregation, differs } = comparisons.find(entry => entry.name === name)!
    return [name, aggregation, ...cells, differs ?? ''].join(' | ').replaceAll('  ', ' ')
  })
  const peers = [...versions].map(([peer, version]) => `${peer} ${version}`)
  return [
    `| objective | averaged with | ${peers.join(' | ')} | the peer |`,
    `|---|---|${peers.map(() => '---|').join('')}---|`,
    ...lines.map(line => `| ${line} |`),
  ].join('\n')
}
