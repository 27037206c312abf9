/**
 * A run's configuration: every field once, with its default, range and help line. Files, command-line options, error
 * messages and `--help` all come from this declaration.
 */
import { readFileSync } from 'node:fs'
import { inspect } from 'node:util'
import { distance } from 'fastest-levenshtein'
import { LineCounter, parseDocument, stringify } from 'yaml'
import { z } from 'zod'
import { RapoError } from '../base/errors.js'
import { type AdvantageScale, advantageBaselines, advantageScales, phiShapes } from '../loss/advantage.js'
import { type Correction, correctionLevels, outsideChoices } from '../loss/correction.js'
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
  sapo,
  surrogates,
} from '../loss/objective.js'
import { type Aggregation, aggregations } from '../model/batch.js'
import { type Device, devicePattern, deviceRange, type PolicyOptions } from '../model/policy.js'

const fraction = () => z.number().min(0).max(1)
const count = (min = 1) => z.int().min(min)
const coefficient = () => z.number().min(0).max(1e6)

const model = z.strictObject({
  dir: z
    .string()
    .min(1)
    .describe(
      'Hugging Face directory of the model to train, or its name on the hub, such as Qwen/Qwen2.5-3B',
    ),
  reference: z.string().min(1).optional().describe('directory of the frozen reference (default: model.dir)'),
  dtype: z
    .enum(['float32', 'bfloat16'])
    .default('float32')
    .describe('of weights and activations; the optimizer keeps float32'),
  device: z
    .string()
    .regex(devicePattern)
    .default('cpu')
    .meta({ range: deviceRange, description: 'where the model lives' }),
})

const data = z.strictObject({
  train: z
    .string()
    .default('')
    .describe('problem file to train on: JSON Lines, .csv or .parquet (docs/files.md)'),
  eval: z.string().default('').describe('problem file that `rapo eval` measures'),
  template: z
    .string()
    .regex(/\{prompt\}|^(chat|qwen-boxed|abel)$/)
    .default('{prompt}')
    .meta({
      range: 'a text that contains {prompt}, or chat, qwen-boxed or abel',
      description:
        "text around a problem, in which {prompt} stands for its prompt; or chat (the model's own template), qwen-boxed, abel",
    }),
  problemField: z.string().default('').describe('field with the problem (default: prompt, else problem)'),
  answerField: z.string().default('').describe('field with the answer (default: answer)'),
  idField: z.string().default('').describe("field with a problem's name (default: id, else its line)"),
  difficultyField: z.string().default('').describe('field that splits the evaluation (default: difficulty)'),
  dropUnusable: z
    .boolean()
    .default(false)
    .describe('leave out, and list, problems that are empty, double or too long, instead of an error'),
  shards: count().default(1).describe('take every shards-th problem only'),
  shard: count(0).default(0).describe('which of the shards, from 0'),
})

const task = z.strictObject({
  verifier: z
    .string()
    .min(1)
    .describe('what rewards a completion: countdown, exact, math, or the path of a module'),
})

const sampling = z.strictObject({
  groupSize: count(2).max(65536).default(8).describe('G, completions a prompt'),
  promptsPerStep: count().default(16).describe('problems a step'),
  temperature: z
    .number()
    .min(1e-6)
    .max(100)
    .default(1)
    .describe('τ; the objective divides the logits by the same'),
  topP: z
    .number()
    .positive()
    .max(1)
    .default(1)
    .describe('sample from the likeliest tokens with this mass; 1 is off'),
  topK: count(0).default(0).describe('sample from this many likeliest tokens; 0 is off'),
  minP: z
    .number()
    .min(0)
    .lt(1)
    .default(0)
    .describe('drop tokens less likely than this times the likeliest; 0 is off'),
  maxNewTokens: count().default(1024).describe('longest completion, in tokens'),
})

const objective = z.strictObject({
  preset: z
    .enum(['rapo', 'grpo', 'dapo', 'dr-grpo', 'gspo', 'cispo', 'sapo'])
    .default('rapo')
    .describe('where the fields below that are not given come from'),
  surrogate: z.enum(surrogates).optional().describe('the policy term g'),
  penalty: z.enum(penalties).optional().describe('the KL penalty D'),
  klCoef: coefficient().optional().describe('α, the weight of the penalty'),
  entropyCoef: coefficient().optional().describe('β, the weight of the entropy'),
  clipLow: fraction().optional().describe('the ratio is clipped to [1 − clipLow, 1 + clipHigh]'),
  clipHigh: z.number().min(0).max(1e6).optional().describe('see clipLow'),
  ratioCap: z
    .number()
    .min(1)
    .max(1e6)
    .optional()
    .describe(
      'bounds the ratio where the advantage is negative, too; clip and gspo only (default: no bound)',
    ),
  sapoTauPositive: z
    .number()
    .positive()
    .max(1e6)
    .optional()
    .describe('sharpness of the gate where the advantage is positive; sapo only (default 1)'),
  sapoTauNegative: z.number().positive().max(1e6).optional().describe('and where not (default 1.05)'),
  maxLogRatio: z.number().positive().max(20).optional().describe('upper clamp of log-ratios before exp'),
  aggregation: z.enum(aggregations).optional().describe('how the tokens of a step are averaged'),
  advantageBaseline: z
    .enum(advantageBaselines)
    .optional()
    .describe('what is subtracted from a reward: the mean of its group, or of the others in it'),
  advantageScale: z
    .enum(advantageScales)
    .optional()
    .describe("what the difference is divided by: the standard deviation of the group's rewards, or nothing"),
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
    .describe('share of the tokens, those of the highest entropy, that the policy term acts on'),
})

const correction = z.strictObject({
  level: z
    .enum(['off', ...correctionLevels])
    .default('off')
    .describe('weigh the policy term by trainer / sampler probability of each token or sequence'),
  outside: z
    .enum(outsideChoices)
    .optional()
    .describe('a ratio beyond the bounds is moved to the bound, or gets weight 0 (default truncate)'),
  low: fraction().optional().describe('lower bound of the ratio (default 0)'),
  high: z.number().min(1).max(1e6).optional().describe('upper bound of the ratio (default 2)'),
  maxDivergence: z
    .number()
    .positive()
    .max(1e6)
    .optional()
    .describe(
      'completions with a negative advantage and a mean log-ratio sampler / trainer above this are left out of the ' +
        'policy term (default: none is)',
    ),
})

const optimizer = z.strictObject({
  learningRate: z.number().positive().max(1).default(1e-6).describe('peak learning rate'),
  schedule: z
    .enum(['constant', 'linear', 'cosine'])
    .default('constant')
    .describe('after the warm-up: constant, or falling to 0 at run.steps'),
  warmupSteps: count(0).default(0).describe('steps over which the learning rate rises from 0'),
  beta1: z.number().min(0).lt(1).default(0.9).describe('AdamW'),
  beta2: z.number().min(0).lt(1).default(0.999).describe('AdamW'),
  eps: z.number().positive().max(1).default(1e-8).describe('AdamW'),
  weightDecay: z.number().min(0).max(1).default(0).describe('AdamW'),
  maxGradNorm: z.number().positive().default(1).describe("the gradient's norm is clipped to this"),
  stepsPerBatch: count()
    .default(1)
    .describe('optimizer steps a batch of rollouts; at most sampling.promptsPerStep'),
  microBatchTokens: count()
    .default(16384)
    .describe(
      'tokens of a micro-batch, of which the engine takes as many at once as 2 GB of activations hold',
    ),
  recompute: z
    .boolean()
    .default(false)
    .describe(
      'keep less of the forward pass and compute it again: a fraction of the memory for one more forward pass',
    ),
})

const run = z.strictObject({
  output: z
    .string()
    .default('')
    .describe('run directory (default: runs/ and the name of the configuration file)'),
  steps: count().default(100).describe('batches of rollouts to train on'),
  seed: count(0).default(1).describe('of everything random in the run'),
  saveEvery: count().default(50).describe('steps between checkpoints; the last step is always saved'),
  keepCheckpoints: count().default(2).describe('newest checkpoints to keep'),
  samplesPerStep: count(0).default(2).describe('completions a step written to samples.jsonl'),
  threads: count(0).max(1024).default(0).describe('CPU threads; 0 leaves it to libtorch'),
})

const evaluation = z.strictObject({
  samples: count(2)
    .default(64)
    .describe('n, completions a problem; pass@k is given for k = 1, 2, 4 … largestK'),
  keepSamples: count(0).default(4).describe('completions a problem written to eval-samples.jsonl'),
  bootstrap: count(100).max(1e6).default(1000).describe('resamples behind the 95 % intervals'),
  seed: count(0).default(1).describe('of the samples and the intervals'),
  samplesPerCall: count()
    .default(2048)
    .describe(
      'completions sampled at once, of several problems or a part of one; what an interruption loses at most',
    ),
  largestK: count(0).default(0).describe('k of pass@k goes up to this, at most n; 0: up to n/2'),
  base: z
    .string()
    .default('')
    .describe("eval.json of the base model: its hard problems become a group, 'hard for base'"),
  hardBelow: fraction()
    .default(0)
    .describe('hard: the base has no sample right, or a smaller share of them than this'),
})

const observe = z.strictObject({
  tensorboard: z.boolean().default(false).describe('write event files for TensorBoard (docs/observe.md)'),
  prometheus: z
    .string()
    .default('')
    .describe("file that gets the newest step for node-exporter's textfile collector; name it *.prom"),
  hook: z.string().default('').describe('path of a module whose default export is called after every step'),
})

type ObjectiveInput = z.output<typeof objective>
/** Without a default: absent where they are not given, or the surrogate does not read them. */
type Unresolved =
  | 'clipLow'
  | 'clipHigh'
  | 'ratioCap'
  | 'sapoTauPositive'
  | 'sapoTauNegative'
  | 'rMin'
  | 'entropyTarget'
  | 'entropyStep'
type ResolvedObjective = {
  [K in Exclude<keyof ObjectiveInput, Unresolved>]-?: NonNullable<ObjectiveInput[K]>
} & Pick<ObjectiveInput, Unresolved>

const presets = {
  rapo: { ...preset(rapo(), 'sequence-mean'), phiMin: 0.7 },
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
    // sapo has none to choose.
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

/** The objective that the kernels are told. entropyCoef: where it is not the configured one. */
export function kernelObjective(
  { objective, sampling }: Pick<Config, 'objective' | 'sampling'>,
  entropyCoef = objective.entropyCoef,
): Objective {
  const { surrogate, penalty, klCoef, maxLogRatio, ratioCap, sapoTauPositive, sapoTauNegative } = objective
  const { clipLow = 1, clipHigh = Infinity } = objective
  const { temperature } = sampling
  const given = { ratioCap, sapoTauPositive, sapoTauNegative }
  return defineObjective({
    ...{ surrogate, penalty, klCoef, entropyCoef, clipLow, clipHigh, temperature, maxLogRatio },
    ...dropUndefined(given),
  } as Objective)
}

function resolveObjective(given: ObjectiveInput): ResolvedObjective {
  const preset = { ...presets[given.preset] }
  if (given.surrogate && given.surrogate !== preset.surrogate) {
    // Bounds are made for a surrogate: those of another would cut it to pieces.
    const { clipLow, clipHigh } = given.surrogate === 'clip' ? presets.grpo : presets[given.surrogate]
    Object.assign(preset, { clipLow, clipHigh })
  }
  const isForward = (given.penalty ?? preset.penalty).startsWith('forward')
  const resolved = {
    ...dropUndefined(preset),
    // The other penalties are defined for the reference as it is.
    ...(!isForward && { phiMin: 1 }),
    ...(given.phi !== 'step' && { rMin: 0 }),
    ...(given.entropyTarget !== undefined && { entropyStep: 0.001 }),
    ...dropUndefined(given),
  } as ResolvedObjective
  // Switching the preset's penalty off switches its weight off.
  if (given.penalty === 'none' && given.klCoef === undefined) resolved.klCoef = 0
  return resolved
}

type ResolvedCorrection = ({ readonly level: 'off' } | Correction) & { readonly maxDivergence?: number }

/** Without a level the bounds stay as given, for crossFaults to refuse. */
function resolveCorrection(given: z.output<typeof correction>): ResolvedCorrection {
  const defaults = given.level === 'off' ? {} : { outside: 'truncate', low: 0, high: 2 }
  return { ...defaults, ...dropUndefined(given) } as ResolvedCorrection
}

const schema = z.strictObject({
  model,
  data: data.prefault({}),
  task,
  sampling: sampling.prefault({}),
  objective: objective.prefault({}),
  correction: correction.prefault({}),
  optimizer: optimizer.prefault({}),
  run: run.prefault({}),
  observe: observe.prefault({}),
  eval: evaluation.prefault({}),
})

/** A whole configuration, defaults filled in. */
export type Config = Omit<z.output<typeof schema>, 'objective' | 'correction'> & {
  objective: ResolvedObjective
  correction: ResolvedCorrection
}

/** A field as people meet it. */
export interface Field {
  /** Such as objective.klCoef. */
  readonly path: string
  /** Such as --objective.kl-coef. */
  readonly option: string
  readonly type: 'number' | 'boolean' | 'string'
  /** What it must be, in words: "a number ≥ 0". */
  readonly range: string
  readonly default: unknown
  readonly help: string
}

interface JsonSchema {
  type?: string
  enum?: unknown[]
  minimum?: number
  maximum?: number
  exclusiveMinimum?: number
  exclusiveMaximum?: number
  minLength?: number
  /** In words, where the schema's own constraints say too little to people. */
  range?: string
  default?: unknown
  description?: string
  properties?: Record<string, JsonSchema>
}

/** Every field, in the order declared. */
export const fields: readonly Field[] = listFields(z.toJSONSchema(schema, { io: 'input' }) as JsonSchema, [])

function listFields(node: JsonSchema, path: readonly string[]): Field[] {
  if (node.properties) {
    return Object.entries(node.properties).flatMap(([name, child]) => listFields(child, [...path, name]))
  }
  const isNumber = node.type === 'number' || node.type === 'integer'
  const dotted = path.join('.')
  return [
    {
      path: dotted,
      option: `--${dotted.replace(/[A-Z]/g, letter => `-${letter.toLowerCase()}`)}`,
      type: isNumber ? 'number' : node.type === 'boolean' ? 'boolean' : 'string',
      range: describeRange(node),
      default: node.default,
      help: node.description ?? '',
    },
  ]
}

function describeRange(node: JsonSchema): string {
  if (node.range) return node.range
  if (node.enum) return `one of ${node.enum.join(', ')}`
  if (node.type === 'boolean') return 'true or false'
  if (node.type === 'string') {
    return node.minLength ? 'a text that is not empty' : 'a text'
  }
  const bounds: string[] = []
  if (node.exclusiveMinimum !== undefined) bounds.push(`> ${node.exclusiveMinimum}`)
  else if (node.minimum !== undefined && node.minimum > -Number.MAX_SAFE_INTEGER)
    bounds.push(`≥ ${node.minimum}`)
  if (node.exclusiveMaximum !== undefined) bounds.push(`< ${node.exclusiveMaximum}`)
  else if (node.maximum !== undefined && node.maximum < Number.MAX_SAFE_INTEGER)
    bounds.push(`≤ ${node.maximum}`)
  return `${node.type === 'integer' ? 'a whole number' : 'a number'} ${bounds.join(' and ')}`.trim()
}

/** Presets as `--help` shows them. */
export function describePresets(): string {
  return Object.entries(presets)
    .map(([name, values]) => {
      const parts = Object.entries(values).map(([field, value]) => `${field} ${value}`)
      return `  ${name.padEnd(8)} ${parts.join(', ')}`
    })
    .join('\n')
}

/**
 * The configuration of a YAML or JSON file with overrides on top: values by dotted path ('objective.klCoef'), as text
 * (from a command line) or as they are. Throws ERR_RAPO_CONFIG listing everything that is wrong: field, value, range,
 * and file and line where it has one.
 */
export function loadConfig(
  file: string | undefined,
  overrides: Readonly<Record<string, unknown>> = {},
): Config {
  const source = file === undefined ? { values: {}, lineOf: () => undefined } : readConfigFile(file)
  const values = source.values
  const overridden = new Set<string>()
  for (const [path, value] of Object.entries(overrides)) {
    if (value === undefined) continue
    const field = fields.find(candidate => candidate.path === path)
    if (!field) throw new RapoError('ERR_RAPO_CONFIG', unknownField(path))
    setIn(values, path, typeof value === 'string' ? fromText(field, value) : value)
    overridden.add(path)
  }
  const where = (path: string) => {
    const line = overridden.has(path) ? undefined : source.lineOf(path.split('.'))
    return line === undefined ? '' : `${file}:${line}: `
  }
  return parseConfig(values, where)
}

/** The same from an object. Throws ERR_RAPO_CONFIG. */
export function parseConfig(values: unknown, where: (path: string) => string = () => ''): Config {
  const result = schema.safeParse(values)
  const faults = result.success
    ? []
    : result.error.issues.flatMap(issue => describeIssue(issue, values, where))
  if (result.success) {
    const { objective, correction } = result.data
    const config = {
      ...result.data,
      objective: resolveObjective(objective),
      correction: resolveCorrection(correction),
    }
    faults.push(...crossFaults(config).map(([path, text]) => `${where(path)}${path} ${text}`))
    if (faults.length === 0) return config
  }
  throw new RapoError('ERR_RAPO_CONFIG', faults.join('\n'))
}

/** What no single field can say. */
function crossFaults(config: Config): [path: string, text: string][] {
  const { objective: o, correction, optimizer, sampling, data } = config
  const faults: [string, string][] = []
  if (data.shard >= data.shards) {
    faults.push(['data.shard', `is ${data.shard}; it must be < data.shards, ${data.shards}`])
  }
  if (o.penalty === 'none' && o.klCoef !== 0) {
    faults.push(['objective.klCoef', `is ${o.klCoef}; it must be 0 without a penalty`])
  }
  if (o.phiMin > o.phiMax)
    faults.push(['objective.phiMin', `is ${o.phiMin}; it must be ≤ objective.phiMax, ${o.phiMax}`])
  if (o.phi === 'linear' && o.rMin! >= o.rMax)
    faults.push(['objective.rMin', `is ${o.rMin}; it must be < objective.rMax, ${o.rMax}`])
  if (o.phi === 'step' && o.rMin !== undefined)
    faults.push(['objective.rMin', `is ${o.rMin}; a step has objective.rMax alone`])
  if (!o.penalty.startsWith('forward') && (o.phiMin !== 1 || o.phiMax !== 1)) {
    const why =
      o.penalty === 'none' ? 'there is no reference' : 'reverse penalties take the reference as it is'
    faults.push(['objective.phiMin', `is ${o.phiMin}; it must be 1 with penalty ${o.penalty}: ${why}`])
  }
  if (o.entropyStep !== undefined && o.entropyTarget === undefined)
    faults.push(['objective.entropyStep', `is ${o.entropyStep}; it needs objective.entropyTarget`])
  if (correction.level === 'off') {
    const bounds: Partial<Correction> = correction as object
    for (const field of ['outside', 'low', 'high'] as const) {
      if (bounds[field] === undefined) continue
      const text = `is ${bounds[field]}; it needs correction.level token or sequence`
      faults.push([`correction.${field}`, text])
    }
  }
  // gspo has one ratio, and so one weight, a sequence.
  if (o.surrogate === 'gspo' && o.topEntropyFraction < 1) {
    faults.push([
      'objective.topEntropyFraction',
      `is ${o.topEntropyFraction}; it must be 1 with surrogate gspo`,
    ])
  }
  if (o.surrogate === 'gspo' && correction.level === 'token')
    faults.push(['correction.level', 'is token; it must be off or sequence with surrogate gspo'])
  if (optimizer.stepsPerBatch > sampling.promptsPerStep) {
    faults.push([
      'optimizer.stepsPerBatch',
      `is ${optimizer.stepsPerBatch}; it must be ≤ sampling.promptsPerStep, ${sampling.promptsPerStep}`,
    ])
  }
  if (faults.length > 0) return faults
  try {
    kernelObjective(config)
  } catch (error) {
    faults.push(['objective:', (error as Error).message])
  }
  return faults
}

function describeIssue(issue: z.core.$ZodIssue, values: unknown, where: (path: string) => string): string[] {
  const path = issue.path.join('.')
  if (issue.code === 'unrecognized_keys') {
    return issue.keys.map(key => {
      const full = [...issue.path, key].join('.')
      return `${where(full)}${unknownField(full)}`
    })
  }
  const value = getIn(values, issue.path)
  const field = fields.find(candidate => candidate.path === path)
  if (!field) {
    const group = fields.filter(candidate => candidate.path.startsWith(`${path}.`))
    if (value === undefined && path !== '') {
      const required = group.filter(candidate => candidate.default === undefined).slice(0, 1)
      return required.map(({ path, help }) => `${path} is missing: ${help}`)
    }
    return [`${where(path)}${path || 'the configuration'} is ${show(value)}; it must be a group of fields`]
  }
  if (value === undefined) return [`${path} is missing: ${field.help}`]
  return [`${where(path)}${path} is ${show(value)}; it must be ${field.range}`]
}

/** Suggests the field, or group, whose own name is nearest; the path before it decides between equals. */
function unknownField(path: string): string {
  const known = [...fields.map(field => field.path), ...Object.keys(schema.shape)]
  const nameOf = (dotted: string) => dotted.split('.').at(-1)!.toLowerCase().replace(/[-_]/g, '')
  const name = nameOf(path)
  const score = (candidate: string) => distance(name, nameOf(candidate)) + distance(path, candidate) / 1000
  const nearest = known.reduce((a, b) => (score(b) < score(a) ? b : a))
  const isNear = Math.floor(score(nearest)) <= Math.ceil(name.length / 3)
  return `there is no field "${path}"${isNear ? `: did you mean "${nearest}"?` : ''}`
}

function fromText(field: Field, text: string): unknown {
  if (field.type === 'number' && text.trim() !== '' && Number.isFinite(Number(text))) return Number(text)
  if (field.type === 'boolean' && (text === 'true' || text === 'false')) return text === 'true'
  return text
}

function readConfigFile(file: string) {
  let text: string
  try {
    text = readFileSync(file, 'utf8')
  } catch (cause) {
    throw new RapoError('ERR_RAPO_CONFIG', `cannot read ${file}: ${(cause as Error).message}`, { cause })
  }
  const lines = new LineCounter()
  const document = parseDocument(text, { lineCounter: lines, prettyErrors: false, logLevel: 'error' })
  const error = document.errors[0]
  if (error) {
    throw new RapoError('ERR_RAPO_CONFIG', `${file}:${lines.linePos(error.pos[0]).line}: ${error.message}`)
  }
  let values: unknown
  try {
    values = document.toJS() ?? {}
  } catch (cause) {
    // Aliases that would grow without bound.
    throw new RapoError('ERR_RAPO_CONFIG', `${file}: ${(cause as Error).message}`, { cause })
  }
  if (typeof values !== 'object' || values === null || Array.isArray(values)) {
    throw new RapoError('ERR_RAPO_CONFIG', `${file} must hold groups of fields, such as model: and data:`)
  }
  const lineOf = (path: readonly string[]) => {
    const node = document.getIn(path, true) as { range?: [number, number, number] | null } | undefined
    return node?.range ? lines.linePos(node.range[0]).line : undefined
  }
  return { values: values as Record<string, unknown>, lineOf }
}

/** As a file that loadConfig reads back to the same configuration. */
export function stringifyConfig(config: Config): string {
  return stringify(dropUndefined(config))
}

function getIn(values: unknown, path: readonly PropertyKey[]): unknown {
  return path.reduce<unknown>(
    (node, key) => (node as Record<PropertyKey, unknown> | undefined)?.[key],
    values,
  )
}

function setIn(values: Record<string, unknown>, path: string, value: unknown): void {
  const [group, name] = path.split('.') as [string, string]
  const current = values[group]
  // A group that is not an object stays, for the schema to name.
  if (current !== undefined && (typeof current !== 'object' || current === null)) return
  values[group] = { ...current, [name]: value }
}

function dropUndefined<T extends object>(values: T): Partial<T> {
  return Object.fromEntries(Object.entries(values).filter(([, value]) => value !== undefined)) as Partial<T>
}

function show(value: unknown): string {
  const text = asText(value)
  return text.length > 60 ? `${text.slice(0, 60)}…` : text
}

function asText(value: unknown): string {
  try {
    return JSON.stringify(value) ?? String(value)
  } catch {
    return inspect(value, { breakLength: Infinity }) // a value that holds itself, or a bigint
  }
}

/** What the engine is told of a run. */
export function trainingOptions(
  { model, optimizer, objective }: Config,
  referenceDir: string,
): PolicyOptions {
  const { beta1, beta2, eps, weightDecay, maxGradNorm, recompute } = optimizer
  return {
    dtype: model.dtype,
    device: model.device as Device,
    ...(objective.penalty !== 'none' && { referenceDir }),
    adamw: { beta1, beta2, eps, weightDecay },
    maxGradNorm,
    recompute,
  }
}

export function requireField(name: string, value: string, help: string): void {
  if (!value) throw new RapoError('ERR_RAPO_CONFIG', `${name} is missing: ${help}`)
}
