/** How a batch is shared out to the ranks of a run. Every rank computes the same shares, without a word to the others. */
import { splitEvenly, type TrainSequence } from '../model/batch.js'
import type { ModelInfo } from '../model/policy.js'
import type { World } from '../world/world.js'

type Seat = Pick<World, 'rank' | 'size'>

/** A rank's part of items that follow each other, and how many come before the part. Sizes differ by one at most. */
export function ownPart<T>(
  items: readonly T[],
  { rank, size }: Seat,
): { part: readonly T[]; before: number } {
  const parts = splitEvenly(items, size)
  return { part: parts[rank]!, before: parts.slice(0, rank).reduce((sum, { length }) => sum + length, 0) }
}

/**
 * A rank's groups, in their order. The most costly group goes first, each to the rank with the least so far, so that no rank
 * waits long for another. Groups stay whole, since a prompt that neighbours share is computed once.
 */
export function dealGroups(
  groups: readonly (readonly TrainSequence[])[],
  info: Pick<ModelInfo, 'parameters' | 'layers' | 'hiddenSize'>,
  { rank, size }: Seat,
): number[] {
  const costs = groups.map(group => group.reduce((sum, sequence) => sum + costOf(sequence, info), 0))
  const byCost = costs.map((_, g) => g).sort((a, b) => costs[b]! - costs[a]! || a - b)
  const loads = Array.from({ length: size }, () => 0)
  const own: number[] = []
  for (const g of byCost) {
    const least = loads.indexOf(Math.min(...loads))
    loads[least]! += costs[g]!
    if (least === rank) own.push(g)
  }
  return own.sort((a, b) => a - b)
}

/** Multiplications, but for a factor: every token meets every parameter, and in attention half of the other tokens. */
function costOf(
  { tokenIds }: Pick<TrainSequence, 'tokenIds'>,
  { parameters, layers, hiddenSize }: Pick<ModelInfo, 'parameters' | 'layers' | 'hiddenSize'>,
): number {
  return tokenIds.length * (parameters + layers * hiddenSize * tokenIds.length)
}
