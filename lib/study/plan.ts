/** A study: variants of one configuration, each trained with several seeds (docs/studies.md). */
import path from 'node:path'
import { z } from 'zod'
import { RapoError } from '../base/errors.js'
import { didYouMean } from '../base/nearest.js'
import type { Config } from '../config/config.js'
import { readConfigFile } from '../config/file.js'
import { loadConfig } from '../config/load.js'

/** One variant, and where its runs lie. */
export interface Variant {
  readonly name: string
  /** The variant's own directory; each seed has a run directory in it. */
  readonly dir: string
  /** Without run.seed and run.output, which each run has of its own. */
  readonly config: Config
}

export interface StudyPlan {
  /** Where everything goes. */
  readonly output: string
  readonly seeds: readonly number[]
  readonly variants: readonly Variant[]
  /** The variant that differences are taken to. */
  readonly baseline: string
  /** Whether model.dir is measured untrained, too. */
  readonly hasBase: boolean
}

export interface StudyOptions {
  /** Take the file's `quick` section: a small version of the same study. */
  readonly quick?: boolean
  /** In place of the file's. */
  readonly output?: string
}

const fieldValues = z.record(z.string(), z.unknown())
const seeds = z.union([z.int().min(1).max(1000), z.array(z.int().min(0)).min(1).refine(isDistinct)])
const variantNames = z.array(z.string()).min(1)
const schema = z.strictObject({
  config: z.string().min(1),
  output: z.string().min(1).optional(),
  seeds: seeds.default(5),
  base: z.boolean().default(true),
  baseline: z.string().optional(),
  fields: fieldValues.default({}),
  variants: z
    .record(z.string().min(1), fieldValues.nullable())
    .refine(variants => Object.keys(variants).length > 0),
  quick: z
    .strictObject({
      seeds: seeds.default(2),
      variants: variantNames.optional(),
      fields: fieldValues.default({}),
    })
    .optional(),
})

/** Reads a study's file and every configuration that it leads to. Throws ERR_RAPO_CONFIG naming the file and the field. */
export function readStudy(file: string, options: StudyOptions = {}): StudyPlan {
  const fault = (text: string) => new RapoError('ERR_RAPO_CONFIG', `${path.resolve(file)}: ${text}`)
  const study = parseStudy(file, fault)
  const { quick } = study
  if (options.quick && !quick) throw fault('--quick needs a section "quick", and there is none')
  const small = options.quick ? quick : undefined
  const known = Object.keys(study.variants)
  const wanted = small?.variants ?? known
  for (const [field, names] of [
    ['quick.variants', wanted],
    ['baseline', study.baseline === undefined ? [] : [study.baseline]],
  ] as const) {
    const stranger = names.find(name => !known.includes(name))
    if (stranger !== undefined)
      throw fault(`${field}: there is no variant "${stranger}"; the variants are ${known.join(', ')}`)
  }
  const name = path.parse(file).name
  const output = options.output ?? study.output ?? path.join('runs', options.quick ? `${name}-quick` : name)
  const variants = wanted.map(name => {
    const { config = study.config, ...own } = study.variants[name] ?? {}
    if (typeof config !== 'string')
      throw fault(
        `variants.${name}.config must be the path of a configuration, not ${JSON.stringify(config)}`,
      )
    const values = { ...study.fields, ...own, ...small?.fields }
    const reserved = ['run.seed', 'run.output'].find(field => field in values)
    if (reserved !== undefined)
      throw fault(`variants.${name}: each run gets its own ${reserved}; leave it out`)
    try {
      return { name, dir: path.join(output, slug(name)), config: loadConfig(config, values) }
    } catch (error) {
      if (!(error instanceof RapoError)) throw error
      throw new RapoError('ERR_RAPO_CONFIG', fault(`variants.${name}: ${error.message}`).message, {
        cause: error,
      })
    }
  })
  for (const [i, { name, dir }] of variants.entries()) {
    const twin = variants.slice(0, i).find(other => other.dir === dir)
    if (twin) throw fault(`the variants "${twin.name}" and "${name}" would share the directory ${dir}`)
  }
  if (study.base && new Set(variants.map(({ config }) => config.model.dir)).size > 1) {
    throw fault('base: the variants begin with different models; set base: false')
  }
  const chosen = small?.seeds ?? study.seeds
  return {
    output,
    variants,
    seeds: typeof chosen === 'number' ? Array.from({ length: chosen }, (_, i) => i + 1) : chosen,
    baseline: wanted.find(name => name === study.baseline) ?? wanted[0]!,
    hasBase: study.base,
  }
}

/** The run directory of one seed of a variant. */
export const runDir = ({ dir }: Variant, seed: number) => path.join(dir, `seed-${seed}`)

/** Where the base model is measured. */
export const baseDir = ({ output }: StudyPlan) => path.join(output, 'base')

function parseStudy(file: string, fault: (text: string) => RapoError) {
  const { values } = readConfigFile(file)
  const result = schema.safeParse(values)
  if (result.success) return result.data
  if ('model' in values || 'task' in values)
    throw fault('this is the configuration of a run; a study names it in its field config (docs/studies.md)')
  // An unknown field first: what is missing may be the same one, misspelled.
  const issues = result.error.issues.toSorted((a, b) => Number(isStranger(b)) - Number(isStranger(a)))
  throw fault(issues.flatMap(issue => describeIssue(issue, values)).join('\n'))
}

const isStranger = ({ code }: z.core.$ZodIssue) => code === 'unrecognized_keys'

/** What the fields must be. Those of a variant have their faults told by loadConfig. */
const wanted: Readonly<Record<string, string>> = {
  config: 'the path of a configuration (docs/studies.md)',
  output: 'a text that is not empty',
  seeds: 'a number of seeds from 1 to 1000, or a list of different whole numbers ≥ 0',
  base: 'true or false',
  baseline: 'the name of a variant',
  fields: 'fields of the configuration and their values, such as run.steps: 100',
  variants: 'one variant or several: each has a name, and below it the fields in which it differs',
  quick: 'a group of the fields seeds, variants and fields',
  'quick.seeds': 'a number of seeds from 1 to 1000, or a list of different whole numbers ≥ 0',
  'quick.variants': 'a list of names of variants',
  'quick.fields': 'fields of the configuration and their values',
}

function describeIssue(issue: z.core.$ZodIssue, values: Record<string, unknown>): string[] {
  const place = issue.path.join('.')
  if (issue.code === 'unrecognized_keys') {
    const within = place === '' ? '' : `${place}.`
    const known = Object.keys(wanted).filter(name => name.startsWith(within))
    return issue.keys.map(key => `there is no field "${within}${key}"${didYouMean(`${within}${key}`, known)}`)
  }
  const field = Object.keys(wanted).findLast(name => place === name || place.startsWith(`${name}.`)) ?? place
  const value = field
    .split('.')
    .reduce<unknown>((node, key) => (node as Record<string, unknown>)?.[key], values)
  return [
    `${field} ${value === undefined ? 'is missing' : `is ${JSON.stringify(value)}`}; it must be ${wanted[field]}`,
  ]
}

function isDistinct(values: readonly number[]): boolean {
  return new Set(values).size === values.length
}

/** A name as a directory's: lower case, with hyphens. */
function slug(name: string): string {
  const text = name
    .toLowerCase()
    .normalize('NFKD')
    .replace(/[^\p{L}\p{N}.]+/gu, '-')
    .replace(/^[-.]+|[-.]+$/g, '')
  return text === '' || text === 'base' ? `variant-${text}` : text
}
