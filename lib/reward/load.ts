/** Verifiers by name: those built in, and modules of the user's. */
import path from 'node:path'
import { RapoError } from '../base/errors.js'
import { type Exports, importModule } from '../base/module.js'
import { didYouMean } from '../base/nearest.js'
import { countdown } from './countdown.js'
import { exact } from './exact.js'
import { createMath, type MathOptions } from './math.js'
import { judge, type Verifier, type Verify } from './verifier.js'

/** Those built in. */
const verifiers: Readonly<Record<string, Verifier>> = {
  countdown: named('countdown', countdown),
  exact: withAlternatives('exact', exact),
  math: withAlternatives('math', createMath()),
}

export const verifierNames = Object.keys(verifiers)

/**
 * A built-in verifier by its name, the default export of a module by its path, or a named export as `PATH#NAME`. The options
 * are for `math` only. Throws ERR_RAPO_CONFIG.
 */
export async function loadVerifier(name: string, options: MathOptions = {}): Promise<Verifier> {
  const { extract = 'boxed', tolerance } = options
  if (extract !== 'boxed' || tolerance !== undefined) {
    if (name === 'math') return withAlternatives('math', createMath({ extract, tolerance }))
    const given = extract !== 'boxed' ? `task.extract ${extract}` : `task.tolerance ${tolerance}`
    throw new RapoError('ERR_RAPO_CONFIG', `${given} is for the verifier math, and task.verifier is ${name}`)
  }
  const builtIn = builtInOf('task.verifier', name, verifiers)
  if (builtIn) return builtIn
  const { file, exported = 'default' } = parseModuleName(name)
  const module = await importModule('task.verifier', file)
  const verifier = asVerifier(module[exported])
  if (verifier) return verifier
  throw notAVerifier('task.verifier', name, exported, module)
}

/** What is built in under a name; undefined for the path of a module. Throws ERR_RAPO_CONFIG for any other name. */
export function builtInOf<T>(
  field: string,
  name: string,
  builtIn: Readonly<Record<string, T>>,
): T | undefined {
  if (Object.hasOwn(builtIn, name)) return builtIn[name]
  if (isModuleName(name)) return undefined
  const names = Object.keys(builtIn)
  throw new RapoError(
    'ERR_RAPO_CONFIG',
    `${field} is "${name}"; it must be one of ${names.join(', ')}, or the path of a module${didYouMean(name, names)}`,
  )
}

/** Whether a name is the path of a module rather than what is built in. */
export const isModuleName = (name: string) => /[\\/]|\.[cm]?[jt]s(#.*)?$/.test(name)

/** `./rewards.ts`, or `./rewards.ts#style` for one of its named exports. */
export function parseModuleName(name: string): { readonly file: string; readonly exported?: string } {
  const [, file, exported] = /^(.*\.[cm]?[jt]s)#([\p{ID_Start}$_][\p{ID_Continue}$]*)$/u.exec(name) ?? []
  return file !== undefined && exported !== undefined ? { file, exported } : { file: name }
}

/** What metrics call it: the name of what is built in, or of a module's export, or of its file without the extension. */
export function shortName(name: string): string {
  if (!isModuleName(name)) return name
  const { file, exported } = parseModuleName(name)
  return exported ?? file.replace(/^.*[\\/]/, '').replace(/\.[^.]*$/, '')
}

/** The exports of a module that are verifiers: the one that is named; else the default one; else all. */
export async function loadExports(field: string, name: string): Promise<ReadonlyMap<string, Verifier>> {
  const { file, exported } = parseModuleName(name)
  const module = await importModule(field, file)
  const names = Object.keys(module)
  // jiti makes up a default export, that does not stand among the names, of a module's named ones.
  const hasDefault = names.length === 0 || names.includes('default')
  const one = exported !== undefined || hasDefault ? asVerifier(module[exported ?? 'default']) : undefined
  if (one) return new Map([[exported ?? path.parse(file).name, one]])
  if (exported !== undefined) throw notAVerifier(field, name, exported, module)
  // Not in the module's order, which not every loader keeps.
  const all = names.toSorted().flatMap(own => {
    const verifier = asVerifier(module[own])
    return verifier ? [[own, verifier] as const] : []
  })
  if (all.length === 0) throw notAVerifier(field, name, 'default', module)
  return new Map(all)
}

function notAVerifier(field: string, name: string, exported: string, module: Exports): RapoError {
  const which = exported === 'default' ? 'its default export' : `its export ${exported}`
  const others = Object.keys(module).filter(other => other !== 'default' && asVerifier(module[other]))
  const hint =
    others.length > 0 ? `; it exports ${others.join(', ')}, as in ${name.split('#')[0]}#${others[0]}` : ''
  return new RapoError(
    'ERR_RAPO_CONFIG',
    `${field} ${name}: ${which} must be a function (completion, answer, context) that returns a reward, or an object with that function as verify, and checkAnswer(answer) where answers are to be checked${hint}`,
  )
}

/** A verifier as a module may export one: whole, without checkAnswer, or verify alone. undefined for anything else. */
function asVerifier(exported: unknown): Verifier | undefined {
  const checkAnswer = () => undefined
  if (typeof exported === 'function') return { checkAnswer, verify: exported as Verify }
  const verifier = (exported ?? {}) as Partial<Verifier>
  if (typeof verifier.verify !== 'function') return undefined
  if (typeof verifier.checkAnswer === 'function') return verifier as Verifier
  if (verifier.checkAnswer !== undefined) return undefined
  const { verifyAnswer } = verifier
  return {
    checkAnswer,
    verify: (...args) => verifier.verify!(...args),
    ...(verifyAnswer && { verifyAnswer: (...args) => verifyAnswer.call(verifier, ...args) }),
  }
}

/** The verifier, whose name stands in what it says of an answer that it cannot judge. */
function named(name: string, verifier: Verifier): Verifier {
  const checkAnswer = (answer: unknown) => {
    const fault = verifier.checkAnswer(answer)
    return fault && `${fault}, for the verifier ${name}`
  }
  return { ...verifier, checkAnswer }
}

/** The verifier with answers that may also be a list: a completion is right where any entry of the list is its answer. */
function withAlternatives(name: string, of: Verifier): Verifier {
  const verifier = named(name, of)
  const best = async (answers: readonly unknown[], verify: (answer: unknown) => ReturnType<Verify>) => {
    const verdicts = await Promise.all(answers.map(answer => judge(() => verify(answer), 'an answer')))
    return verdicts.reduce((best, verdict) => (verdict.reward > best.reward ? verdict : best))
  }
  const { verify, verifyAnswer } = verifier
  return {
    checkAnswer(answer) {
      if (!Array.isArray(answer)) return verifier.checkAnswer(answer)
      if (answer.length === 0) return 'answer is an empty list'
      const faults = answer.map((entry, i) => [i, verifier.checkAnswer(entry)] as const)
      const [at, fault] = faults.find(([, fault]) => fault !== undefined) ?? []
      return fault === undefined
        ? undefined
        : `answer has several entries, of which number ${at! + 1}: ${fault}`
    },
    verify: (completion, answer, context) =>
      Array.isArray(answer)
        ? best(answer, entry => verify(completion, entry, context))
        : verify(completion, answer, context),
    ...(verifyAnswer && {
      verifyAnswer: (text, answer, context) =>
        Array.isArray(answer)
          ? best(answer, entry => verifyAnswer(text, entry, context))
          : verifyAnswer(text, answer, context),
    }),
  }
}
