/** Commands that run in several processes: who starts them, who speaks, and how they fail. */
import { writeFileSync } from 'node:fs'
import { setTimeout as sleep } from 'node:timers/promises'
import { RapoError } from '../base/errors.js'
import { printError } from '../base/text.js'
import { PeerError } from '../world/peer-error.js'
import { type Place, placeFromEnv } from '../world/place.js'
import { isApart } from '../world/world.js'

/**
 * Runs this command in so many processes where it was asked to, and is not one of them yet. Returns whether it did; the exit
 * code of this process is then theirs. Throws ERR_RAPO_CONFIG where a launcher started another number of processes.
 */
export async function launchHere(processes: number | undefined): Promise<boolean> {
  if (processes === undefined) return false
  const place = placeFromEnv()
  if (place && place.size !== processes) {
    throw new RapoError(
      'ERR_RAPO_CONFIG',
      `--processes is ${processes}, but a launcher started ${place.size} processes: leave the option out`,
    )
  }
  if (place || processes === 1) return false
  const { launchRanks } = await import('../world/launch.js')
  const code = await launchRanks({
    command: [process.execPath, ...process.execArgv, ...process.argv.slice(1)],
    processes,
    onFailure: message => printError(`rapo: ${message}; the other processes are ended`),
  })
  if (code !== 0) process.exitCode = code
  return true
}

/** Throws ERR_RAPO_CONFIG for a command whose work several processes would each do, and write over each other's results. */
export function refuseRanks(command: string): void {
  const place = placeFromEnv()
  if (!place) return
  throw new RapoError(
    'ERR_RAPO_CONFIG',
    `${command} is the work of one process, but a launcher started ${place.size} processes: start it without the launcher`,
  )
}

/** Of several processes rank 0 alone shows what they do. */
export function isSpeaker(): boolean {
  return (placeFromEnv()?.rank ?? 0) === 0
}

/** Milliseconds that a process waits whose error is not its own: launchers take the first that ends for the cause. */
const AFTER_OTHERS_MS = 1_000

/** Prints what ended this process, one of several or alone, and lets the one that failed first end first. */
export async function reportFailure(error: unknown, text: string): Promise<void> {
  const place = placeOrNone()
  const rank = place?.rank ?? 0
  const isPeers = error instanceof PeerError
  const isAbort = error instanceof RapoError && error.code === 'ERR_RAPO_ABORTED'
  // The other rank has printed it; rank 0 does so too, since people look there. All ranks are told to stop at once.
  if (rank === 0 || !(isPeers || isAbort)) printError(rank > 0 ? `rank ${rank}: ${text}` : text)
  if (!place) return
  if (isPeers || isApart(error)) await sleep(AFTER_OTHERS_MS)
  else writeErrorFile(text)
}

function placeOrNone(): Place | undefined {
  try {
    return placeFromEnv()
  } catch {
    return undefined
  }
}

/** Where torchrun looks for the cause. */
function writeErrorFile(text: string): void {
  const file = process.env.TORCHELASTIC_ERROR_FILE
  if (!file) return
  const extraInfo = { timestamp: String(Math.floor(Date.now() / 1000)) }
  try {
    writeFileSync(file, JSON.stringify({ message: { message: text, extraInfo } }))
  } catch {
    // stderr has it.
  }
}
