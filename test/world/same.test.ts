/** Whether the ranks of a run work on the same. */
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { RapoError } from '../../lib/base/errors.js'
import { parseConfig } from '../../lib/config/load.js'
import { compareRanks, settingsOf } from '../../lib/world/same.js'
import { alone, type World } from '../../lib/world/world.js'

/** The error of a rank in a world whose ranks have these values; undefined where there is none. */
async function compare(...all: Readonly<Record<string, unknown>>[]): Promise<RapoError | undefined> {
  const ranks = await Promise.all(all.map(own => gathered(own)))
  const world = { ...alone, size: all.length, gather: async () => ranks } as unknown as World
  return compareRanks(world, all[0]!).then(
    () => undefined,
    error => error as RapoError,
  )
}

/** What a rank sends. */
async function gathered(own: Readonly<Record<string, unknown>>): Promise<unknown> {
  let sent: unknown
  const gather = async (_: string, work: () => unknown) => {
    sent = await work()
    return [sent]
  }
  await compareRanks({ ...alone, gather } as World, own)
  return sent
}

test('ranks that have the same', async () => {
  assert.is(await compare({ step: 3, files: 'a' }, { step: 3, files: 'a' }), undefined)
  assert.is(await compare({ adapter: undefined }, { adapter: undefined }), undefined)
})

test('the first rank that has another value than rank 0, and the first such value, are named', async () => {
  assert.match(
    (await compare({ step: 3 }, { step: 4 }))!.message,
    /^rank 1 does not have the step of rank 0 \(4, not 3\)/,
  )
  const error = await compare(
    { step: 3, files: 'a' },
    { step: 3, files: 'a' },
    { step: 3, files: 'b' },
    { step: 4, files: 'a' },
  )
  assert.instance(error, RapoError)
  assert.is(error!.code, 'ERR_RAPO_CONFIG')
  assert.match(
    error!.message,
    /^rank 2 does not have the files of rank 0 \(b, not a\): all processes need the same files/,
  )
})

test('paths and devices may differ from host to host; nothing else may', () => {
  const text = (changes: Record<string, object> = {}) => {
    const base = {
      model: { dir: 'm', reference: 'r' },
      data: { train: 't.jsonl' },
      task: { verifier: 'countdown' },
    }
    return JSON.stringify(settingsOf(parseConfig({ ...base, ...changes })))
  }
  const same = [
    { model: { dir: '/mnt/m', reference: '/mnt/r', device: 'cuda' } },
    { data: { train: '/mnt/t.jsonl' } },
    { run: { output: '/mnt/run' } },
  ]
  for (const changes of same) assert.is(text(changes), text(), JSON.stringify(changes))
  const other = [
    { run: { seed: 7 } },
    { model: { dir: 'm', reference: 'r', dtype: 'bfloat16' } },
    { optimizer: { learningRate: 0.5 } },
    { distributed: { shard: 'optimizer' } },
    { lora: { r: 4 } },
  ]
  for (const changes of other) assert.is.not(text(changes), text(), JSON.stringify(changes))
})

test.run()
