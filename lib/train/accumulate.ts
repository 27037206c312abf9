/** The gradients of an optimizer step: each rank accumulates those of its share of the groups. */
import type { Config } from '../config/config.js'
import type { Objective, ObjectiveMetrics } from '../loss/objective.js'
import { packBatch, splitBatch, type TrainSequence } from '../model/batch.js'
import type { CallOptions, Policy } from '../model/policy.js'
import type { World } from '../world/world.js'
import { dealGroups } from './share.js'

/**
 * Adds up the gradients of the groups, and returns the metrics of all ranks' micro-batches.
 *
 * @param weights of each group's sequences: tokenWeights
 * @param signal stops between micro-batches; absent where the step must be finished
 */
export async function accumulateShare(
  { policy, world }: { readonly policy: Policy; readonly world: World },
  groups: readonly (readonly TrainSequence[])[],
  weights: readonly (readonly number[])[],
  objective: Objective,
  { optimizer, distributed }: Config,
  signal: AbortSignal | undefined,
): Promise<ObjectiveMetrics[]> {
  const own = dealGroups(groups, policy.info, world)
  const split = () => {
    const [sequences, ownWeights] = [own.flatMap(g => groups[g]!), own.flatMap(g => weights[g]!)]
    return splitBatch(sequences, ownWeights, optimizer.microBatchTokens)
  }
  const call: CallOptions = signal ? { signal } : {}
  const sums: ObjectiveMetrics[] = []
  if (world.size === 1 || distributed.shard !== 'gradients') {
    const accumulate = async () => {
      for (const microBatch of split()) {
        signal?.throwIfAborted()
        sums.push(await policy.accumulate(microBatch, objective, call))
      }
      return sums
    }
    return (await world.gather('gradients of the batch', accumulate)).flat()
  }
  // Each call exchanges gradients: no rank may leave the others between two of them.
  const microBatches = await world.together('the share of the batch', () => {
    signal?.throwIfAborted()
    return split()
  })
  const counts = await world.gather('micro-batches', () => microBatches.length)
  for (let i = 0; i < Math.max(...counts); i++) {
    await world.together('gradients of a micro-batch', async () => {
      sums.push(await policy.accumulate(microBatches[i] ?? packBatch([], []), objective))
      signal?.throwIfAborted()
    })
  }
  return (await world.gather('metrics of the batch', () => sums)).flat()
}
