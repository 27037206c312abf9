/** Environments by name: those built in, and modules of the user's. */
import { RapoError } from '../base/errors.js'
import { importModule } from '../base/module.js'
import { countdownCalculator } from './calculator.js'
import type { Environment, NamedEnvironment } from './environment.js'
import { builtInOf, parseModuleName, shortName } from './load.js'

const builtIn: Readonly<Record<string, Environment>> = {
  'countdown-calculator': countdownCalculator as Environment,
}

/** Names that task.environment takes beside the paths of modules. */
export const environmentNames = Object.keys(builtIn)

/**
 * A built-in environment by its name, or the default export of a module by its path, or `PATH#NAME` for a named export.
 * undefined stays undefined. Throws ERR_RAPO_CONFIG.
 */
export async function loadEnvironment(name: string | undefined): Promise<NamedEnvironment | undefined> {
  if (name === undefined) return undefined
  const known = builtInOf('task.environment', name, builtIn)
  if (known) return named(name, known)
  const { file, exported = 'default' } = parseModuleName(name)
  const module = await importModule('task.environment', file)
  const found = (module[exported] ?? {}) as Partial<Environment>
  const isFunction = (value: unknown) => typeof value === 'function'
  const isWhole = isFunction(found.reset) && isFunction(found.step)
  if (!isWhole || !(found.checkAnswer === undefined || isFunction(found.checkAnswer))) {
    const which = exported === 'default' ? 'its default export' : `its export ${exported}`
    throw new RapoError(
      'ERR_RAPO_CONFIG',
      `task.environment ${name}: ${which} must be an object with the functions reset(problem) and step(state, completion, context), and checkAnswer(answer) where answers are to be checked (docs/environments.md)`,
    )
  }
  return named(name, found as Environment)
}

function named(name: string, environment: Environment): NamedEnvironment {
  return {
    name: shortName(name),
    reset: problem => environment.reset(problem),
    step: (...args) => environment.step(...args),
    checkAnswer: answer => environment.checkAnswer?.(answer),
  }
}
