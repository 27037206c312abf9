/**
 * Models by their name on the Hugging Face hub, such as Qwen/Qwen2.5-3B, and files of its datasets: fetched into the
 * hub's own cache, where other programs find them too, and found there again.
 */
import { randomUUID } from 'node:crypto'
import { existsSync, readFileSync, realpathSync, statSync } from 'node:fs'
import { copyFile, rename, rm, symlink, writeFile } from 'node:fs/promises'
import { homedir } from 'node:os'
import path from 'node:path'
import { type Watched, watched } from '../base/call.js'
import { RapoError } from '../base/errors.js'
import { io, ioGuard, makeDirectories, withPlace } from '../base/files.js'
import { withLock } from '../base/lock.js'
import { plainLine } from '../base/text.js'
import { anySignal } from '../base/wait.js'
import { readModelConfig } from './config.js'
import { modelFiles } from './directory.js'
import { explainFiles } from './foreign.js'
import {
  connect,
  download,
  type Env,
  type HubFile,
  listWanted,
  sizeOf,
  Unreachable,
  type Wanted,
} from './hub-client.js'

export interface HubOptions {
  /**
   * HF_ENDPOINT, HF_TOKEN, HF_HUB_OFFLINE, HF_HUB_CACHE, HF_HOME and XDG_CACHE_HOME as the hub's own programs read them;
   * HTTP_PROXY, HTTPS_PROXY and NO_PROXY.
   */
  readonly env?: Readonly<Record<string, string | undefined>>
  /**
   * Called with the number of bytes so far, the number of bytes of all files to fetch, and the name that was asked for. If
   * the function throws or rejects, the download ends with that error; a later call continues the download. If everything was
   * fetched already, the error becomes a warning of the process.
   */
  readonly onProgress?: (done: number, total: number, name: string) => void
  /** Aborting the signal ends the download, and the call rejects with its reason. A later call continues the download. */
  readonly signal?: AbortSignal | undefined
}

/** The wanted part of a repository, and the test whether a copy of it is complete. */
interface Needed extends Wanted {
  /** The name as the user wrote it, for messages. */
  readonly given: string
  /** Throws RapoError if the repository lacks a needed file. */
  check(names: readonly string[], hubUrl: string): void
  /** Called when everything except the weights is in the snapshot. Throws RapoError if the engine could not use the weights. */
  checkBeforeWeights?(snapshot: string): void
  /** Whether a snapshot in the cache is complete. `has` tells whether the snapshot holds a file. */
  cached(snapshot: string, has: (file: string) => boolean): boolean
}

const commitHash = /^[0-9a-f]{40}$/

/** The names that the hub allows. With -- or .. in a name, two repositories could share a folder of the cache. */
const part = String.raw`(?![\w.-]*(?:--|\.\.))\w[\w.-]*`
const repoName = String.raw`(?<repo>${part}\/${part})`
const modelName = RegExp(String.raw`^${repoName}(?:@(?<revision>[\w./-]+))?$`)

/**
 * The directory of a model. An existing directory is itself; `owner/name` or `owner/name@revision` is looked up on the
 * hub, and what is missing in the cache is fetched: an interrupted download goes on where it stopped, and every file is
 * checked by size and hash. Where the hub cannot be reached, or HF_HUB_OFFLINE=1 forbids it, a complete cached copy
 * serves. Any other text is returned as it is. A repository that holds no model of the engine is refused before its
 * weights are fetched. Throws ERR_RAPO_IO (network, access, a damaged download), and ERR_RAPO_FORMAT and
 * ERR_RAPO_UNSUPPORTED as loadPolicy does for a directory.
 */
export async function resolveModel(model: string, options: HubOptions = {}): Promise<string> {
  const { repo, revision = 'main' } = modelName.exec(model)?.groups ?? {}
  if (!repo || !staysBelow(revision) || existsSync(model)) return model
  return resolveSnapshot(
    {
      ...{
        type: 'model',
        repo,
        revision,
        given: model,
        missing: `there is no directory ${withPlace(repo)}, and `,
      },
      files: modelFiles,
      check(names, hubUrl) {
        const fault = explainFiles(names, repo)
        if (fault) throw new RapoError('ERR_RAPO_FORMAT', `${repo} on ${hubUrl} ${fault}`)
      },
      checkBeforeWeights: readModelConfig,
      cached: isWholeModel,
    },
    options,
  )
}

/** `hf://datasets/owner/name/path`, `hf://datasets/owner/name@revision/path` as in the hub's own programs. */
const datasetName = RegExp(
  String.raw`^hf:\/\/datasets\/${repoName}(?:@(?<revision>refs\/(?:convert|pr)\/[\w-]+|(?:[\w.-]|%2F)+))?\/(?<file>[^?#]+)$`,
)

/**
 * The place of a data file. `hf://datasets/owner/name/path` and `hf://datasets/owner/name@revision/path` are fetched
 * from the hub as models are; any other text is returned as it is. Throws ERR_RAPO_DATA (a name of another form, a file
 * that the dataset has not) and ERR_RAPO_IO.
 */
export async function resolveDataFile(given: string, options: HubOptions = {}): Promise<string> {
  if (!given.startsWith('hf://')) return given
  const { repo, file = '', ...named } = datasetName.exec(given)?.groups ?? {}
  const revision = (named.revision ?? 'main').replaceAll('%2F', '/')
  if (!repo || !staysBelow(`${file}/${revision}`)) {
    throw new RapoError(
      'ERR_RAPO_DATA',
      `${given} names no file: it must be hf://datasets/OWNER/NAME/PATH or hf://datasets/OWNER/NAME@REVISION/PATH`,
    )
  }
  const snapshot = await resolveSnapshot(
    {
      ...{ type: 'dataset', repo, revision, given, missing: `${given}: ` },
      files: file,
      check(names, hubUrl) {
        if (names.length > 0) return
        throw new RapoError(
          'ERR_RAPO_DATA',
          `${given}: the dataset ${repo} on ${hubUrl} has no file ${file} at revision ${revision}`,
        )
      },
      cached: (_, has) => has(file),
    },
    options,
  )
  return path.join(snapshot, file)
}

/** The directory in the cache that holds the wanted files. Missing files are fetched. */
async function resolveSnapshot(wanted: Needed, options: HubOptions): Promise<string> {
  const { type, repo, revision, given } = wanted
  const env = options.env ?? process.env
  const folder = path.join(cacheOf(env), `${type}s--${repo.replace('/', '--')}`)
  const snapshot = cachedSnapshot(folder, revision)
  const has = (file: string) => holds(folder, snapshot!, file)
  const cached = snapshot && wanted.cached(snapshot, has) ? snapshot : undefined
  if (/^(1|on|yes|true)$/i.test(env.HF_HUB_OFFLINE ?? '')) {
    if (cached) return cached
    const what = type === 'model' ? `there is no directory ${given}, and the` : `${given}: the`
    throw new RapoError(
      'ERR_RAPO_IO',
      `${what} cache ${folder} has no whole copy of it; HF_HUB_OFFLINE forbids fetching it`,
    )
  }
  const told = watched('onDownload', options.onProgress)
  const stop = anySignal(told.failed, options.signal)
  try {
    const fetched = await fetchSnapshot(wanted, folder, env, { ...told, stop })
    told.finish()
    return fetched
  } catch (error) {
    stop.throwIfAborted()
    if (cached && error instanceof Unreachable) {
      process.emitWarning(plainLine(`${error.message}; using the copy of ${given} in the cache`))
      return cached
    }
    throw error
  }
}

/** Whether a path with slashes, joined to a directory, stays below that directory on every operating system. */
function staysBelow(name: string): boolean {
  // biome-ignore lint/suspicious/noControlCharactersInRegex: the expression looks for control characters
  return name.split('/').every(part => !/^\.{0,2}$|^[a-z]:|[\\\x00-\x1f]/i.test(part))
}

async function fetchSnapshot(
  wanted: Needed,
  folder: string,
  env: Env,
  { call, stop }: Pick<Watched<[done: number, total: number, name: string]>, 'call'> & { stop: AbortSignal },
): Promise<string> {
  const { type, repo: name, revision, given } = wanted
  const hub = await connect(env, tokenOf(env), stop)
  const { sha, names, files } = await listWanted(wanted, hub)
  wanted.check(names, hub.url)

  const snapshot = path.join(folder, 'snapshots', sha)
  const blobOf = (file: HubFile) => path.join(folder, 'blobs', file.hash)
  const isThere = (file: HubFile) => isLinked(blobOf(file), path.join(snapshot, file.path), file.size)
  // The weights come last, so that an interrupted copy does not look complete.
  const isWeights = ({ path }: HubFile) => path.endsWith('.safetensors')
  const missing = files
    .filter(file => !isThere(file))
    .sort((a, b) => Number(isWeights(a)) - Number(isWeights(b)) || a.size - b.size)
  if (missing.length > 0) {
    ioGuard(`cannot write to the cache ${folder}`, () => {
      for (const dir of ['blobs', `snapshots/${sha}`]) makeDirectories(path.join(folder, dir))
    })
    // One process at a time writes a file. Others wait and then find it complete.
    await withLock(
      path.join(folder, 'rapo.lock'),
      () => {},
      async () => {
        const total = missing.reduce((sum, file) => sum + file.size, 0)
        let before = 0
        let isChecked = false
        for (const file of missing) {
          stop.throwIfAborted()
          if (isWeights(file) && !isChecked) {
            wanted.checkBeforeWeights?.(snapshot)
            isChecked = true
          }
          const blob = blobOf(file)
          if (sizeOf(blob) !== file.size) {
            const encoded = file.path.split('/').map(encodeURIComponent).join('/')
            const url = `${hub.url}/${type === 'model' ? '' : 'datasets/'}${name}/resolve/${sha}/${encoded}`
            await download(hub, url, file, blob, done => {
              call(before + done, total, given)
              stop.throwIfAborted()
            })
          }
          if (!isThere(file)) {
            await io(`cannot write to ${snapshot}`, () => link(blob, path.join(snapshot, file.path)))
          }
          before += file.size
          call(before, total, given)
        }
      },
    )
  }
  if (cachedSnapshot(folder, revision) !== snapshot) {
    const ref = path.join(folder, 'refs', revision)
    await io(`cannot write ${ref}`, async () => {
      makeDirectories(path.dirname(ref))
      const temporary = `${ref}.${randomUUID()}.tmp`
      await writeFile(temporary, sha)
      await rename(temporary, ref)
    })
  }
  return snapshot
}

/** Links are relative, like those of the hub's programs, so that a cache can be moved. If links are not allowed, the file is copied. */
async function link(blob: string, to: string): Promise<void> {
  makeDirectories(path.dirname(to))
  await rm(to, { force: true })
  try {
    await symlink(path.relative(path.dirname(to), blob), to)
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code !== 'EPERM') throw error
    await copyFile(blob, to)
  }
}

/** Whether an entry of a snapshot is the one that `link` makes of this blob. */
function isLinked(blob: string, entry: string, size: number): boolean {
  if (sizeOf(entry) === size) return true
  return sizeOf(blob) === size && existsSync(entry) && realpathSync(entry) === realpathSync(blob)
}

/** Whether a snapshot has a file, and the file lies in the cache of its own repository. */
function holds(folder: string, snapshot: string, file: string): boolean {
  const entry = path.join(snapshot, file)
  if (!statSync(entry, { throwIfNoEntry: false })?.isFile()) return false
  const found = realpathSync(entry)
  const places = [path.join(folder, 'blobs'), snapshot].filter(existsSync)
  return places.some(place => found.startsWith(realpathSync(place) + path.sep))
}

/** The cache's directory for a branch, tag or commit; undefined if the cache does not know the commit. */
function cachedSnapshot(folder: string, revision: string): string | undefined {
  const ref = path.join(folder, 'refs', revision)
  const isRef = !commitHash.test(revision) && sizeOf(ref) !== undefined
  const sha = isRef ? readFileSync(ref, 'utf8').trim() : revision
  return commitHash.test(sha) ? path.join(folder, 'snapshots', sha) : undefined
}

/** An interrupted copy may lack the tokenizer, since other programs fetch files in any order. */
function isWholeModel(snapshot: string, has: (file: string) => boolean): boolean {
  if (!has('config.json') || !has('tokenizer.json')) return false
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

function homeOf(env: Env): string {
  return env.HF_HOME || path.join(env.XDG_CACHE_HOME || path.join(homedir(), '.cache'), 'huggingface')
}

function cacheOf(env: Env): string {
  return env.HF_HUB_CACHE || env.HUGGINGFACE_HUB_CACHE || path.join(homeOf(env), 'hub')
}

/** HF_TOKEN, or the token that `hf auth login` has stored. */
function tokenOf(env: Env): string | undefined {
  if (env.HF_TOKEN) return env.HF_TOKEN.trim()
  const file = env.HF_TOKEN_PATH || path.join(homeOf(env), 'token')
  return (existsSync(file) && readFileSync(file, 'utf8').trim()) || undefined
}
