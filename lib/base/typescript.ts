/** TypeScript of the user's that Node.js cannot run by itself: jiti compiles it. */
import { readFileSync } from 'node:fs'
import { SourceMap } from 'node:module'
import { pathToFileURL } from 'node:url'

/** Compiles a file again, with a source map; undefined until a module has needed the compiler. */
let compileAgain: ((file: string) => string) | undefined

export async function importTypeScript(file: string): Promise<Readonly<Record<string, unknown>>> {
  const { createJiti } = await import('jiti')
  compileAgain = await compilerFor(file)
  return createJiti(pathToFileURL(file).href).import(file)
}

async function compilerFor(file: string) {
  const { createJiti } = await import('jiti')
  const jiti = createJiti(pathToFileURL(file).href, { sourceMaps: true, fsCache: false })
  return (file: string) =>
    jiti.transform({ source: readFileSync(file, 'utf8'), filename: file, ts: /ts$/.test(file), async: true })
}

/** Whether modules have been compiled: their code has the lines of the source, but not its columns. */
export const hasCompiled = () => compileAgain !== undefined

/** The column, from 1, in the source of what stands in the compiled code there; undefined if nobody can tell. */
export function sourceColumn(file: string, line: number, column: number): number | undefined {
  // Node.js counts the head of the function that jiti puts around a module.
  if (!compileAgain || line === 1) return undefined
  try {
    const [, map] = /sourceMappingURL=data:[^,]*;base64,([\w+/=]+)/.exec(compileAgain(file)) ?? []
    const sourceMap = new SourceMap(JSON.parse(Buffer.from(map!, 'base64').toString()))
    const found = sourceMap.findEntry(line - 1, column - 1)
    return 'originalLine' in found && found.originalLine === line - 1 ? found.originalColumn + 1 : undefined
  } catch {
    return undefined
  }
}

/** Where a file is no valid code, as line and column from 1; undefined if the compiler finds nothing. */
export async function syntaxFault(file: string): Promise<readonly [number, number] | undefined> {
  const compile = await compilerFor(file)
  // jiti writes the fault into the code, which throws it.
  const [, fault] = /^exports\.__JITI_ERROR__ = (.*)$/m.exec(compile(file)) ?? []
  if (fault === undefined) return undefined
  const { line, column } = JSON.parse(fault)
  return [line, column + 1]
}
