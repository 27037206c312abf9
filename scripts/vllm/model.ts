/**
 * The bundled model with heads of 32 instead of 16 numbers, which is the fewest that vLLM's attention on the CPU takes: the same
 * function of the same tokens. Every vector of the residual stream gets as many zeros behind it; norms and scores make up for that.
 */
import { copyFileSync, mkdirSync, readdirSync, readFileSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { readSafetensors, type StoredTensor, writeSafetensors } from '../../test/helpers/engine-util.js'

export const bundled = fileURLToPath(new URL('../../models/countdown-base', import.meta.url))

/** @param tied as the bundled model is; else the output layer is a tensor of its own, with the same values */
export function writePaddedModel(dir: string, { tied = false } = {}): void {
  mkdirSync(dir, { recursive: true })
  for (const name of readdirSync(bundled)) {
    if (!/safetensors|^config\.json$/.test(name)) copyFileSync(path.join(bundled, name), path.join(dir, name))
  }
  const config = JSON.parse(readFileSync(path.join(bundled, 'config.json'), 'utf8'))
  const { hidden_size: width, num_attention_heads: heads, num_key_value_heads: kvHeads } = config
  const tensors = new Map<string, Matrix>()
  for (const [name, tensor] of readSafetensors(path.join(bundled, 'model.safetensors')))
    tensors.set(name, padded(name, matrixOf(tensor), { width, heads, kvHeads }))
  if (!tied) tensors.set('lm_head.weight', tensors.get('model.embed_tokens.weight')!)
  writeTensors(path.join(dir, 'model.safetensors'), tensors)
  const changed = {
    ...{ ...config, hidden_size: 2 * width, tie_word_embeddings: tied },
    // The mean of the squares is over twice as many numbers.
    rms_norm_eps: config.rms_norm_eps / 2,
  }
  writeFileSync(path.join(dir, 'config.json'), JSON.stringify(changed, null, 2))
}

/** Row after row; a vector is one column. */
interface Matrix {
  readonly rows: number
  readonly columns: number
  readonly isVector: boolean
  readonly values: Float32Array
}

function matrixOf({ shape, values }: StoredTensor): Matrix {
  const [rows = 1, columns = 1] = shape
  return { rows, columns, isVector: shape.length === 1, values }
}

function padded(
  name: string,
  matrix: Matrix,
  { width, heads, kvHeads }: { readonly width: number; readonly heads: number; readonly kvHeads: number },
): Matrix {
  const d = width / heads
  const inOrder = Array.from({ length: d }, (_, i) => i)
  // Rotary positions turn the pair (i, i + d/2) by θ^(−2i/d); in a head of 2d that is the pair (2i, 2i + d).
  const rotated = inOrder.map(i => (i < d / 2 ? 2 * i : d + 2 * (i - d / 2)))
  const headRows = (count: number, place: readonly number[]) => (row: number) =>
    row < count * d ? Math.floor(row / d) * 2 * d + place[row % d]! : row
  const wide = (x: Matrix) => (x.columns === width ? moved(x, { columns: 2 * width }) : x)
  if (name.endsWith('norm.weight')) return scaled(moved(matrix, { rows: 2 * width }), Math.SQRT1_2)
  // Scores are divided by √32 instead of √16.
  if (name.includes('q_proj'))
    return scaled(wide(moved(matrix, { rows: 2 * width, row: headRows(heads, rotated) })), Math.SQRT2)
  if (name.includes('k_proj'))
    return wide(moved(matrix, { rows: 2 * kvHeads * d, row: headRows(kvHeads, rotated) }))
  if (name.includes('v_proj'))
    return wide(moved(matrix, { rows: 2 * kvHeads * d, row: headRows(kvHeads, inOrder) }))
  if (name.includes('o_proj'))
    return moved(matrix, { rows: 2 * width, columns: 2 * width, column: headRows(heads, inOrder) })
  if (name.includes('down_proj')) return moved(matrix, { rows: 2 * width })
  return wide(matrix)
}

/** A larger matrix of zeros with these numbers at other places. */
function moved(
  { rows, columns, isVector, values }: Matrix,
  to: {
    readonly rows?: number
    readonly columns?: number
    readonly row?: (row: number) => number
    readonly column?: (column: number) => number
  },
): Matrix {
  const size = { rows: to.rows ?? rows, columns: to.columns ?? columns }
  const out = new Float32Array(size.rows * size.columns)
  const { row = (r: number) => r, column = (c: number) => c } = to
  for (let r = 0; r < rows; r++) {
    for (let c = 0; c < columns; c++) out[row(r) * size.columns + column(c)] = values[r * columns + c]!
  }
  return { ...size, isVector, values: out }
}

function scaled(matrix: Matrix, factor: number): Matrix {
  return { ...matrix, values: matrix.values.map(x => x * factor) }
}

function writeTensors(file: string, tensors: ReadonlyMap<string, Matrix>): void {
  let end = 0
  const header = Object.fromEntries(
    [...tensors].map(([name, { rows, columns, isVector, values }]) => {
      const begin = end
      end += values.byteLength
      return [name, { dtype: 'F32', shape: isVector ? [rows] : [rows, columns], data_offsets: [begin, end] }]
    }),
  )
  const data = Buffer.concat([...tensors.values()].map(({ values }) => Buffer.from(values.buffer)))
  writeSafetensors(file, { __metadata__: { format: 'pt' }, ...header }, data)
}
