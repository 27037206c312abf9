/**
 * JSON over HTTP to an inference server. node:http and not fetch: fetch gives up after 300 s without response headers, and a
 * server sends none before a completion is whole.
 */
import http from 'node:http'
import https from 'node:https'
import { RapoError, reasonOf } from '../../base/errors.js'

/** The bearer token of servers that want one. */
export const API_KEY_VARIABLE = 'RAPO_SERVER_API_KEY'

/** More than the completions of any request. A server that sends without an end must not fill the memory. */
const MAX_BODY = 2 ** 30

/** No whole answer came: the connection failed, or the server sent only a part, or nothing in time. */
export class NoAnswer extends Error {
  constructor(
    message: string,
    /** The server held the connection until the time was over. */
    readonly isTimeout = false,
    /** A connection kept from an earlier request had ended, as those to a server that was started again meanwhile. */
    readonly isStale = false,
  ) {
    super(message)
  }
}

/** A whole answer with another status than 200. */
export class Refused extends RapoError {
  readonly status: number

  constructor(place: string, status: number, why: string) {
    super('ERR_RAPO_IO', `${place} answered ${status}: ${why}`)
    this.status = status
  }
}

/** A whole answer, of whatever status. */
export interface Answer {
  readonly status: number
  readonly text: string
}

/** How a request is sent, and how long its answer is waited for. */
export interface RequestOptions {
  /** Sent as JSON in a POST request; absent: a GET request, unless `method` says otherwise. */
  readonly body?: unknown
  readonly method?: 'GET' | 'POST'
  /** Aborting closes the connection, which makes the server stop the work, and rejects with the signal's reason. */
  readonly signal?: AbortSignal | undefined
  readonly timeoutSeconds: number
}

/** The connections to one server, kept open between requests. */
export interface Connection {
  /** Without a slash at the end. */
  readonly url: string
  /** The address of this host from which the server was reached last: the server can reach this host there. */
  localAddress(): string
  /** Throws NoAnswer, or the reason of the signal. */
  request(route: string, options: RequestOptions): Promise<Answer>
  close(): void
}

const methodOf = ({ body, method }: RequestOptions) => method ?? (body === undefined ? 'GET' : 'POST')

export function connect(url: string): Connection {
  const base = url.replace(/\/+$/, '')
  const { protocol } = new URL(base)
  const module = protocol === 'https:' ? https : http
  const agent = new module.Agent({ keepAlive: true })
  const key = process.env[API_KEY_VARIABLE]
  let local = 'localhost'
  const send = (route: string, options: RequestOptions) => {
    const { body, signal, timeoutSeconds } = options
    const method = methodOf(options)
    return new Promise<Answer>((resolve, reject) => {
      if (signal?.aborted) return reject(signal.reason)
      const payload = body === undefined ? '' : JSON.stringify(body)
      const headers = {
        ...(method === 'POST' && {
          'content-type': 'application/json',
          'content-length': Buffer.byteLength(payload),
        }),
        ...(key && { authorization: `Bearer ${key}` }),
      }
      const request = module.request(base + route, { method, agent, headers })
      const fail = (error: unknown) => {
        settle()
        reject(error)
        request.destroy()
      }
      const lose = (why: string, isTimeout = false, isStale = false) =>
        fail(new NoAnswer(`${base}${route}: ${why}`, isTimeout, isStale))
      const onAbort = () => fail(signal!.reason)
      const timer = setTimeout(
        () => lose(`no whole answer within ${timeoutSeconds} s`, true),
        Math.min(timeoutSeconds * 1000, 2 ** 31 - 1),
      )
      const settle = () => {
        clearTimeout(timer)
        signal?.removeEventListener('abort', onAbort)
      }
      signal?.addEventListener('abort', onAbort, { once: true })
      request.on('error', error => {
        const { code } = error as NodeJS.ErrnoException
        const isStale = request.reusedSocket && (code === 'ECONNRESET' || code === 'EPIPE')
        lose(reasonOf(error) || code || 'failed', false, isStale)
      })
      request.on('response', response => {
        local = response.socket.localAddress?.replace(/^::ffff:/, '') ?? local
        const parts: Buffer[] = []
        let bytes = 0
        response.on('data', (part: Buffer) => {
          bytes += part.length
          if (bytes > MAX_BODY) return lose(`the answer is longer than ${MAX_BODY} bytes`)
          parts.push(part)
        })
        response.on('error', error => lose(`the answer broke off: ${reasonOf(error)}`))
        response.on('close', () => {
          if (!response.complete) return lose('the answer broke off')
          settle()
          resolve({ status: response.statusCode ?? 0, text: Buffer.concat(parts).toString('utf8') })
        })
      })
      request.end(payload)
    })
  }
  return {
    url: base,
    localAddress: () => local,
    async request(route, options) {
      for (;;) {
        try {
          return await send(route, options)
        } catch (error) {
          // Only what changes nothing on the server is sent again. The ended connection is used no more.
          const isHarmless = methodOf(options) === 'GET'
          if (!(error instanceof NoAnswer && error.isStale && isHarmless)) throw error
        }
      }
    },
    close: () => agent.destroy(),
  }
}

/** The JSON object of an answer with status 200. Throws RapoError naming address, status and the server's own words. */
export function jsonOf(place: string, { status, text }: Answer): Record<string, unknown> {
  if (status !== 200) throw new Refused(place, status, messageOf(text))
  if (text === '') return {}
  const value = parse(text)
  if (typeof value === 'object' && value !== null) return value as Record<string, unknown>
  throw new RapoError('ERR_RAPO_IO', `${place} answered what is no JSON object: ${text.slice(0, 200)}`)
}

export async function getJson(connection: Connection, route: string, options: RequestOptions) {
  return jsonOf(connection.url + route, await connection.request(route, options))
}

export async function postJson(connection: Connection, route: string, body: object, options: RequestOptions) {
  return jsonOf(connection.url + route, await connection.request(route, { ...options, body }))
}

/** vLLM answers { error: { message } } or { detail }, SGLang { error } or { message }. */
function messageOf(text: string): string {
  const value = parse(text) as Record<string, unknown> | undefined
  const error = value?.error as { message?: unknown } | string | undefined
  const said = (typeof error === 'object' ? error?.message : error) ?? value?.message ?? value?.detail ?? text
  const line = (typeof said === 'string' ? said : JSON.stringify(said)).trim()
  return line === '' ? 'nothing more' : line.slice(0, 500)
}

function parse(text: string): unknown {
  try {
    return JSON.parse(text)
  } catch {
    return undefined
  }
}
