/** Results of a command, one JSON object a line, written as they come. */
import { closeSync, fsyncSync, openSync, realpathSync, renameSync, statSync, writeFileSync } from 'node:fs'
import { RapoError } from '../base/errors.js'
import { checkWritable, ioGuard } from '../base/files.js'
import { toJsonLines } from '../base/jsonl.js'
import { plural, printLine } from '../base/text.js'

export interface LineOutput {
  /** Throws ERR_RAPO_IO. */
  write(values: readonly object[]): void
  /** All is written. */
  finish(): void
  /** Not all is: the error, with the place of what is there. */
  fail(error: unknown): unknown
}

/**
 * Standard output, or a file: that one gets its name when it is whole, until then it is FILE.partial, where whole lines
 * stay if the command fails. Nothing is made before the first line. Throws ERR_RAPO_IO where the file cannot be written.
 */
export function openOutput(file: string | undefined): LineOutput {
  if (file === undefined) {
    // Still the same JSON, but what a model wrote cannot steer a terminal.
    const write = (values: readonly object[]) => {
      for (const line of toJsonLines(values)) printLine(line.trimEnd())
    }
    return { write, finish: () => {}, fail: error => error }
  }
  checkWritable(file)
  const found = statSync(file, { throwIfNoEntry: false })
  // A pipe or a device is written to as it is.
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
