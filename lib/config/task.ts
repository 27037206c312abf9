/** The section `task`: what rewards a completion. */
import { z } from 'zod'
import { formats } from '../reward/format.js'
import { extractions } from '../reward/math/extract.js'
import { count, list } from './values.js'

const numbers = (text: string, context: z.core.$RefinementCtx<string>) => {
  const weights = list(text).map(Number)
  if (!weights.every(Number.isFinite)) context.issues.push({ code: 'custom', input: text })
  return weights
}

export const task = z.strictObject({
  verifier: z
    .string()
    .min(1)
    .optional()
    .describe(
      'what rewards a completion: countdown, exact, math, or the path of a module (docs/rewards.md); required without task.environment',
    ),
  environment: z
    .string()
    .min(1)
    .optional()
    .describe(
      'what answers the model in a task of several turns: countdown-calculator, or the path of a module (docs/environments.md)',
    ),
  maxTurns: count()
    .default(8)
    .describe(
      'with an environment: completions of an episode, at most; their tokens and those of the observations together are at most sampling.maxNewTokens',
    ),
  maxTurnTokens: count()
    .optional()
    .describe('with an environment: longest completion of one turn (default: sampling.maxNewTokens)'),
  rewardFuncs: z
    .union([z.string().transform(list), z.array(z.string().min(1))])
    .default([])
    .meta({
      range: 'a list of texts, or one text with commas',
      description:
        'rewards beside the verifier: format, length, a verifier, or the path of a module that exports one or several (docs/rewards.md)',
    }),
  rewardWeights: z
    .union([z.string().transform(numbers), z.array(z.number()), z.number().transform(weight => [weight])])
    .default([])
    .meta({
      range: 'a list of numbers, or one text with commas',
      description:
        'what the rewards of the verifier and of each of rewardFuncs are multiplied with (default: 1 each)',
    }),
  format: z
    .enum(formats)
    .optional()
    .describe(
      'what the reward function format looks for: <think>…</think> <answer>…</answer>, <think>…</think> …, or a box (default: think-answer)',
    ),
  overlongBufferLen: count(0)
    .default(0)
    .describe(
      'last tokens of sampling.maxNewTokens in which a completion is punished, the more the longer it is; 0 is off',
    ),
  overlongPenaltyFactor: z
    .number()
    .positive()
    .default(1)
    .describe('the punishment of a completion that has sampling.maxNewTokens tokens'),
  extract: z
    .enum(extractions)
    .optional()
    .describe(
      "math: where a completion's answer is: the last box; final: else what it states; any: else its last formula or number (default: boxed)",
    ),
  tolerance: z
    .union([z.literal('digits'), z.coerce.number().gt(0).lt(1)])
    .optional()
    .meta({
      range: 'a number > 0 and < 1, or digits',
      description:
        'math: how far a decimal may be off, as a share of the reference, or to the digits that it shows (default: exact)',
    }),
  timeout: z
    .number()
    .positive()
    .max(1e6)
    .default(600)
    .describe('seconds to wait for the verdict of an asynchronous verifier'),
  onTimeout: z
    .enum(['error', 'zero'])
    .default('error')
    .describe('a verdict that takes longer ends the run, or is reward 0'),
})
