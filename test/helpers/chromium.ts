/** Headless Chromium, driven over the DevTools protocol's pipe. Only what the tests need. */
import { spawn } from 'node:child_process'
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import type { Readable, Writable } from 'node:stream'

export interface Browser {
  /** Loads a page in a viewport of that size. `problems` collects its console messages, uncaught errors and failed requests. */
  open(url: string, view: { width: number; height: number; isDark?: boolean }): Promise<Page>
  close(): Promise<void>
}

export interface Page {
  readonly problems: string[]
  evaluate<T>(expression: string): Promise<T>
  /** PNG of the page from `top` on, `height` pixels high; by default the whole page. */
  screenshot(top?: number, height?: number): Promise<Buffer>
}

type Parameters = Record<string, unknown>
interface Message {
  id?: number
  method?: string
  sessionId?: string
  params?: Parameters
  result?: Parameters
  error?: { message: string }
}

/** The first browser found: RAPO_CHROMIUM, or a usual name on the PATH; undefined if there is none. */
export function findChromium(): string | undefined {
  const names = [
    'chromium',
    'chromium-browser',
    'google-chrome',
    'google-chrome-stable',
    'chrome-headless-shell',
  ]
  const dirs = (process.env.PATH ?? '').split(path.delimiter)
  const candidates = names.flatMap(name => dirs.map(dir => path.join(dir, name)))
  return [process.env.RAPO_CHROMIUM ?? '', ...candidates].find(file => file !== '' && existsSync(file))
}

const FLAGS = [
  '--headless',
  '--no-sandbox',
  '--disable-gpu',
  '--disable-quic',
  '--no-first-run',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-sync',
  '--disable-dev-shm-usage',
  '--remote-debugging-pipe',
]

export async function launchChromium(executable: string): Promise<Browser> {
  const profile = mkdtempSync(path.join(tmpdir(), 'rapo-chromium-'))
  const child = spawn(executable, [...FLAGS, `--user-data-dir=${profile}`], {
    stdio: ['ignore', 'ignore', 'ignore', 'pipe', 'pipe'],
  })
  const ended = new Promise<void>(resolve => child.once('exit', () => resolve()))
  const commands = child.stdio[3] as Writable
  const replies = child.stdio[4] as Readable
  const waiting = new Map<number, { resolve: (result: Parameters) => void; reject: (error: Error) => void }>()
  const listeners = new Set<(message: Message) => void>()
  let lastId = 0

  const send = (method: string, params: Parameters = {}, sessionId?: string) =>
    new Promise<Parameters>((resolve, reject) => {
      const id = ++lastId
      waiting.set(id, { resolve, reject })
      commands.write(`${JSON.stringify({ id, method, params, sessionId })}\0`)
    })
  let rest = ''
  replies.setEncoding('utf8').on('data', (chunk: string) => {
    const parts = (rest + chunk).split('\0')
    rest = parts.pop()!
    for (const part of parts) {
      const message = JSON.parse(part) as Message
      const call = message.id === undefined ? undefined : waiting.get(message.id)
      if (!call) for (const listener of listeners) listener(message)
      else if (message.error) call.reject(new Error(message.error.message))
      else call.resolve(message.result ?? {})
    }
  })
  void ended.then(() => {
    for (const { reject } of waiting.values()) reject(new Error(`${executable} ended`))
  })

  return {
    async open(url, { width, height, isDark = false }) {
      const { targetId } = await send('Target.createTarget', { url: 'about:blank' })
      const { sessionId } = await send('Target.attachToTarget', { targetId, flatten: true })
      const call = (method: string, params?: Parameters) => send(method, params, sessionId as string)
      const problems: string[] = []
      let isLoaded = () => {}
      const loaded = new Promise<void>(resolve => {
        isLoaded = resolve
      })
      listeners.add(({ method, params = {}, sessionId: from }) => {
        if (from !== sessionId) return
        if (method === 'Page.loadEventFired') isLoaded()
        if (method === 'Runtime.consoleAPICalled' || method === 'Runtime.exceptionThrown') {
          problems.push(JSON.stringify(params))
        }
        if (method === 'Log.entryAdded') problems.push((params.entry as { text: string }).text)
        if (method === 'Network.requestWillBeSent') {
          const requested = (params.request as { url: string }).url
          if (requested !== url) problems.push(`request to ${requested}`)
        }
      })
      for (const domain of ['Page', 'Runtime', 'Log', 'Network']) await call(`${domain}.enable`)
      const metrics = { width, height, deviceScaleFactor: 1, mobile: width < 600 }
      await call('Emulation.setDeviceMetricsOverride', metrics)
      const features = [{ name: 'prefers-color-scheme', value: isDark ? 'dark' : 'light' }]
      await call('Emulation.setEmulatedMedia', { features })
      await call('Page.navigate', { url })
      await loaded
      return {
        problems,
        async evaluate<T>(expression: string) {
          const { result, exceptionDetails } = await call('Runtime.evaluate', {
            expression,
            returnByValue: true,
          })
          if (exceptionDetails) throw new Error(JSON.stringify(exceptionDetails))
          return (result as { value: T }).value
        },
        async screenshot(top = 0, clipHeight) {
          const { cssContentSize } = await call('Page.getLayoutMetrics')
          const whole = (cssContentSize as { height: number }).height
          const clip = { x: 0, y: top, width, height: clipHeight ?? whole - top, scale: 1 }
          const { data } = await call('Page.captureScreenshot', { clip, captureBeyondViewport: true })
          return Buffer.from(data as string, 'base64')
        },
      }
    },
    async close() {
      await send('Browser.close').catch(() => {})
      await ended
      rmSync(profile, { recursive: true, force: true, maxRetries: 5, retryDelay: 100 })
    },
  }
}
