/** The rewards of a training run: the verifier's, and those of further reward functions, with their weights. */
import { RapoError } from '../base/errors.js'
import { didYouMean } from '../base/nearest.js'
import { plural } from '../base/text.js'
import { type Format, verifyFormat } from './format.js'
import { lengthReward, overlongPunishment } from './length.js'
import { isModuleName, loadExports, loadVerifier, parseModuleName, verifierNames } from './load.js'
import type { MathOptions } from './math.js'
import type { Verifier } from './verifier.js'

/** One of the rewards whose weighted sum a completion gets. */
export interface RewardPart {
  /** As metrics and samples name it. */
  readonly name: string
  readonly weight: number
  readonly verifier: Verifier
}

/** Of config.task. */
export interface RewardOptions extends MathOptions {
  readonly verifier: string
  /** Reward functions beside the verifier. */
  readonly rewardFuncs?: readonly string[]
  /** Of the verifier, then of each of rewardFuncs. Empty: 1 each. */
  readonly rewardWeights?: readonly number[]
  /** What the reward function format looks for. */
  readonly format?: Format | undefined
  /** Tokens before sampling.maxNewTokens in which a completion is punished; 0: none is. */
  readonly overlongBufferLen?: number
  readonly overlongPenaltyFactor?: number
}

const builtIn: Readonly<Record<string, (options: RewardOptions) => Verifier>> = {
  format: ({ format }) => unchecked(completion => verifyFormat(completion, format)),
  length: () => unchecked((_completion, _answer, context) => lengthReward(context)),
}

/** Names that rewardFuncs takes beside the paths of modules. */
export const rewardFuncNames = [...verifierNames, ...Object.keys(builtIn)]

/**
 * The rewards of the configuration's section `task`: the verifier first, then the reward functions, then `overlong` if
 * overlongBufferLen is given. Throws ERR_RAPO_CONFIG for an unknown name, for two rewards with the same name, and for too few or
 * too many weights.
 */
export async function loadRewards(options: RewardOptions): Promise<RewardPart[]> {
  const { verifier, rewardFuncs = [], rewardWeights = [], overlongBufferLen = 0 } = options
  const found: [name: string, verifier: Verifier][] = [
    [nameOf(verifier), await loadVerifier(verifier, options)],
  ]
  for (const name of rewardFuncs) found.push(...(await loadRewardFunc(name, options)))
  const names = found.map(([name]) => name)
  const twice = names.find((name, i) => names.indexOf(name) < i)
  if (twice !== undefined) {
    throw new RapoError(
      'ERR_RAPO_CONFIG',
      `task.rewardFuncs has a second reward named ${twice}, among ${names.join(', ')} (the first is task.verifier): leave it out, or give the file or the export another name`,
    )
  }
  if (rewardWeights.length > 0 && rewardWeights.length !== found.length) {
    throw new RapoError(
      'ERR_RAPO_CONFIG',
      `task.rewardWeights has ${plural(rewardWeights.length, 'number')} for ${plural(found.length, 'reward')}: ${names.join(', ')}`,
    )
  }
  const parts = found.map(([name, verifier], i) => ({ name, verifier, weight: rewardWeights[i] ?? 1 }))
  if (overlongBufferLen === 0) return parts
  const { overlongPenaltyFactor = 1 } = options
  const overlong = unchecked((_completion, _answer, context) =>
    overlongPunishment(context, overlongBufferLen),
  )
  return [...parts, { name: 'overlong', weight: overlongPenaltyFactor, verifier: overlong }]
}

/** What is wrong with a problem's answer for any of the parts. */
export function checkAnswerOf(parts: readonly RewardPart[]): Pick<Verifier, 'checkAnswer'> {
  return {
    checkAnswer(answer) {
      for (const { verifier } of parts) {
        const fault = verifier.checkAnswer(answer)
        if (fault !== undefined) return fault
      }
      return undefined
    },
  }
}

async function loadRewardFunc(name: string, options: RewardOptions): Promise<[string, Verifier][]> {
  const make = Object.hasOwn(builtIn, name) ? builtIn[name] : undefined
  if (make) return [[name, make(options)]]
  if (verifierNames.includes(name)) return [[name, await loadVerifier(name)]]
  if (isModuleName(name)) return [...(await loadExports('task.rewardFuncs', name))]
  throw new RapoError(
    'ERR_RAPO_CONFIG',
    `task.rewardFuncs has "${name}"; it takes ${rewardFuncNames.join(', ')}, or the path of a module${didYouMean(name, rewardFuncNames)}`,
  )
}

function nameOf(verifier: string): string {
  if (!isModuleName(verifier)) return verifier
  const { file, exported } = parseModuleName(verifier)
  return exported ?? file.replace(/^.*[\\/]/, '').replace(/\.[^.]*$/, '')
}

const unchecked = (verify: Verifier['verify']): Verifier => ({ checkAnswer: () => undefined, verify })
