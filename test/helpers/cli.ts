/** The command line in a process of its own. */
import { spawn } from 'node:child_process'

export interface CliResult {
  code: number | null
  stdout: string
  stderr: string
}

/** Starts `rapo ...args`. `done` settles with the exit code and all that was printed. */
export function startCli(args: readonly string[], env: NodeJS.ProcessEnv = {}) {
  const child = spawn(process.execPath, ['--import', 'tsx', 'lib/cli/cli.ts', ...args], {
    env: { ...process.env, ...env },
  })
  const result: CliResult = { code: null, stdout: '', stderr: '' }
  child.stdout.on('data', data => (result.stdout += data))
  child.stderr.on('data', data => (result.stderr += data))
  const done = new Promise<CliResult>((resolve, reject) => {
    child.on('error', reject)
    child.on('close', code => resolve({ ...result, code }))
  })
  return { child, done }
}
