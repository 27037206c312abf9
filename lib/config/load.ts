/** Reads a configuration from a file or an object. One error lists everything that is wrong with it. */
import { inspect } from 'node:util'
import { stringify } from 'yaml'
import type { z } from 'zod'
import { RapoError } from '../base/errors.js'
import { didYouMean } from '../base/nearest.js'
import { type Config, crossFaults, schema } from './config.js'
import { resolveCorrection } from './correction.js'
import { readConfigFile } from './file.js'
import { type Field, fields } from './help.js'
import { resolveObjective } from './objective.js'
import { dropUndefined } from './values.js'

/**
 * The configuration of a YAML or JSON file with overrides on top: values by dotted path ('objective.klCoef'), as text
 * (from a command line) or as they are. Throws ERR_RAPO_CONFIG, which lists everything that is wrong: field, value, range,
 * and the file and line of a value that comes from a file.
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

/** Like loadConfig, but from an object. Throws ERR_RAPO_CONFIG. */
export function parseConfig(values: unknown, where: (path: string) => string = () => ''): Config {
  const result = schema.safeParse(values)
  // An unknown field first: what is missing may be the same one, misspelled.
  const issues = result.success ? [] : result.error.issues
  const rank = ({ code }: z.core.$ZodIssue) => (code === 'unrecognized_keys' ? 0 : 1)
  const faults = issues
    .toSorted((a, b) => rank(a) - rank(b))
    .flatMap(issue => describeIssue(issue, values, where))
  if (result.success) {
    const objective = resolveObjective(result.data.objective)
    const { engine } = result.data.rollouts
    const correction = resolveCorrection(result.data.correction, { engine, surrogate: objective.surrogate })
    const config = { ...result.data, objective, correction }
    faults.push(...crossFaults(config).map(([path, text]) => `${where(path)}${path} ${text}`))
    if (faults.length === 0) return config
  }
  throw new RapoError('ERR_RAPO_CONFIG', faults.join('\n'))
}

function describeIssue(issue: z.core.$ZodIssue, values: unknown, where: (path: string) => string): string[] {
  // An item of a list is a fault of its field.
  const isField = (path: string) => fields.some(candidate => candidate.path === path)
  const outer = issue.path.findIndex((_, i) => isField(issue.path.slice(0, i + 1).join('.')))
  const place = outer < 0 ? issue.path : issue.path.slice(0, outer + 1)
  const path = place.join('.')
  if (issue.code === 'unrecognized_keys') {
    return issue.keys.map(key => {
      const full = [...issue.path, key].join('.')
      return `${where(full)}${unknownField(full)}`
    })
  }
  const value = getIn(values, place)
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
  const meant = typeof value === 'string' ? didYouMean(value, field.names) : ''
  return [`${where(path)}${path} is ${show(value)}; it must be ${field.range}${meant}`]
}

/** Suggests the field or group with the most similar name. Among equally similar names the path before the name decides. */
function unknownField(path: string): string {
  const known = [...fields.map(field => field.path), ...Object.keys(schema.shape)]
  const ownName = (dotted: string) => dotted.split('.').at(-1)!
  return `there is no field "${path}"${didYouMean(path, known, ownName)}`
}

function fromText(field: Field, text: string): unknown {
  if (field.type === 'number' && text.trim() !== '' && Number.isFinite(Number(text))) return Number(text)
  if (field.type === 'boolean' && (text === 'true' || text === 'false')) return text === 'true'
  return text
}

/** The text of a file from which loadConfig reads the same configuration. */
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
  // A group that is not an object stays as it is: the schema reports it.
  if (current !== undefined && (typeof current !== 'object' || current === null)) return
  values[group] = { ...current, [name]: value }
}

function show(value: unknown): string {
  const text = asText(value)
  return text.length > 60 ? `${text.slice(0, 60)}…` : text
}

function asText(value: unknown): string {
  try {
    return JSON.stringify(value) ?? String(value)
  } catch {
    return inspect(value, { breakLength: Infinity }) // a value that contains itself, or a bigint
  }
}
