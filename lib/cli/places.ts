/** Helps those who expect the paths of a configuration to start at its file. */
import { existsSync } from 'node:fs'
import path from 'node:path'
import { RapoError } from '../base/errors.js'
import type { Config } from '../config/config.js'

/**
 * The error, and where it names a path of the configuration that is missing here but lies below the file's directory or the
 * one above: that directory, at which rapo is to be called.
 */
export function explainPlaces(error: unknown, config: Config, file: string | undefined): unknown {
  if (!(error instanceof RapoError) || file === undefined) return error
  const { model, data, task, observe } = config
  const paths = [model.dir, model.reference, data.train, data.eval, task.verifier, task.environment].flat()
  const missing = [...paths, observe.hook].filter(
    name => name && !path.isAbsolute(name) && error.message.includes(name) && !existsSync(name),
  )
  const near = [path.dirname(file), path.dirname(path.dirname(path.resolve(file)))]
  for (const name of missing) {
    const dir = near.find(place => existsSync(path.join(place, name!)))
    if (dir === undefined) continue
    const hint = `paths start at the directory in which rapo is called; ${name} lies in ${path.relative('', dir)}: call rapo there`
    return new RapoError(error.code, `${error.message}\n${hint}`, { cause: error })
  }
  return error
}
