/** The section `objective`: presets, and the objective that the kernels are given. */
import { z } from 'zod'
import {
  type AdvantageScale,
  advantageBaselines,
  advantageScales,
  multiObjectiveAggregations,
  phiShapes,
} from '../loss/advantage.js'
import { numberEntries, type ObjectiveNumber } from '../loss/fields.js'
import {
  cispo,
  dapo,
  defineObjective,
  drGrpo,
  grpo,
  gspo,
  type Objective,
  penalties,
  rapo,
  rapoPhi,
  sapo,
  surrogates,
} from '../loss/objective.js'
import { type Aggregation, aggregations } from '../model/batch.js'
import { dropUndefined, fraction } from './values.js'

type ConfiguredNumber = Exclude<ObjectiveNumber, 'temperature'>

/** The numbers of lib/loss/fields.ts, except the temperature, which is sampling.temperature. Infinity is written by leaving the field out. */
const numbers = Object.fromEntries(
  numberEntries.flatMap(([name, { low, open, high, help }]) => {
    if (name === 'temperature') return []
    const above = open ? z.number().gt(low) : z.number().min(low)
    const bounded = high < Number.MAX_VALUE ? above.max(high) : above
    return [[name, bounded.optional().describe(help)]]
  }),
) as Record<ConfiguredNumber, z.ZodOptional<z.ZodNumber>>

export const objective = z.strictObject({
  preset: z
    .enum(['rapo', 'grpo', 'dapo', 'dr-grpo', 'gspo', 'cispo', 'sapo'])
    .default('rapo')
    .describe('the source of the fields below that are not given'),
  surrogate: z.enum(surrogates).optional().describe('the policy term g'),
  penalty: z.enum(penalties).optional().describe('the KL penalty D'),
  ...numbers,
  aggregation: z.enum(aggregations).optional().describe('how the tokens of a step are averaged'),
  advantageBaseline: z
    .enum(advantageBaselines)
    .optional()
    .describe('what is subtracted from a reward: the mean of its group, or of the others in it'),
  advantageScale: z
    .enum(advantageScales)
    .optional()
    .describe("what the difference is divided by: the standard deviation of the group's rewards, or nothing"),
  multiObjectiveAggregation: z
    .enum(multiObjectiveAggregations)
    .default('sum-then-normalize')
    .describe(
      'of several rewards: one advantage of their sum, or the sum of the advantages that each gives (GDPO)',
    ),
  maskTruncatedCompletions: z
    .boolean()
    .default(false)
    .describe('leave completions that were cut off out of the loss'),
  phi: z
    .enum(phiShapes)
    .optional()
    .describe('φ rises linearly from rMin to rMax, or steps from phiMin to phiMax at rMax'),
  phiMin: fraction()
    .optional()
    .describe('φ of a completion with reward rMin or less; forward penalties only'),
  phiMax: fraction().optional().describe('φ of a completion with reward rMax or more'),
  rMin: z.number().optional().describe('reward from which φ rises'),
  rMax: z.number().optional().describe('reward from which φ stays phiMax'),
  entropyTarget: z
    .number()
    .positive()
    .max(100)
    .optional()
    .describe(
      'nats a token: entropyCoef then moves by entropyStep a step to reach it (default: it is constant)',
    ),
  entropyStep: z.number().positive().max(1).optional().describe('see entropyTarget'),
  topEntropyFraction: z
    .number()
    .positive()
    .max(1)
    .optional()
    .describe('the policy term acts on this share of the tokens, those with the highest entropy'),
})

type ObjectiveInput = z.output<typeof objective>

/** Fields without a default. They are absent if not given, or if the surrogate does not read them. */
type Unresolved =
  | 'clipLow'
  | 'clipHigh'
  | 'ratioCap'
  | 'sapoTauPositive'
  | 'sapoTauNegative'
  | 'rMin'
  | 'entropyTarget'
  | 'entropyStep'

export type ResolvedObjective = {
  [K in Exclude<keyof ObjectiveInput, Unresolved>]-?: NonNullable<ObjectiveInput[K]>
} & Pick<ObjectiveInput, Unresolved>

export const presets = {
  rapo: { ...preset(rapo(), 'sequence-mean'), phiMin: rapoPhi.phiMin },
  grpo: preset(grpo(), 'sequence-mean'),
  dapo: preset(dapo(), 'token-mean'),
  'dr-grpo': preset(drGrpo(), 'constant', 'none'),
  gspo: preset(gspo(), 'sequence-mean'),
  cispo: preset(cispo(), 'token-mean'),
  sapo: preset(sapo(), 'sequence-mean'),
}

function preset(
  { temperature: _, surrogate = 'clip', ...kernelFields }: Objective,
  aggregation: Aggregation,
  advantageScale: AdvantageScale = 'sample-std',
) {
  const { clipLow, clipHigh, ...rest } = kernelFields
  return {
    surrogate,
    ...rest,
    // sapo has no bounds to choose.
    ...(surrogate !== 'sapo' && { clipLow, clipHigh }),
    aggregation,
    advantageBaseline: 'group-mean' as const,
    advantageScale,
    phi: 'linear' as const,
    phiMin: 1,
    phiMax: 1,
    rMax: 1,
    topEntropyFraction: 1,
  }
}

/** The objective for the kernels. entropyCoef replaces the configured coefficient. */
export function kernelObjective(
  {
    objective,
    sampling,
  }: { readonly objective: ResolvedObjective; readonly sampling: { readonly temperature: number } },
  entropyCoef = objective.entropyCoef,
): Objective {
  const { surrogate, penalty, clipLow = 1, clipHigh = Infinity } = objective
  const given = Object.fromEntries(
    numberEntries.map(([name]) => [name, name === 'temperature' ? sampling.temperature : objective[name]]),
  )
  return defineObjective({
    ...dropUndefined({ surrogate, penalty, ...given }),
    ...{ entropyCoef, clipLow, clipHigh },
  } as Objective)
}

export function resolveObjective(given: ObjectiveInput): ResolvedObjective {
  const preset = { ...presets[given.preset] }
  if (given.surrogate && given.surrogate !== preset.surrogate) {
    // Clip bounds belong to a surrogate; those of another surrogate would make no sense.
    const { [given.surrogate as keyof typeof presets]: own = presets.grpo } = presets
    Object.assign(preset, { clipLow: own.clipLow, clipHigh: own.clipHigh })
  }
  const isForward = (given.penalty ?? preset.penalty).startsWith('forward')
  const resolved = {
    ...dropUndefined(preset),
    // The other penalties are defined for the reference without reweighting.
    ...(!isForward && { phiMin: 1 }),
    ...(given.phi !== 'step' && { rMin: 0 }),
    ...(given.entropyTarget !== undefined && { entropyStep: 0.001 }),
    ...dropUndefined(given),
  } as ResolvedObjective
  // If the preset's penalty is switched off, its weight becomes 0.
  if (given.penalty === 'none' && given.klCoef === undefined) resolved.klCoef = 0
  return resolved
}
