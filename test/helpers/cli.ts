/** The command line in a process of its own. It runs from dist/, as it is shipped, brought up to date here. */
import { spawn } from 'node:child_process'
import { fileURLToPath } from 'node:url'
// @ts-expect-error The scripts are plain JavaScript.
import { writeDist } from '../../scripts/dist.mjs'

await writeDist()

/** The program and its first argument. */
export const cli = [
  process.execPath,
  fileURLToPath(new URL('../../dist/cli/cli.js', import.meta.url)),
] as const

export interface CliResult {
  code: number | null
  stdout: string
  stderr: string
}

/** Starts `rapo ...args`. `done` settles with the exit code and all that was printed. */
export function startCli(args: readonly string[], env: NodeJS.ProcessEnv = {}) {
  const child = spawn(cli[0], [cli[1], ...args], { env: { ...process.env, ...env } })
  const result: CliResult = { code: null, stdout: '', stderr: '' }
  child.stdout.on('data', data => (result.stdout += data))
  child.stderr.on('data', data => (result.stderr += data))
  const done = new Promise<CliResult>((resolve, reject) => {
    child.on('error', reject)
    child.on('close', code => resolve({ ...result, code }))
  })
  return { child, done }
}
