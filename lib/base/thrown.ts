/** Says of what a user's module threw where the module did so. */
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { reasonOf } from './errors.js'
import { packageRoot } from './package.js'
import { hasCompiled, sourceColumn } from './typescript.js'

interface Frame {
  readonly file: string
  readonly line: number
  readonly column?: number
  /** Whether it is named as a URL: then Node.js has imported the file itself. */
  readonly isUrl: boolean
}

/** What was thrown, as a text; of an Error with the place in the user's own file, such as `no such key (verifier.ts:12:9)`. */
export function reasonAndPlace(thrown: unknown): string {
  const place = placeOf(thrown)
  return place === undefined ? reasonOf(thrown) : `${reasonOf(thrown)} (${place})`
}

/** FILE:LINE:COLUMN of the innermost frame in a file that is neither rapo's nor a package's. */
function placeOf(thrown: unknown): string | undefined {
  const frames = framesOf(thrown).filter(({ file }) => isOwn(file) || !/[\\/]node_modules[\\/]/.test(file))
  const index = frames.findIndex(({ file }) => !isOwn(file))
  const frame = frames[index]
  // Where rapo itself threw, a file that nothing of rapo has called is the program that called rapo.
  if (!frame || (index > 0 && !frames.slice(index).some(({ file }) => isOwn(file)))) return undefined
  return showPlace(frame.file, frame.line, columnOf(frame))
}

/** A file in the working directory has its relative name. */
export function showPlace(file: string, line: number, column?: number): string {
  const near = path.relative('', file)
  const name = near.startsWith('..') || path.isAbsolute(near) ? file : near
  return `${name}:${line}${column === undefined ? '' : `:${column}`}`
}

function columnOf({ file, line, column, isUrl }: Frame): number | undefined {
  if (column === undefined || isUrl || !hasCompiled()) return column
  return /\.[cm]?ts$/.test(file) ? sourceColumn(file, line, column) : undefined
}

/** The files that an Error's stack names. Somebody else's code may have made it, so that it may be anything. */
function framesOf(thrown: unknown): Frame[] {
  try {
    const { stack, message } = thrown as Error
    const [head = '', ...lines] = stack!.replace(message, '').split('\n')
    // Of an import that a module lacks, Node.js writes the place above the message.
    const [, file, line] = /^(file:.*):(\d+)$/.exec(head) ?? []
    if (file !== undefined) return [{ file: fileOf(file), line: Number(line), isUrl: true }]
    // Beyond its own loader is whoever asked for the module.
    const loader = lines.findIndex(line => line.includes('node:internal/modules/'))
    return lines.slice(0, loader < 0 ? undefined : loader).flatMap(line => {
      const [, call] = /^ +at (?:async )?(.*)$/.exec(line) ?? []
      const [, place = ''] = /^[^(]*\((.*)\)$/.exec(call ?? '') ?? [undefined, call]
      const [, name = '', row, column] = /^(.*):(\d+):(\d+)$/.exec(place) ?? []
      const file = fileOf(name)
      const isUrl = file !== name
      return path.isAbsolute(file) ? [{ file, line: Number(row), column: Number(column), isUrl }] : []
    })
  } catch {
    return []
  }
}

/** A URL's file, without the query with which some loaders tell versions of a module apart. */
const fileOf = (name: string) => (name.startsWith('file:') ? fileURLToPath(name.replace(/\?.*$/, '')) : name)

/** Whether it is code of rapo, and not of a program in whose project rapo happens to lie. */
function isOwn(file: string): boolean {
  const [folder = ''] = path.relative(packageRoot, file).split(path.sep)
  return packageRoot !== '' && ['bin', 'dist', 'esm', 'lib'].includes(folder)
}
