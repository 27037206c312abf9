/** Checks a model's directory before anything large is read and before anything is written. */
import { readdirSync, readFileSync, statSync } from 'node:fs'
import path from 'node:path'
import { RapoError } from '../base/errors.js'
import { ioReason, withPlace } from '../base/files.js'
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
    const found = statSync(file, { throwIfNoEntry: false })
    // Reading a pipe would wait for a writer.
    if (!modelFiles.test(name) || !found?.isFile() || found.size > MAX_POINTER) continue
    if (isLfsPointer(readFileSync(file))) throw new RapoError('ERR_RAPO_FORMAT', lfsMessage(file))
  }
  // Another architecture is the more helpful message if the weights have another format, too.
  const model = names.includes('config.json') ? readModelConfig(dir) : undefined
  const fault = explainFiles(names, dir)
  if (fault || !model) throw new RapoError('ERR_RAPO_FORMAT', `${dir} ${fault}`)
  return model
}

function listFiles(dir: string, field?: string): string[] {
  const found = statSync(dir, { throwIfNoEntry: false })
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
    return readdirSync(dir).filter(
      name => !statSync(path.join(dir, name), { throwIfNoEntry: false })?.isDirectory(),
    )
  } catch (cause) {
    throw new RapoError('ERR_RAPO_IO', `cannot read ${dir}: ${ioReason(cause, dir)}`, { cause })
  }
}
