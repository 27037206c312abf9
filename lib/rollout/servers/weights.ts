/**
 * The policy's weights, or its adapter, as directories that servers read. A directory is written under a temporary name, synced and
 * renamed: a server never sees half of one.
 */
import { createHash } from 'node:crypto'
import { readdirSync, rmSync } from 'node:fs'
import path from 'node:path'
import { io, ioGuard, makeDirectories, writeDirectory } from '../../base/files.js'
import type { Policy } from '../../model/policy.js'
import { copyTokenizer } from '../../model/tokenizer.js'
import type { InferenceServer } from './server.js'
import type { WeightSync } from './sync.js'

/** Where directories for servers are written. */
export interface SyncPlace {
  /** The servers must see it under the same path. Several runs may use one syncDir. */
  readonly syncDir: string
  /** The run directory; what a killed process of the same run left is removed. */
  readonly owner: string
}

/** Seconds for a server to forget an adapter. */
const QUICK = 30

/** Weights that do not change: a model directory as it lies on the disk. */
export function fixedWeights(dir: string): WeightSync {
  const absolute = path.resolve(dir)
  return {
    isNamed: false,
    give: (servers, { name }, call) =>
      Promise.allSettled(servers.map(server => server.load(absolute, name, call))),
    async keepOnly() {},
    async close() {},
  }
}

/** @param modelDir where the tokenizer is copied from */
export function diskWeights(
  policy: Pick<Policy, 'save'>,
  { modelDir, ...place }: SyncPlace & { readonly modelDir: string },
): WeightSync {
  const published = publisher(place, async dir => {
    await policy.save(dir)
    copyTokenizer(modelDir, dir)
  })
  return {
    isNamed: false,
    async give(servers, { version, name }, call) {
      const dir = await published.publish(version)
      return Promise.allSettled(servers.map(server => server.load(dir, name, call)))
    },
    async keepOnly(version) {
      published.remove(kept => kept !== version)
    },
    async close() {
      published.close()
    },
  }
}

/** The adapter alone, in PEFT's files. Each version is loaded beside the others, and unloaded when no request uses it any more. */
export function adapterWeights(
  policy: Pick<Policy, 'saveAdapter'>,
  { modelDir, ...place }: SyncPlace & { readonly modelDir: string },
): WeightSync {
  const published = publisher(place, dir => policy.saveAdapter!(dir, { baseModel: path.resolve(modelDir) }))
  /** The names of the versions that servers have. */
  const loaded = new Map<InferenceServer, Map<number, string>>()
  const unload = (isGone: (version: number) => boolean, timeoutSeconds: number) =>
    Promise.all(
      [...loaded].flatMap(([server, names]) =>
        [...names].map(async ([version, name]) => {
          if (!isGone(version)) return
          names.delete(version)
          // A server that was started again has none of them, and one that is gone comes back without.
          await server.unload?.(name, { timeoutSeconds }).catch(() => {})
        }),
      ),
    )
  return {
    isNamed: true,
    async give(servers, { version, name }, call) {
      const dir = await published.publish(version)
      return Promise.allSettled(
        servers.map(async server => {
          await server.load(dir, name, call)
          const names = loaded.get(server) ?? new Map<number, string>()
          loaded.set(server, names.set(version, name))
        }),
      )
    },
    async keepOnly(version, inUse, { timeoutSeconds }) {
      const isGone = (other: number) => other !== version && !inUse.has(other)
      await unload(isGone, Math.min(QUICK, timeoutSeconds))
      published.remove(isGone)
    },
    async close() {
      await unload(() => true, QUICK)
      published.close()
    },
  }
}

/** Directories of versions below syncDir. */
function publisher({ syncDir, owner }: SyncPlace, write: (dir: string) => Promise<void>) {
  const root = path.resolve(syncDir)
  const digest = createHash('sha256').update(path.resolve(owner)).digest('hex').slice(0, 12)
  const prefix = `rapo-${digest}-v`
  const dirOf = (version: number) => path.join(root, `${prefix}${version}`)
  const remove = (isGone: (name: string) => boolean) =>
    ioGuard(`cannot remove old weights from ${root}`, () => {
      for (const name of readdirSync(root)) {
        if (name.startsWith(prefix) && isGone(name))
          rmSync(path.join(root, name), { recursive: true, force: true })
      }
    })
  let published: number | undefined
  return {
    /** The directory of this version, written now unless it is there already. Throws ERR_RAPO_IO. */
    publish: (version: number) =>
      io(`cannot write the weights for the servers to ${root}`, async () => {
        const dir = dirOf(version)
        if (published === version) return dir
        makeDirectories(root)
        if (published === undefined) remove(() => true)
        await writeDirectory(dir, write)
        published = version
        return dir
      }),
    /** Removes the directories of these versions, and what else has such a name. */
    remove(isGone: (version: number) => boolean) {
      remove(name => isGone(Number(name.slice(prefix.length))))
    },
    close() {
      if (published !== undefined) remove(() => true)
    },
  }
}
