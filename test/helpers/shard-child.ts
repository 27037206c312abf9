/**
 * What each rank of test/world/shard.test.ts does: shard-child.ts MODEL OUTPUT POISONED, of which the last has weights
 * that are no numbers. Trains with every way of sharing out, writes weights and states into OUTPUT, and prints what it saw as
 * JSON.
 */
import { mkdirSync } from 'node:fs'
import path from 'node:path'
import { rapo } from '../../lib/loss/objective.js'
import { packBatch } from '../../lib/model/batch.js'
import { loadPolicy } from '../../lib/model/engine.js'
import { type Device, type ModelDType, type Policy, shards } from '../../lib/model/policy.js'
import { placeFromEnv } from '../../lib/world/place.js'
import { openWorld } from '../../lib/world/world.js'
import { testDevice } from './engine-util.js'

export const objective = rapo({ klCoef: 0.1, entropyCoef: 0.01 })
/** Six sequences, of which three ranks get two each and two ranks three. */
const sequences = [
  [1, 2, 3, 4],
  [5, 6, 7],
  [8, 9, 10, 11, 12],
  [13, 14],
  [15, 16, 17, 18, 19, 20],
  [21, 22, 23],
].map((tokenIds, i) => ({
  tokenIds,
  completionMask: tokenIds.map((_, t) => (t === 0 ? 0 : 1)),
  advantage: i % 2 === 0 ? 1 : -0.5,
}))

const weightsOf = (of: readonly unknown[]) => of.map(() => 1 / 20)

/** Gradients of a rank's part of the six sequences, in several calls where `calls` says so. */
export async function accumulate(policy: Policy, rank: number, size: number, calls = 1): Promise<void> {
  const own = sequences.filter((_, i) => i % size === rank)
  for (let call = 0; call < calls; call++) {
    const part = own.filter((_, i) => i % calls === call)
    await policy.accumulate(packBatch(part, weightsOf(part)), objective)
  }
}

/** The norm is not clipped, so that its rounding has no part in the weights. */
export const optionsOf = (model: string, dtype: ModelDType) => ({
  ...{ dtype, referenceDir: model, maxGradNorm: 1e9 },
  adamw: { weightDecay: 0.1 },
})

const messageOf = (call: Promise<unknown>) =>
  call.then(
    () => '',
    error => error.message as string,
  )

/** The place of a process that runs alone, but in a world: one GPU has one rank. */
const alone = () => ({
  ...{ rank: 0, size: 1, localRank: 0, localSize: 1, isStoreOurs: false, attempt: 'run/0', restarts: 0 },
  ...{ host: process.env.MASTER_ADDR!, port: Number(process.env.MASTER_PORT) },
})

const [model, output, poisoned] = process.argv.slice(2) as [string, string, string]
if (/shard-child\.m?[jt]s$/.test(process.argv[1] ?? '')) {
  const place = placeFromEnv() ?? alone()
  const device: Device = testDevice === 'cuda' ? `cuda:${place.localRank}` : testDevice
  const world = await openWorld({ device, timeoutSeconds: 60, place })
  const { rank, size } = world
  const seen: Record<string, unknown> = {}
  for (const dtype of ['float32', 'bfloat16'] as const) {
    for (const shard of shards) {
      const name = `${dtype}-${shard}`
      const policy = await loadPolicy(model, {
        ...optionsOf(model, dtype),
        ...{ device, world: world.handle, shard },
      })
      const norms: number[] = []
      for (let step = 0; step < 3; step++) {
        await accumulate(policy, rank, size)
        norms.push((await policy.step(0.01)).gradNorm)
      }
      await policy.syncReference!(0.5)
      const dir = path.join(output, name)
      if (rank === 0) {
        for (const part of ['reference', 'loaded']) mkdirSync(path.join(dir, part), { recursive: true })
        await policy.save(dir)
        await policy.saveReference!(path.join(dir, 'reference'))
      }
      await world.together('the directory', () => {})
      const state = path.join(dir, 'state.safetensors')
      if (rank === 0 || shard !== 'none') await policy.saveState(state)
      await world.together('the state', () => {})
      // Every way reads what every way wrote.
      const other = shards[(shards.indexOf(shard) + 1) % shards.length]!
      const next = await loadPolicy(model, {
        ...optionsOf(model, dtype),
        ...{ device, world: world.handle, shard: other },
      })
      await next.loadState(state)
      const again = path.join(dir, 'again.safetensors')
      if (rank === 0) await next.save(path.join(dir, 'loaded'))
      if (rank === 0 || other !== 'none') await next.saveState(again)
      await next.dispose()
      seen[name] = norms
      if (shard === 'gradients') {
        seen.float32Files = await messageOf(policy.save(dir, { dtype: 'float32' }))
        // One rank fails, another has nothing to do, and all go on.
        const broken = packBatch([{ ...sequences[0]!, tokenIds: [1, 2, 3, 99_999] }], [1])
        const batch = rank === 0 ? packBatch(sequences, weightsOf(sequences)) : packBatch([], [])
        seen.failed = await messageOf(policy.accumulate(rank === 1 ? broken : batch, objective))
        seen.refused = await messageOf(policy.step(0.01))
        await policy.zeroGrad()
        await policy.accumulate(batch, objective)
        seen[`${name} again`] = (await policy.step(0)).gradNorm
      }
      await policy.dispose()
    }
  }
  // Rank 1 fails in the middle of a pass: it finishes the exchanges, so that the ranks stay together.
  const ill = await loadPolicy(rank === 1 ? poisoned : model, {
    ...optionsOf(model, 'float32'),
    ...{ device, world: world.handle, shard: 'gradients' },
  })
  seen.ill = await messageOf(accumulate(ill, rank, size))
  await world.together('after the failure', () => ill.zeroGrad())
  await ill.dispose()
  console.log(JSON.stringify(seen))
  await world.close()
}
