/** Checks a model's directory before anything large is read and before anything is written. */
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import path from 'node:path'
import { RapoError } from '../base/errors.js'
import { ioReason, statOf, withPlace } from '../base/files.js'
import { isLfsPointer, lfsMessage } from '../base/lfs.js'
import { type ModelSource, readModelConfig } from './config.js'
import { explainFiles } from './foreign.js'

/** The files that a model needs: no weights in other formats, no pictures. */
export const modelFiles =
  /^(model[\w.-]*\.safetensors(\.index\.json)?|[\w.-]+\.json|merges\.txt|chat_template\.jinja)$/

/** Upper bound of the size of a Git LFS pointer. Few files of a model are as small. */
const MAX_POINTER = 1024

/**
 * The configuration of a model that the engine can run. Throws RapoError if the directory is missing, holds something other
 * than such a model, or holds Git LFS pointers in place of files. The message says what the directory holds and what to do.
 * @param field what names the directory, such as model.dir, for messages
 */
export function checkModel(dir: string, field?: string): ModelSource {
  const names = listFiles(dir, field)
  for (const name of names) {
    const file = path.join(dir, name)
    const found = statOf(file)
    // Reading a pipe would wait for a writer.
    if (!modelFiles.test(name) || !found?.isFile() || found.size > MAX_POINTER) continue
    if (isLfsPointer(readFileSync(file))) throw new RapoError('ERR_RAPO_FORMAT', lfsMessage(file))
  }
  // Another architecture is the more helpful message if the weights have another format, too.
  const model = names.includes('config.json') ? readModelConfig(dir) : undefined
  const fault = explainFiles(names, dir)
  if (fault || !model) throw new RapoError('ERR_RAPO_FORMAT', `${dir} ${fault}${modelsBelow(dir)}`)
  return model
}

/** The end of a message on a directory that is no model: a run's newest checkpoint, or models one level below. */
function modelsBelow(dir: string): string {
  const hasConfig = (name: string) => existsSync(path.join(dir, name, 'config.json'))
  const latest = path.join(dir, 'checkpoints', 'latest')
  if (existsSync(latest)) {
    const name = path.join('checkpoints', readFileSync(latest, 'utf8').trim())
    if (hasConfig(name)) return `; of this run, ${path.join(dir, name)} is the newest model`
  }
  const models = readdirSync(dir).filter(hasConfig).slice(0, 3)
  return models.length > 0
    ? `; there are models in ${models.map(name => path.join(dir, name)).join(', ')}`
    : ''
}

function listFiles(dir: string, field?: string): string[] {
  const found = statOf(dir)
  if (!found) {
    const isBare = /^\w[\w.-]*$/.test(dir)
    const hint = isBare ? '; a model on the Hugging Face hub is named OWNER/NAME' : ''
    throw new RapoError(
      'ERR_RAPO_IO',
      `${field ? `${field}: ` : ''}there is no directory ${withPlace(dir)}${hint}`,
    )
  }
  if (!found.isDirectory()) {
    throw new RapoError(
      'ERR_RAPO_FORMAT',
      `${dir} is a file; a model is a directory with config.json and model.safetensors`,
    )
  }
  try {
    return readdirSync(dir).filter(name => !statOf(path.join(dir, name))?.isDirectory())
  } catch (cause) {
    throw new RapoError('ERR_RAPO_IO', `cannot read ${dir}: ${ioReason(cause, dir)}`, { cause })
  }
}
