/** One set-up at a time per cache directory; the others wait. */
import { mkdirSync } from 'node:fs'
import { join } from 'node:path'
import lockfile from 'proper-lockfile'
import { RapoError } from '../base/errors.js'

/** A lock that its owner has not refreshed for this long belongs to a process that is gone. */
const STALE_MS = 10_000

/**
 * Runs body while holding the cache's lock. onWait is called once where another process holds it.
 * The signal that body gets is aborted should the lock be lost (a machine that slept): two builds must not mix.
 */
export async function withLock<T>(
  cache: string,
  onWait: () => void,
  body: (signal: AbortSignal) => Promise<T>,
): Promise<T> {
  try {
    mkdirSync(cache, { recursive: true })
  } catch (cause) {
    throw new RapoError(
      'ERR_RAPO_SETUP',
      `the cache directory ${cache} cannot be made; RAPO_CACHE names another`,
      { cause },
    )
  }
  const lost = new AbortController()
  const acquire = (forever: boolean) =>
    lockfile.lock(cache, {
      lockfilePath: join(cache, 'setup.lock'),
      stale: STALE_MS,
      update: STALE_MS / 5,
      retries: { retries: forever ? 1 : 0, forever, factor: 1, minTimeout: 200 },
      onCompromised: error => lost.abort(error),
    })
  const release = await acquire(false).catch(error => {
    if (error.code !== 'ELOCKED') throw error
    onWait()
    return acquire(true)
  })
  try {
    return await body(lost.signal)
  } finally {
    if (!lost.signal.aborted) await release()
  }
}
