/**
 * Models by their name on the Hugging Face hub, such as Qwen/Qwen2.5-3B, and files of its datasets: fetched into the
 * hub's own cache, where other programs find them too, and found there again.
 */
import { createHash, type Hash } from 'node:crypto'
import { createReadStream, createWriteStream, existsSync, readFileSync } from 'node:fs'
import { copyFile, mkdir, rename, rm, stat, symlink, writeFile } from 'node:fs/promises'
import { homedir } from 'node:os'
import path from 'node:path'
import { Readable } from 'node:stream'
import { pipeline } from 'node:stream/promises'
import type { ReadableStream } from 'node:stream/web'
import { RapoError } from '../base/errors.js'
import { asIoError } from '../base/files.js'
import { withLock } from '../base/lock.js'

export interface HubOptions {
  /** HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE, HF_HUB_CACHE, HF_HOME and XDG_CACHE_HOME as the hub's own programs read them. */
  readonly env?: Readonly<Record<string, string | undefined>>
  /** Bytes of all files that are fetched, and what was asked for. */
  readonly onProgress?: (done: number, total: number, name: string) => void
}

/** A file on the hub, as it lists them. */
interface HubFile {
  readonly path: string
  readonly size: number
  readonly oid?: string
  readonly lfs?: { readonly oid: string }
}

/** What is wanted of a repository. */
interface Wanted {
  readonly type: 'model' | 'dataset'
  /** owner/name */
  readonly repo: string
  readonly revision: string
  /** As the person wrote it, for messages. */
  readonly given: string
  /** What a message begins with where the hub has no such repository. */
  readonly missing: string
  /** The one file, or what all files' names match. */
  readonly files: string | RegExp
  /** Throws RapoError where what is needed is not there. */
  check(files: readonly HubFile[], hubUrl: string): void
  /** What is in the cache under snapshots/COMMIT, where all of it is. */
  cached(snapshot: string): boolean
}

/** What a model needs: no weights in other formats, no pictures. */
const modelFiles =
  /^(model[\w.-]*\.safetensors(\.index\.json)?|[\w.-]+\.json|merges\.txt|chat_template\.jinja)$/
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
  const [, repo, revision = 'main'] = model.match(/^([\w.-]+\/[\w.-]+?)(?:@([\w./-]+))?$/) ?? []
  if (!repo || existsSync(model)) return model
  return resolveSnapshot(
    {
      ...{ type: 'model', repo, revision, given: model, missing: `there is no directory ${repo}, and ` },
      files: modelFiles,
      check(files, hubUrl) {
        const has = (pattern: RegExp) => files.some(file => pattern.test(file.path))
        if (has(/^config\.json$/) && has(/safetensors/)) return
        throw new RapoError(
          'ERR_RAPO_FORMAT',
          `${repo} on ${hubUrl} has no config.json or no model.safetensors`,
        )
      },
      cached: hasWeights,
    },
    options,
  )
}

/** `hf://datasets/owner/name/path`, `hf://datasets/owner/name@revision/path` as in the hub's own programs. */
const datasetName =
  /^hf:\/\/datasets\/(?<repo>[\w.-]+\/[\w.-]+)(?:@(?<revision>refs\/(?:convert|pr)\/[\w-]+|(?:[\w.-]|%2F)+))?\/(?<file>[^?#]+)$/

/**
 * The place of a data file. `hf://datasets/owner/name/path` and `hf://datasets/owner/name@revision/path` are fetched
 * from the hub as models are; any other text is returned as it is. Throws ERR_RAPO_DATA (a name of another form, a file
 * that the dataset has not) and ERR_RAPO_IO.
 */
export async function resolveDataFile(given: string, options: HubOptions = {}): Promise<string> {
  if (!given.startsWith('hf://')) return given
  const { repo, file, ...named } = datasetName.exec(given)?.groups ?? {}
  const revision = (named.revision ?? 'main').replaceAll('%2F', '/')
  if (!repo || !file || `${file}/${revision}`.split('/').some(part => /^\.{0,2}$/.test(part))) {
    throw new RapoError(
      'ERR_RAPO_DATA',
      `${given} names no file: it must be hf://datasets/OWNER/NAME/PATH or hf://datasets/OWNER/NAME@REVISION/PATH`,
    )
  }
  const snapshot = await resolveSnapshot(
    {
      ...{ type: 'dataset', repo, revision, given, missing: `${given}: ` },
      files: file,
      check(files, hubUrl) {
        if (files.length > 0) return
        throw new RapoError(
          'ERR_RAPO_DATA',
          `${given}: the dataset ${repo} on ${hubUrl} has no file ${file} at revision ${revision}`,
        )
      },
      cached: snapshot => existsSync(path.join(snapshot, file)),
    },
    options,
  )
  return path.join(snapshot, file)
}

/** The directory in the cache that holds all that is wanted; what is missing is fetched. */
async function resolveSnapshot(wanted: Wanted, options: HubOptions): Promise<string> {
  const { type, repo, revision, given } = wanted
  const env = options.env ?? process.env
  const folder = path.join(cacheOf(env), `${type}s--${repo.replace('/', '--')}`)
  const snapshot = cachedSnapshot(folder, revision)
  const cached = wanted.cached(snapshot) ? snapshot : undefined
  if (/^(1|on|yes|true)$/i.test(env.HF_HUB_OFFLINE ?? '')) {
    if (cached) return cached
    const what = type === 'model' ? `there is no directory ${given}, and the` : `${given}: the`
    throw new RapoError(
      'ERR_RAPO_IO',
      `${what} cache ${folder} has no whole copy of it; HF_HUB_OFFLINE forbids fetching it`,
    )
  }
  try {
    return await fetchSnapshot(wanted, folder, env, options.onProgress)
  } catch (error) {
    if (cached && error instanceof Unreachable) {
      process.emitWarning(`${error.message}; using the copy of ${given} in the cache`)
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
  wanted: Wanted,
  folder: string,
  env: NodeJS.ProcessEnv,
  onProgress: HubOptions['onProgress'],
): Promise<string> {
  const { type, repo: name, revision, given } = wanted
  const hub = await import('@huggingface/hub')
  const hubUrl = (env.HF_ENDPOINT || 'https://huggingface.co').replace(/\/+$/, '')
  const accessToken = tokenOf(env)
  const access = { hubUrl, ...(accessToken && { accessToken }) }
  const repo = { type, name } as const

  const { sha, files } = await translated(wanted, hubUrl, async () => {
    const query = { ...access, name, revision, additionalFields: ['sha' as const] }
    const { sha } = await (type === 'model' ? hub.modelInfo(query) : hub.datasetInfo(query))
    const files: HubFile[] = []
    // A dataset may have thousands of files: only the one is asked for.
    const entries =
      typeof wanted.files === 'string'
        ? await hub.pathsInfo({ ...access, repo, revision: sha, paths: [wanted.files] })
        : hub.listFiles({ ...access, repo, revision: sha })
    for await (const { type, path, size, oid, lfs } of entries) {
      if (type !== 'file') continue
      if (wanted.files instanceof RegExp && !wanted.files.test(path)) continue
      files.push({ path, size, ...(oid && { oid }), ...(lfs && { lfs }) })
    }
    return { sha, files }
  })
  wanted.check(files, hubUrl)

  const snapshot = path.join(folder, 'snapshots', sha)
  const missing = files.filter(file => !existsSync(path.join(snapshot, file.path)))
  if (missing.length > 0) {
    await io(`cannot write to the cache ${folder}`, () =>
      Promise.all(
        ['blobs', `snapshots/${sha}`].map(dir => mkdir(path.join(folder, dir), { recursive: true })),
      ),
    )
    // One process at a time writes to a file; the others find it done.
    await withLock(
      path.join(folder, 'rapo.lock'),
      () => {},
      async () => {
        const total = missing.reduce((sum, file) => sum + file.size, 0)
        let before = 0
        for (const file of missing) {
          const blob = path.join(folder, 'blobs', file.lfs?.oid ?? file.oid ?? sha + file.path)
          if (!existsSync(blob)) {
            const encoded = file.path.split('/').map(encodeURIComponent).join('/')
            const url = `${hubUrl}/${type === 'model' ? '' : 'datasets/'}${name}/resolve/${sha}/${encoded}`
            await download(url, file, blob, accessToken, done => onProgress?.(before + done, total, given))
          }
          await io(`cannot write to ${snapshot}`, () => link(blob, path.join(snapshot, file.path)))
          before += file.size
          onProgress?.(before, total, given)
        }
      },
    )
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
  file: HubFile,
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
function hashOf(file: HubFile): { hash: Hash; expected: string | undefined } {
  if (file.lfs) return { hash: createHash('sha256'), expected: file.lfs.oid }
  return { hash: createHash('sha1').update(`blob ${file.size}\0`), expected: file.oid }
}

/** Relative, as the hub's programs link, so that a cache can be moved; a copy where links are not allowed. */
async function link(blob: string, to: string): Promise<void> {
  await mkdir(path.dirname(to), { recursive: true })
  try {
    await symlink(path.relative(path.dirname(to), blob), to)
  } catch (error) {
    const { code } = error as NodeJS.ErrnoException
    if (code === 'EPERM') await copyFile(blob, to)
    else if (code !== 'EEXIST') throw error
  }
}

/** Where the cache has the snapshot of a branch, tag or commit, if it has one. */
function cachedSnapshot(folder: string, revision: string): string {
  const ref = path.join(folder, 'refs', revision)
  const sha = existsSync(ref) ? readFileSync(ref, 'utf8').trim() : revision
  return path.join(folder, 'snapshots', sha)
}

function hasWeights(snapshot: string): boolean {
  const has = (file: string) => existsSync(path.join(snapshot, file))
  if (!has('config.json')) return false
  if (has('model.safetensors')) return true
  const index = 'model.safetensors.index.json'
  if (!has(index)) return false
  try {
    const { weight_map } = JSON.parse(readFileSync(path.join(snapshot, index), 'utf8'))
    return Object.values<string>(weight_map).every(has)
  } catch {
    return false
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

async function translated<T>(
  { type, repo, missing }: Wanted,
  hubUrl: string,
  body: () => Promise<T>,
): Promise<T> {
  try {
    return await body()
  } catch (error) {
    const { statusCode } = error as { statusCode?: number }
    const what = `${missing}${hubUrl}`
    if (statusCode === 401 || statusCode === 404) {
      const why = `no such ${type} or revision, or a private or gated one, which needs HF_TOKEN`
      throw new RapoError(
        'ERR_RAPO_IO',
        `${what} answered ${statusCode} for a ${type} of that name: ${why}`,
        {
          cause: error,
        },
      )
    }
    if (statusCode === 403) {
      const why = `ask for access on ${hubUrl}/${type === 'model' ? '' : 'datasets/'}${repo}`
      throw new RapoError('ERR_RAPO_IO', `${what} answered 403 for the ${type} of that name: ${why}`, {
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
