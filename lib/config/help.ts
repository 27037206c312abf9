/** What `--help` shows of every field: its option, its range in words, its default and its help line. */
import { z } from 'zod'
import { schema } from './config.js'
import { presets } from './objective.js'

/** A field as `--help` shows it. */
export interface Field {
  /** For example objective.klCoef. */
  readonly path: string
  /** For example --objective.kl-coef. */
  readonly option: string
  readonly type: 'number' | 'boolean' | 'string'
  /** The range in words: "a number ≥ 0". */
  readonly range: string
  readonly default: unknown
  /** Whether there must be a value, and no default serves. */
  readonly isRequired: boolean
  /** The values that are names. */
  readonly names: readonly string[]
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
  /** The range in words, for schemas whose own constraints do not explain it. */
  range?: string
  /** Beside those of `enum`. */
  names?: string[]
  default?: unknown
  description?: string
  properties?: Record<string, JsonSchema>
  required?: string[]
}

/** Every field, in the order declared. */
export const fields: readonly Field[] = listFields(z.toJSONSchema(schema, { io: 'input' }) as JsonSchema)

function listFields(node: JsonSchema, path: readonly string[] = [], isRequired = true): Field[] {
  const { properties, required = [] } = node
  if (properties) {
    return Object.entries(properties).flatMap(([name, child]) =>
      listFields(child, [...path, name], isRequired && required.includes(name)),
    )
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
      isRequired,
      names: node.names ?? (node.enum ?? []).map(String),
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

/** Of a line, behind the preset's name. */
const PRESET_COLUMNS = 84

/** The presets, as `--help` shows them. */
export function describePresets(): string {
  return Object.entries(presets)
    .map(([name, values]) => {
      const parts = Object.entries(values).map(([field, value]) => `${field} ${value}`)
      const lines: string[] = []
      for (const part of parts) {
        const line = lines.at(-1)
        if (line !== undefined && line.length + part.length < PRESET_COLUMNS)
          lines.push(`${lines.pop()}, ${part}`)
        else lines.push(part)
      }
      return `  ${name.padEnd(8)} ${lines.join(`,\n${' '.repeat(11)}`)}`
    })
    .join('\n')
}
