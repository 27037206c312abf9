/** Requests to the hub, or to a mirror. Every answer is checked before it becomes a path or counts as content. */
import { createHash } from 'node:crypto'
import { createReadStream, createWriteStream, lstatSync } from 'node:fs'
import { rename, rm } from 'node:fs/promises'
import { pipeline } from 'node:stream/promises'
import { RapoError } from '../base/errors.js'
import { asIoError, io } from '../base/files.js'

export type Env = Readonly<Record<string, string | undefined>>

/** The wanted part of a repository. */
export interface Wanted {
  readonly type: 'model' | 'dataset'
  /** owner/name */
  readonly repo: string
  readonly revision: string
  /** Beginning of the message if the hub has no such repository. */
  readonly missing: string
  /** The path of one file, or a pattern that the names of all wanted files match. */
  readonly files: string | RegExp
}

export interface HubFile {
  readonly path: string
  readonly size: number
  /** Hash of the file's bytes, which is also the name of its blob in the cache. */
  readonly hash: string
  /** The hub names large files by their SHA-256 and others by Git's hash of a blob. */
  readonly algorithm: 'sha1' | 'sha256'
}

/** A connection to the hub. */
export interface Hub {
  readonly url: string
  /** Like fetch, but through the environment's proxy. The token is sent to the hub only. Throws Broken. */
  get(url: string, init?: RequestInit): Promise<Response>
}

/** Limits for one answer that describes or lists, and for a listing in parts of up to 1000 files. Real ones are far smaller. */
const MAX_ANSWER_BYTES = 2 ** 24
const MAX_ANSWERS = 1000
/** A broken connection is opened again so many times in a row without any new byte. */
const RETRIES = 3

/** A later call may succeed. Until then the cache is used. */
export class Unreachable extends RapoError {
  constructor(message: string, cause: unknown) {
    super('ERR_RAPO_IO', message, { cause })
  }
}

/** The fetched bytes are not those that the hub lists. They are removed. */
class Damaged extends RapoError {
  constructor(url: string, what: string) {
    super('ERR_RAPO_IO', `${url} is damaged: ${what}; it was removed, fetch it again`)
  }
}

/** A connection that failed. */
class Broken extends Error {
  constructor(error: unknown, route: string) {
    super(`${reasonOf(error as Error)}${route}`, { cause: error })
  }
}

/** The reason of a failed fetch, which is hidden in the cause of its error. */
function reasonOf(error: Error): string {
  if (error.cause instanceof Error) return reasonOf(error.cause)
  return error.message || ((error as NodeJS.ErrnoException).code ?? String(error))
}

/** The signal ends every request and the reading of every answer. */
export async function connect(env: Env, token: string | undefined, signal: AbortSignal): Promise<Hub> {
  const url = (env.HF_ENDPOINT || 'https://huggingface.co').replace(/\/+$/, '')
  const {
    protocol = '',
    origin,
    username,
    password,
  } = URL.canParse(url) ? new URL(url) : ({} as Partial<URL>)
  if (!/^https?:$/.test(protocol) || username || password) {
    const shown = url.replace(/\/\/.*@/, '//…@')
    throw new RapoError(
      'ERR_RAPO_CONFIG',
      `HF_ENDPOINT must be an http:// or https:// address without a user's name and password, got ${shown}`,
    )
  }
  // This message does not contain the token; that of fetch would.
  if (token && !/^[\x21-\x7e]+$/.test(token)) {
    throw new RapoError('ERR_RAPO_CONFIG', 'the token of the hub must be ASCII letters, digits and signs')
  }
  const proxy = await proxyOf(env)
  const route = proxy ? '; by way of the proxy that HTTP_PROXY or HTTPS_PROXY names' : ''
  return {
    url,
    async get(to, init) {
      const headers = new Headers(init?.headers)
      // The server chooses the address of a listing's next part. A redirect to another host drops the header.
      if (token && new URL(to).origin === origin) headers.set('Authorization', `Bearer ${token}`)
      try {
        return await (proxy ?? fetch)(to, { ...init, headers, signal })
      } catch (error) {
        throw new Broken(error, route)
      }
    },
  }
}

/** A fetch through the environment's proxies, which the fetch of Node.js 20 ignores; undefined if there are none. */
async function proxyOf(env: Env): Promise<typeof fetch | undefined> {
  const read = (name: string) => env[name.toLowerCase()] || env[name] || ''
  const addressOf = (name: string) => read(name).replace(/^(?!.*:\/\/)(?=.)/, 'http://')
  const [httpProxy, httpsProxy] = [addressOf('HTTP_PROXY'), addressOf('HTTPS_PROXY')]
  if (!httpProxy && !httpsProxy) return undefined
  const { EnvHttpProxyAgent, fetch: undiciFetch } = await import('undici')
  let dispatcher: InstanceType<typeof EnvHttpProxyAgent>
  try {
    // As in other programs, only https goes through a tunnel.
    dispatcher = new EnvHttpProxyAgent({
      httpProxy,
      httpsProxy,
      noProxy: read('NO_PROXY'),
      proxyTunnel: false,
    })
  } catch (cause) {
    const what = 'HTTP_PROXY and HTTPS_PROXY must be addresses such as http://proxy.example:3128'
    throw new RapoError('ERR_RAPO_CONFIG', `${what}: ${(cause as Error).message}`, { cause })
  }
  const proxied = (url: string, init: object) => undiciFetch(url, { ...init, dispatcher })
  return proxied as unknown as typeof fetch
}

/**
 * The commit, the names of all files in it, and the wanted files. Throws ERR_RAPO_IO if the answer does not have the form of
 * a hub's answer.
 */
export async function listWanted(
  wanted: Wanted,
  hub: Hub,
): Promise<{ sha: string; names: string[]; files: HubFile[] }> {
  const { type, repo, revision, missing } = wanted
  const { REGEX_COMMIT_HASH, ...library } = await import('@huggingface/hub')
  const refused = (why: string, options?: ErrorOptions) =>
    new RapoError('ERR_RAPO_IO', `${missing}${hub.url} ${why}`, options)
  let answers = 0
  // The library would send only tokens that begin with hf_, and would send them to every host that a listing leads to.
  const ask = async (url: string, init?: RequestInit) => {
    if (++answers > MAX_ANSWERS) throw refused(`goes on listing files after ${MAX_ANSWERS} answers`)
    try {
      const response = await hub.get(url, init)
      if (!response.ok) throw await statusError(wanted, hub, response)
      const parts: Uint8Array[] = []
      let size = 0
      for await (const part of bytesOf(response)) {
        size += part.length
        if (size > MAX_ANSWER_BYTES) throw refused(`answered more than ${MAX_ANSWER_BYTES} bytes`)
        parts.push(part)
      }
      return new Response(Buffer.concat(parts), { headers: response.headers })
    } catch (error) {
      if (!(error instanceof Broken)) throw error
      throw new Unreachable(`${missing}${hub.url} cannot be reached (${error.message})`, error)
    }
  }
  const query = { hubUrl: hub.url, fetch: ask as typeof fetch }
  try {
    const named = { ...query, name: repo, revision, additionalFields: ['sha' as const] }
    const { sha } = await (type === 'model' ? library.modelInfo(named) : library.datasetInfo(named))
    if (!REGEX_COMMIT_HASH.test(sha) || (REGEX_COMMIT_HASH.test(revision) && sha !== revision)) {
      throw refused(`answered that ${revision} is the commit ${JSON.stringify(sha)}`)
    }
    const place = { ...query, repo: { type, name: repo }, revision: sha }
    // A dataset may have thousands of files, so only the wanted file is asked for.
    const entries =
      typeof wanted.files === 'string'
        ? await library.pathsInfo({ ...place, paths: [wanted.files] })
        : library.listFiles(place)
    const names: string[] = []
    const files = new Map<string, HubFile>()
    for await (const entry of entries) {
      const isWanted =
        typeof wanted.files === 'string' ? entry.path === wanted.files : wanted.files.test(entry.path)
      if (entry.type !== 'file') continue
      if (isWanted || typeof wanted.files !== 'string') names.push(String(entry.path))
      if (!isWanted) continue
      const file = checkEntry(entry)
      if (!file) {
        const shown = JSON.stringify(entry).slice(0, 300)
        throw refused(`listed a file without a size and a hash as they are: ${shown}`)
      }
      // Some file systems cannot hold two names that differ only in case.
      const name = file.path.toLowerCase()
      const known = files.get(name)
      if (known && (known.path !== file.path || known.hash !== file.hash || known.size !== file.size)) {
        throw refused(`listed two files of one name: ${known.path} and ${file.path}`)
      }
      files.set(name, file)
    }
    return { sha, names, files: [...files.values()] }
  } catch (cause) {
    if (cause instanceof RapoError) throw cause
    throw refused(`answered as no hub does: ${(cause as Error).message}`, { cause })
  }
}

function checkEntry({ path, size, oid, lfs }: ListedFile): HubFile | undefined {
  const hash = lfs ? lfs.oid : oid
  const isHash = typeof hash === 'string' && (lfs ? /^[0-9a-f]{64}$/ : /^[0-9a-f]{40}$/).test(hash)
  if (typeof path !== 'string' || !isHash || !Number.isSafeInteger(size) || size < 0) return undefined
  return { path, size, hash, algorithm: lfs ? 'sha256' : 'sha1' }
}

interface ListedFile {
  readonly path: string
  readonly size: number
  readonly oid?: string
  readonly lfs?: { readonly oid: string }
}

async function statusError(
  { type, repo, missing }: Wanted,
  hub: Hub,
  { status, body }: Response,
): Promise<RapoError> {
  await body?.cancel()
  const what = `${missing}${hub.url} answered ${status}`
  if (status === 401 || status === 404) {
    const why = `no such ${type} or revision, or a private or gated one, which needs HF_TOKEN`
    return new RapoError('ERR_RAPO_IO', `${what} for a ${type} of that name: ${why}`)
  }
  if (status === 403) {
    const why = `ask for access on ${hub.url}/${type === 'model' ? '' : 'datasets/'}${repo}`
    return new RapoError('ERR_RAPO_IO', `${what} for the ${type} of that name: ${why}`)
  }
  return new Unreachable(what, undefined)
}

/** The parts of the body, as they arrive. Throws Broken. */
async function* bytesOf(response: Response): AsyncGenerator<Uint8Array> {
  try {
    for await (const part of response.body ?? []) yield part
  } catch (error) {
    throw new Broken(error, '')
  }
}

/** The size of a file, without following a link; undefined if there is no file. */
export function sizeOf(file: string): number | undefined {
  const found = lstatSync(file, { throwIfNoEntry: false })
  return found?.isFile() ? found.size : undefined
}

/** Fetches one file into blob.incomplete and then renames it to `blob`. A later call continues an incomplete file. */
export async function download(
  hub: Hub,
  url: string,
  file: HubFile,
  blob: string,
  onProgress: (done: number) => void,
): Promise<void> {
  const incomplete = `${blob}.incomplete`
  try {
    await fetchInto(incomplete, hub, url, file.size, onProgress)
    const hash = createHash(file.algorithm)
    if (file.algorithm === 'sha1') hash.update(`blob ${file.size}\0`)
    await pipeline(createReadStream(incomplete), hash)
    const found = hash.digest('hex')
    if (found !== file.hash) throw new Damaged(url, `its hash is ${found}, the hub says ${file.hash}`)
  } catch (error) {
    if (error instanceof Damaged) await rm(incomplete, { force: true })
    throw error
  }
  await io(`cannot write ${blob}`, () => rename(incomplete, blob))
}

async function fetchInto(
  incomplete: string,
  hub: Hub,
  url: string,
  size: number,
  onProgress: (done: number) => void,
): Promise<void> {
  let have = sizeOf(incomplete)
  if (have === undefined || have > size) {
    await io(`cannot write ${incomplete}`, () => rm(incomplete, { force: true }))
    have = 0
  }
  let done = have
  for (let failures = 0; done < size || sizeOf(incomplete) === undefined; ) {
    const before = done
    try {
      const headers = { 'Accept-Encoding': 'identity', ...(done > 0 && { Range: `bytes=${done}-` }) }
      const response = await hub.get(url, { headers })
      const { ok, status } = response
      if (!ok) {
        await response.body?.cancel()
        if (status === 416) throw new Damaged(url, `it has no more than ${done} bytes, the hub says ${size}`)
        throw new RapoError('ERR_RAPO_IO', `cannot fetch ${url}: the hub answered ${status}`)
      }
      // A server without support for ranges sends the whole file again.
      if (status !== 206) done = 0
      const counted = async function* () {
        for await (const part of bytesOf(response)) {
          done += part.length
          if (done > size) throw new Damaged(url, `it has more than the ${size} bytes that the hub says`)
          onProgress(done)
          yield part
        }
      }
      await pipeline(counted, createWriteStream(incomplete, { flags: status === 206 ? 'a' : 'w' }))
    } catch (error) {
      if (!(error instanceof Broken)) {
        const isOfFile = (error as NodeJS.ErrnoException).syscall !== undefined
        throw isOfFile ? asIoError(`cannot write ${incomplete}`, error) : error
      }
      done = sizeOf(incomplete) ?? 0
      failures = done > before ? 0 : failures + 1
      if (failures >= RETRIES) {
        throw new Unreachable(
          `the connection broke at byte ${done} of ${size} of ${url} (${error.message}); the same command goes on from there`,
          error,
        )
      }
      continue
    }
    if (done < size && done <= before && ++failures >= RETRIES) break
  }
  if (done !== size) throw new Damaged(url, `it has ${done} bytes, the hub says ${size}`)
}
