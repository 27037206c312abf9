/**
 * Models by their name on the Hugging Face hub, such as Qwen/Qwen2.5-3B: fetched into the hub's own cache, where other
 * programs find them too, and found there again.
 */
import { createHash, type Hash } from 'node:crypto'
import { createReadStream, createWriteStream, existsSync, readFileSync } from 'node:fs'
import { copyFile, mkdir, rename, rm, stat, symlink, writeFile } from 'node:fs/promises'
import { homedir } from 'node:os'
import path from 'node:path'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import type { ReadableStream } from 'node:stream/web'
import type { ListFileEntry } from '@huggingface/hub'
import lockfile from 'proper-lockfile'
import { RapoError } from './errors.js'
import { asIoError } from './run.js'

export interface HubOptions {
  /** HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE, HF_HUB_CACHE, HF_HOME and XDG_CACHE_HOME as the hub's own programs read them. */
  readonly env?: NodeJS.ProcessEnv
  /** Bytes of all files that are fetched. */
  readonly onProgress?: (done: number, total: number) => void
}

/** What a model needs: no weights in other formats, no pictures. */
const wanted = /^(model[\w.-]*\.safetensors(\.index\.json)?|[\w.-]+\.json|merges\.txt|chat_template\.jinja)$/
/** A connection that breaks is taken up again this many times in a row without a byte more. */
const RETRIES = 3

/**
 * The directory of a model. An existing directory is itself; `owner/name` or `owner/name@revision` is looked up on the
 * hub, and what is missing in the cache is fetched: an interrupted download goes on where it stopped, and every file is
 * checked by size and hash. Where the hub cannot be reached, or HF_HUB_OFFLINE=1 forbids it, a complete cached copy
 * serves. Any other text is returned as it is. Throws ERR_RAPO_IO (network, access, a damaged download) and
 * ERR_RAPO_FORMAT (a repository without safetensors).
 */
export async function resolveModel(model: string, options: HubOptions = {}): Promise<string> {
  const [, name, revision = 'main'] = model.match(/^([\w.-]+\/[\w.-]+?)(?:@([\w./-]+))?$/) ?? []
  if (!name || existsSync(model)) return model
  const env = options.env ?? process.env
  const folder = path.join(cacheOf(env), `models--${name.replace('/', '--')}`)
  const cached = cachedSnapshot(folder, revision)
  if (/^(1|on|yes|true)$/i.test(env.HF_HUB_OFFLINE ?? '')) {
    if (cached) return cached
    throw new RapoError(
      'ERR_RAPO_IO',
      `there is no directory ${model}, and the cache ${folder} has no whole copy of it; HF_HUB_OFFLINE forbids fetching it`,
    )
  }
  try {
    return await fetchSnapshot(name, revision, folder, env, options.onProgress)
  } catch (error) {
    if (cached && error instanceof Unreachable) {
      process.emitWarning(`${error.message}; using the copy of ${model} in the cache`)
      return cached
    }
    throw error
  }
}

class Unreachable extends RapoError {
  constructor(message: string, cause: unknown) {
    super('ERR_RAPO_IO', message, { cause })
  }
}

async function fetchSnapshot(
  name: string,
  revision: string,
  folder: string,
  env: NodeJS.ProcessEnv,
  onProgress: HubOptions['onProgress'],
): Promise<string> {
  const hub = await import('@huggingface/hub')
  const hubUrl = (env.HF_ENDPOINT || 'https://huggingface.co').replace(/\/+$/, '')
  const accessToken = tokenOf(env)
  const access = { hubUrl, ...(accessToken && { accessToken }) }
  const repo = { type: 'model', name } as const

  const { sha, files } = await translated(name, hubUrl, async () => {
    const { sha } = await hub.modelInfo({ ...access, name, revision, additionalFields: ['sha'] })
    const files: ListFileEntry[] = []
    for await (const entry of hub.listFiles({ ...access, repo, revision: sha })) {
      if (entry.type === 'file' && wanted.test(entry.path)) files.push(entry)
    }
    return { sha, files }
  })
  if (
    !files.some(file => file.path === 'config.json') ||
    !files.some(file => /safetensors/.test(file.path))
  ) {
    throw new RapoError('ERR_RAPO_FORMAT', `${name} on ${hubUrl} has no config.json or no model.safetensors`)
  }

  const snapshot = path.join(folder, 'snapshots', sha)
  const missing = files.filter(file => !existsSync(path.join(snapshot, file.path)))
  if (missing.length > 0) {
    await io(`cannot write to the cache ${folder}`, () =>
      Promise.all(
        ['blobs', `snapshots/${sha}`].map(dir => mkdir(path.join(folder, dir), { recursive: true })),
      ),
    )
    // One process at a time writes to a file; the others find it done.
    const release = await lockfile.lock(folder, {
      stale: 10_000,
      retries: { forever: true, factor: 1, retries: 1 },
    })
    try {
      const total = missing.reduce((sum, file) => sum + file.size, 0)
      let before = 0
      for (const file of missing) {
        const blob = path.join(folder, 'blobs', file.lfs?.oid ?? file.oid ?? sha + file.path)
        if (!existsSync(blob)) {
          const url = `${hubUrl}/${name}/resolve/${sha}/${file.path}`
          await download(url, file, blob, accessToken, done => onProgress?.(before + done, total))
        }
        await io(`cannot write to ${snapshot}`, () => link(blob, path.join(snapshot, file.path)))
        before += file.size
        onProgress?.(before, total)
      }
    } finally {
      await release()
    }
  }
  if (revision !== sha) {
    const ref = path.join(folder, 'refs', revision)
    await io(`cannot write ${ref}`, async () => {
      await mkdir(path.dirname(ref), { recursive: true })
      await writeFile(ref, sha)
    })
  }
  return snapshot
}

/** Fetches one file into `blob` by way of blob.incomplete, which a later call goes on with. */
async function download(
  url: string,
  file: ListFileEntry,
  blob: string,
  token: string | undefined,
  onProgress: (done: number) => void,
): Promise<void> {
  const incomplete = `${blob}.incomplete`
  const sizeOf = async () => (await stat(incomplete).catch(() => undefined))?.size ?? 0
  let have = await sizeOf()
  if (have > file.size) {
    await rm(incomplete)
    have = 0
  }
  for (let failures = 0; have < file.size || !existsSync(incomplete); ) {
    const before = have
    try {
      const headers = {
        ...(token && { Authorization: `Bearer ${token}` }),
        ...(have > 0 && { Range: `bytes=${have}-` }),
      }
      const response = await fetch(url, { headers })
      if (!response.ok) {
        await response.body?.cancel()
        throw new RapoError('ERR_RAPO_IO', `cannot fetch ${url}: the hub answered ${response.status}`)
      }
      // A server that knows no ranges sends it all again.
      if (response.status !== 206) have = 0
      const source = Readable.fromWeb((response.body ?? new Blob([]).stream()) as ReadableStream)
      source.on('data', chunk => {
        have += chunk.length
        onProgress(have)
      })
      await pipeline(source, createWriteStream(incomplete, { flags: response.status === 206 ? 'a' : 'w' }))
    } catch (error) {
      if (error instanceof RapoError) throw error
      const { code } = error as NodeJS.ErrnoException
      if (code && /^E(NOSPC|ACCES|ROFS|DQUOT|FBIG)$/.test(code))
        throw asIoError(`cannot write ${incomplete}`, error)
      have = await sizeOf()
      failures = have > before ? 0 : failures + 1
      if (failures >= RETRIES) {
        throw new Unreachable(
          `the connection broke at byte ${have} of ${file.size} of ${url} (${reasonOf(error)}); the same command goes on from there`,
          error,
        )
      }
      continue
    }
    have = await sizeOf()
    if (have < file.size && have <= before && ++failures >= RETRIES) break
    if (have > file.size) break
  }
  const fault = (what: string) =>
    new RapoError('ERR_RAPO_IO', `${url} is damaged: ${what}; it was removed, fetch it again`)
  if (have !== file.size) {
    await rm(incomplete, { force: true })
    throw fault(`it has ${have} bytes, the hub says ${file.size}`)
  }
  const { hash, expected } = hashOf(file)
  await pipeline(createReadStream(incomplete), hash)
  const found = hash.digest('hex')
  if (expected !== undefined && found !== expected) {
    await rm(incomplete)
    throw fault(`its hash is ${found}, the hub says ${expected}`)
  }
  await rename(incomplete, blob)
}

/** Large files are known by their SHA-256, others as Git names them. */
function hashOf(file: ListFileEntry): { hash: Hash; expected: string | undefined } {
  if (file.lfs) return { hash: createHash('sha256'), expected: file.lfs.oid }
  return { hash: createHash('sha1').update(`blob ${file.size}\0`), expected: file.oid }
}

/** Relative, as the hub's programs link, so that a cache can be moved; a copy where links are not allowed. */
async function link(blob: string, to: string): Promise<void> {
  try {
    await symlink(path.relative(path.dirname(to), blob), to)
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === 'EPERM') await copyFile(blob, to)
    else if (code !== 'EEXIST') throw error
  }
}

/** The snapshot of a branch, tag or commit that is in the cache with all its weights. */
function cachedSnapshot(folder: string, revision: string): string | undefined {
  const ref = path.join(folder, 'refs', revision)
  const sha = existsSync(ref) ? readFileSync(ref, 'utf8').trim() : revision
  const snapshot = path.join(folder, 'snapshots', sha)
  const has = (file: string) => existsSync(path.join(snapshot, file))
  if (!has('config.json')) return undefined
  if (has('model.safetensors')) return snapshot
  const index = 'model.safetensors.index.json'
  if (!has(index)) return undefined
  try {
    const { weight_map } = JSON.parse(readFileSync(path.join(snapshot, index), 'utf8'))
    return Object.values<string>(weight_map).every(has) ? snapshot : undefined
  } catch {
    return undefined
  }
}

function homeOf(env: NodeJS.ProcessEnv): string {
  return env.HF_HOME || path.join(env.XDG_CACHE_HOME || path.join(homedir(), '.cache'), 'huggingface')
}

function cacheOf(env: NodeJS.ProcessEnv): string {
  return env.HF_HUB_CACHE || env.HUGGINGFACE_HUB_CACHE || path.join(homeOf(env), 'hub')
}

/** HF_TOKEN, or what `hf auth login` left. */
function tokenOf(env: NodeJS.ProcessEnv): string | undefined {
  if (env.HF_TOKEN) return env.HF_TOKEN
  const file = env.HF_TOKEN_PATH || path.join(homeOf(env), 'token')
  return (existsSync(file) && readFileSync(file, 'utf8').trim()) || undefined
}

async function translated<T>(name: string, hubUrl: string, body: () => Promise<T>): Promise<T> {
  try {
    return await body()
  } catch (error) {
    const { statusCode } = error as { statusCode?: number }
    const what = `there is no directory ${name}, and ${hubUrl}`
    if (statusCode === 401 || statusCode === 404) {
      const why = 'no such model or revision, or a private or gated one, which needs HF_TOKEN'
      throw new RapoError('ERR_RAPO_IO', `${what} answered ${statusCode} for a model of that name: ${why}`, {
        cause: error,
      })
    }
    if (statusCode === 403) {
      const why = `ask for access on ${hubUrl}/${name}`
      throw new RapoError('ERR_RAPO_IO', `${what} answered 403 for the model of that name: ${why}`, {
        cause: error,
      })
    }
    const why = statusCode ? `answered ${statusCode}` : `cannot be reached (${reasonOf(error)})`
    throw new Unreachable(`${what} ${why}`, error)
  }
}

/** fetch hides why it failed. */
function reasonOf(error: unknown): string {
  const { message, cause } = error as Error
  return cause instanceof Error ? cause.message || (cause as NodeJS.ErrnoException).code || message : message
}

async function io<T>(what: string, body: () => Promise<T>): Promise<T> {
  try {
    return await body()
  } catch (error) {
    throw asIoError(what, error)
  }
}
