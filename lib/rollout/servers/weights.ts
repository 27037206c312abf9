/**
 * The policy's weights as directories that servers read. A directory is written under a temporary name, synced and renamed: a server
 * never sees half of one.
 */
import { createHash } from 'node:crypto'
import { readdirSync, rmSync } from 'node:fs'
import path from 'node:path'
import { io, ioGuard, makeDirectories, writeDirectory } from '../../base/files.js'
import type { Policy } from '../../model/policy.js'
import { copyTokenizer } from '../../model/tokenizer.js'

/** Where the weights of each version are. */
export interface PublishedWeights {
  /** The directory of this version, written now unless it is there already. Throws ERR_RAPO_IO. */
  publish(version: number): Promise<string>
  /** Removes the directories of all other versions. */
  keepOnly(version: number): void
  /** Removes them all. */
  close(): void
}

/** What a server is told that the weights of a version are called. */
export const weightsName = (run: string, version: number) => `${run}-v${version}`

/** The version in such a name of any run; undefined in another name. */
export function versionIn(name: string): number | undefined {
  const [, version] = /-v(\d+)$/.exec(name) ?? []
  return version === undefined ? undefined : Number(version)
}

/** Weights that do not change: a model directory as it lies on the disk. */
export function fixedWeights(dir: string): PublishedWeights {
  const absolute = path.resolve(dir)
  return { publish: async () => absolute, keepOnly() {}, close() {} }
}

/**
 * Below `syncDir`, which the servers must see under the same path. Several runs may use one syncDir.
 * @param owner the run directory; what a killed process of the same run left is removed
 * @param modelDir where the tokenizer is copied from
 */
export function diskWeights(
  policy: Pick<Policy, 'save'>,
  {
    syncDir,
    owner,
    modelDir,
  }: { readonly syncDir: string; readonly owner: string; readonly modelDir: string },
): PublishedWeights {
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
    publish: version =>
      io(`cannot write the weights for the servers to ${root}`, async () => {
        const dir = dirOf(version)
        if (published === version) return dir
        makeDirectories(root)
        if (published === undefined) remove(() => true)
        await writeDirectory(dir, async temporary => {
          await policy.save(temporary)
          copyTokenizer(modelDir, temporary)
        })
        published = version
        return dir
      }),
    keepOnly(version) {
      remove(name => name !== path.basename(dirOf(version)))
    },
    close() {
      if (published !== undefined) remove(() => true)
    },
  }
}
