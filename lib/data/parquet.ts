/** Reads the rows of a Parquet file. 64-bit integers, decimals and float32 numbers keep exactly their digits. */
import type { AsyncBuffer, SchemaElement, SchemaTree } from 'hyparquet'

/** The rows as plain values. Throws if the bytes are not a complete Parquet file. */
export async function readParquet(content: Uint8Array): Promise<unknown[]> {
  const { parquetMetadata, parquetReadObjects, parquetSchema } = await import('hyparquet')
  const { compressors } = await import('hyparquet-compressors')
  // Copied, because a small Buffer is a part of a buffer that others share.
  const bytes = Uint8Array.from(content).buffer
  const file: AsyncBuffer = { byteLength: bytes.byteLength, slice: (start, end) => bytes.slice(start, end) }
  const metadata = parquetMetadata(bytes)
  const decimals = new Map<SchemaElement, number>()
  for (const element of metadata.schema) {
    if (element.converted_type !== 'DECIMAL' && element.logical_type?.type !== 'DECIMAL') continue
    // hyparquet would turn decimals into floating-point numbers. Without these marks it returns the stored integers.
    decimals.set(element, element.scale ?? 0)
    delete element.converted_type
    delete element.logical_type
  }
  // utf8: false, since the bytes of a decimal would otherwise be read as a text.
  const rows = await parquetReadObjects({ file, metadata, compressors, utf8: false })
  const root = parquetSchema(metadata)
  return rows.map(row => plainObject(row, root, decimals))
}

type Decimals = ReadonlyMap<SchemaElement, number>

function plainObject(value: object, { children }: SchemaTree, decimals: Decimals): Record<string, unknown> {
  const schemaOf = new Map(children.map(child => [child.element.name, child]))
  return Object.fromEntries(
    Object.entries(value).map(([name, item]) => [name, plain(item, schemaOf.get(name), decimals)]),
  )
}

function plain(value: unknown, schema: SchemaTree | undefined, decimals: Decimals): unknown {
  if (value === null || value === undefined) return value
  if (Array.isArray(value)) {
    // A list is a group that holds one repeated group, which holds one element. A repeated column is itself the element.
    const isList = schema?.element.repetition_type !== 'REPEATED' && schema?.children.length === 1
    const inner = isList ? (schema.children[0]!.children[0] ?? schema.children[0]) : schema
    return value.map(item => plain(item, inner, decimals))
  }
  const scale = schema && decimals.get(schema.element)
  if (scale !== undefined) return decimalText(unscaled(value), scale)
  if (typeof value === 'bigint') return Number.isSafeInteger(Number(value)) ? Number(value) : String(value)
  if (typeof value === 'number' && schema?.element.type === 'FLOAT') return shortestFloat(value)
  if (value instanceof Uint8Array) return new TextDecoder('utf-8', { fatal: true }).decode(value)
  if (typeof value !== 'object' || value instanceof Date || ArrayBuffer.isView(value)) return value
  return schema ? plainObject(value, schema, decimals) : value
}

/** The integer behind a decimal: a number, or bytes in two's complement, the most significant first. */
function unscaled(value: unknown): bigint {
  if (!(value instanceof Uint8Array)) return BigInt(value as number | bigint)
  const unsigned = value.reduce((sum, byte) => (sum << 8n) | BigInt(byte), 0n)
  return BigInt.asIntN(8 * value.length, unsigned)
}

/** unscaled / 10^scale with all its digits: decimalText(-1250n, 3) → '-1.250'. */
function decimalText(unscaled: bigint, scale: number): string {
  const sign = unscaled < 0n ? '-' : ''
  const digits = String(unscaled < 0n ? -unscaled : unscaled).padStart(scale + 1, '0')
  const whole = digits.slice(0, digits.length - scale)
  return `${sign}${whole}${scale > 0 ? `.${digits.slice(-scale)}` : ''}`
}

/** The double with the fewest digits that is this float32: 0.1 for 0.10000000149011612. */
function shortestFloat(value: number): number {
  for (let digits = 1; digits <= 9; digits++) {
    const short = Number(value.toPrecision(digits))
    if (Math.fround(short) === value) return short
  }
  return value
}
