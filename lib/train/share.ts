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

type Shape = Pick<ModelInfo, 'parameters' | 'layers' | 'hiddenSize'>

/** A rank's groups, in their order. Groups stay whole, since a prompt that neighbours share is computed once. */
export function dealGroups(
  groups: readonly (readonly TrainSequence[])[],
  info: Shape,
  { rank, size }: Seat,
): number[] {
  const cost = (group: readonly TrainSequence[]) =>
    group.reduce((sum, { tokenIds }) => sum + costOf(tokenIds.length, info), 0)
  return dealByCost(groups.map(cost), size)[rank]!
}

/**
 * The items of each of `size` ranks, in their order. The most costly item goes first, each to the rank with the least so far,
 * so that no rank waits long for another.
 */
export function dealByCost(costs: readonly number[], size: number): number[][] {
  const byCost = costs.map((_, i) => i).sort((a, b) => costs[b]! - costs[a]! || a - b)
  const loads = Array.from({ length: size }, () => 0)
  const dealt = Array.from({ length: size }, (): number[] => [])
  for (const i of byCost) {
    const least = loads.indexOf(Math.min(...loads))
    loads[least]! += costs[i]!
    dealt[least]!.push(i)
  }
  return dealt.map(own => own.sort((a, b) => a - b))
}

/** Multiplications of a sequence, but for a factor: every token meets every parameter, and in attention half of the other tokens. */
export function costOf(tokens: number, { parameters, layers, hiddenSize }: Shape): number {
  return tokens * (parameters + layers * hiddenSize * tokens)
}
