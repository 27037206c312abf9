/** The results of a command, one JSON object per line, written as soon as they are ready. */
import { closeSync, fsyncSync, openSync, realpathSync, renameSync, writeFileSync } from 'node:fs'
import { RapoError } from '../base/errors.js'
import { checkWritable, ioGuard, statOf } from '../base/files.js'
import { toJsonLines } from '../base/jsonl.js'
import { plural, printLine } from '../base/text.js'

export interface LineOutput {
  /** Throws ERR_RAPO_IO. */
  write(values: readonly object[]): void
  /** Ends the output when everything has been written. */
  finish(): void
  /** Ends the output after a failure. Returns the error, with the place of the lines written so far. */
  fail(error: unknown): unknown
}

/**
 * Writes to standard output or to a file. The file is called FILE.partial until it is complete; if the command fails, complete
 * lines stay there. No file is made before the first line. Throws ERR_RAPO_IO if the file cannot be written.
 */
export function openOutput(file: string | undefined): LineOutput {
  if (file === undefined) {
    // The JSON stays the same, but text that a model wrote cannot control the terminal.
    const write = (values: readonly object[]) => {
      for (const line of toJsonLines(values)) printLine(line.trimEnd())
    }
    return { write, finish: () => {}, fail: error => error }
  }
  checkWritable(file)
  const found = statOf(file)
  // Pipes and devices are written directly.
  const isPlain = !found || found.isFile()
  const target = found && isPlain ? realpathSync(file) : file
  const partial = isPlain ? `${target}.partial` : target
  let descriptor: number | undefined
  let lines = 0
  const guarded = (body: () => void) => ioGuard(`cannot write ${partial}`, body)
  const close = () => {
    if (descriptor !== undefined) closeSync(descriptor)
    descriptor = undefined
  }
  return {
    write: values =>
      guarded(() => {
        descriptor ??= openSync(partial, 'w')
        for (const line of toJsonLines(values)) {
          writeFileSync(descriptor, line)
          lines++
        }
      }),
    finish: () =>
      guarded(() => {
        descriptor ??= openSync(partial, 'w')
        if (isPlain) fsyncSync(descriptor)
        close()
        if (isPlain) renameSync(partial, target)
      }),
    fail(error) {
      close()
      if (lines === 0 || !isPlain || !(error instanceof RapoError)) return error
      const message = `${error.message}\nkept: ${plural(lines, 'line')} in ${partial}`
      return new RapoError(error.code, message, { cause: error })
    },
  }
}
