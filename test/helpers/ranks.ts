/** Several processes that are the ranks of one world, for tests. */
import { existsSync } from 'node:fs'
import { createServer } from 'node:net'
import { fileURLToPath } from 'node:url'
import { type LaunchOptions, launchRanks } from '../../lib/world/launch.js'

export interface Ranks {
  readonly exitCode: number
  /** By rank. */
  readonly stdout: readonly string[]
  readonly stderr: readonly string[]
  /** What the launcher said of the first process that failed. */
  readonly failure: string | undefined
}

/** Runs a file of test/helpers in `processes` ranks, and waits for all of them. */
export async function runRanks(
  helper: string,
  processes: number,
  args: readonly string[],
  options: Partial<LaunchOptions> = {},
): Promise<Ranks> {
  const file = fileURLToPath(new URL(helper, import.meta.url))
  // npm run gpu-pack puts JavaScript of its own beside the test's.
  const bundled = file.replace(/ts$/, 'mjs')
  const program = existsSync(bundled) ? [bundled] : ['--import', 'tsx', file]
  return runCommand([process.execPath, ...program, ...args], processes, options)
}

/** The same for any program. */
export async function runCommand(
  command: readonly [string, ...string[]],
  processes: number,
  options: Partial<LaunchOptions> = {},
): Promise<Ranks> {
  const output = { stdout: [] as string[], stderr: [] as string[] }
  let failure: string | undefined
  const exitCode = await launchRanks({
    command,
    processes,
    ...options,
    onFailure: message => {
      failure ??= message
    },
    onOutput(rank, stream, text) {
      output[stream][rank] = (output[stream][rank] ?? '') + text
      options.onOutput?.(rank, stream, text)
    },
  })
  const whole = (texts: string[]) => Array.from({ length: processes }, (_, rank) => texts[rank] ?? '')
  return { exitCode, stdout: whole(output.stdout), stderr: whole(output.stderr), failure }
}

/** A port at which nobody listens, for ranks that meet without a launcher's store. */
export async function freePort(): Promise<number> {
  const server = createServer().listen(0, '127.0.0.1')
  await new Promise(resolve => server.once('listening', resolve))
  const { port } = server.address() as { port: number }
  await new Promise(resolve => server.close(resolve))
  return port
}
