/**
 * The files that a run began with, recorded in its checkpoints: when the run is resumed, a name on the hub or a directory may
 * hold other files.
 */
import { createHash } from 'node:crypto'
import { closeSync, openSync, readdirSync, readSync, statSync } from 'node:fs'
import path from 'node:path'
import { RapoError } from '../base/errors.js'
import { ioGuard } from '../base/files.js'
import type { Config } from '../config/config.js'

/** The files of a model directory. */
export interface ModelFiles {
  /** Commit of a model on the hub. */
  readonly commit?: string
  /** Hash of the files' names, sizes and contents. Of large files, parts of the content are hashed. */
  readonly digest: string
}

export interface Origin {
  /** The files from which tokenizer and template are read. */
  readonly model: ModelFiles
  /** Absent without a penalty. */
  readonly reference?: ModelFiles
  /** The adapter that the run began with, where lora.adapterPath names one. */
  readonly adapter?: ModelFiles
  readonly dtype: string
}

interface Dirs {
  readonly modelDir: string
  readonly referenceDir: string
}

export function originOf(config: Config, { modelDir, referenceDir }: Dirs): Origin {
  const model = describeFiles(modelDir)
  const hasReference = config.objective.penalty !== 'none'
  const reference = referenceDir === modelDir ? model : hasReference && describeFiles(referenceDir)
  const { adapterPath } = config.lora
  return {
    model,
    ...(hasReference && reference && { reference }),
    ...(adapterPath !== undefined && { adapter: describeFiles(adapterPath) }),
    dtype: config.model.dtype,
  }
}

/** Whether two model directories hold the same weights. */
export function haveSameWeights(one: string, other: string): boolean {
  const [a, b] = [one, other].map(dir => describeFiles(dir, weightsFile).digest)
  return a === b
}

/**
 * Throws ERR_RAPO_CONFIG if a run would continue with other files, or another dtype, than it began with. Files that an older
 * version of rapo did not record are not compared.
 */
export function checkOrigin(before: Origin | undefined, now: Origin, { model, lora, run }: Config): void {
  if (!before) return
  const refuse = (what: string, hint: string) => {
    throw new RapoError('ERR_RAPO_CONFIG', `the run in ${run.output} began with ${what}; ${hint}`)
  }
  if (before.dtype !== now.dtype) refuse(`model.dtype ${before.dtype}, not ${now.dtype}`, 'go on with that')
  if (before.adapter?.digest !== now.adapter?.digest) {
    const was = before.adapter ? `an adapter of the digest ${before.adapter.digest}` : 'no lora.adapterPath'
    const is = now.adapter ? `${lora.adapterPath}, whose digest is ${now.adapter.digest}` : 'none'
    refuse(`${was}; now lora.adapterPath is ${is}`, 'go on with the former')
  }
  const fields = [
    ['model.reference', model.reference ?? model.dir, before.reference, now.reference],
    ['model.dir', model.dir, before.model, now.model],
  ] as const
  for (const [field, name, was, is] of fields) {
    if (!was || !is || was.digest === is.digest) continue
    const shown = ({ commit, digest }: ModelFiles) =>
      commit ? `commit ${commit}` : `files of the digest ${digest}`
    const hint = was.commit
      ? `name that one, ${field}: ${name.replace(/@.*/, '')}@${was.commit} in its config.yaml`
      : 'put those files back'
    refuse(`other files of ${field} ${name}: ${shown(was)}, now ${shown(is)}`, hint)
  }
}

const modelFile =
  /^(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|vocab)\.json$|^merges\.txt$|^chat_template\.jinja$|\.safetensors(\.index\.json)?$/
const weightsFile = /\.safetensors$/
/** Number of parts that are read of a large file, spread evenly. */
const PARTS = 64
const PART_BYTES = 65_536

/** Throws ERR_RAPO_IO. */
export function describeFiles(dir: string, files = modelFile): ModelFiles {
  const hash = createHash('sha256')
  ioGuard(`cannot read the model ${dir}`, () => {
    for (const name of readdirSync(dir)
      .filter(name => files.test(name))
      .sort()) {
      const file = path.join(dir, name)
      const { size } = statSync(file)
      hash.update(JSON.stringify([name, size]))
      for (const part of partsOf(file, size)) hash.update(part)
    }
  })
  // The layout of the hub's cache.
  const commit = /[\\/]snapshots[\\/]([^\\/]+)[\\/]?$/.exec(dir)?.[1]
  return { ...(commit && { commit }), digest: hash.digest('hex').slice(0, 16) }
}

function* partsOf(file: string, size: number): Iterable<Buffer> {
  const isSmall = size <= PARTS * PART_BYTES
  const step = isSmall ? PART_BYTES : (size - PART_BYTES) / (PARTS - 1)
  const count = isSmall ? Math.ceil(size / PART_BYTES) : PARTS
  const part = Buffer.alloc(PART_BYTES)
  const descriptor = openSync(file, 'r')
  try {
    for (let i = 0; i < count; i++) {
      yield part.subarray(0, readSync(descriptor, part, 0, PART_BYTES, Math.floor(i * step)))
    }
  } finally {
    closeSync(descriptor)
  }
}
