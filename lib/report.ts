/** The report on one or more runs: one HTML file that needs nothing else. */
import { mkdirSync } from 'node:fs'
import path from 'node:path'
import { loadRuns } from './report/load.js'
import { renderPage } from './report/page.js'
import { asIoError, writeWhole } from './train/run.js'

export interface ReportOptions {
  /** Run directories (docs/files.md), in the order in which they are shown. */
  readonly runs: readonly string[]
  /** Directory with the base model's eval.json. Default: the only run without metrics.jsonl, where there is one. */
  readonly base?: string
  /** The HTML file; replaced where it exists, its directory is made where it does not. */
  readonly output: string
  /** What the page says about when it was made. Default: now. */
  readonly made?: Date
}

/** Throws RapoError naming the file, and the line or field, that cannot be read; then output is left as it was. */
export async function writeReport({ runs, base, output, made = new Date() }: ReportOptions): Promise<void> {
  const page = renderPage(await loadRuns(runs, base), made)
  try {
    mkdirSync(path.dirname(output), { recursive: true })
  } catch (error) {
    throw asIoError(`cannot make the directory of ${output}`, error)
  }
  writeWhole(output, page)
}
