/** The hub's protocol from a server of our own: what is fetched, where it lies, and every way in which a download breaks. */
import { createHash } from 'node:crypto'
import { existsSync, lstatSync, mkdirSync, readdirSync, readFileSync, statSync, writeFileSync } from 'node:fs'
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http'
import type { AddressInfo } from 'node:net'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { RapoError } from '../lib/errors.js'
import { resolveModel } from '../lib/hub.js'
import { makeTempDir } from './fake-policy.js'

const sha = 'a'.repeat(40)
const weights = Buffer.from(Array.from({ length: 100_000 }, (_, i) => i % 251))
const files: Record<string, { content: Buffer; isLarge?: boolean }> = {
  'config.json': { content: Buffer.from('{"model_type":"qwen2"}') },
  'tokenizer.json': { content: Buffer.from('{}') },
  'model.safetensors': { content: weights, isLarge: true },
  'pytorch_model.bin': { content: Buffer.from('not wanted'), isLarge: true },
  'README.md': { content: Buffer.from('# not wanted') },
}
const gitHash = (content: Buffer) =>
  createHash('sha1').update(`blob ${content.length}\0`).update(content).digest('hex')
const sha256 = (content: Buffer) => createHash('sha256').update(content).digest('hex')

/** Sends some bytes, waits until they are on the client's disk, and cuts the connection. */
async function cut(response: ServerResponse, bytes: Buffer, end: number): Promise<void> {
  response.write(bytes)
  const size = () => statSync(`${blob()}.incomplete`, { throwIfNoEntry: false })?.size
  while (size() !== end) await new Promise(resolve => setTimeout(resolve, 5))
  response.destroy()
}

/** What the server does with the bytes of the weights, each test anew. */
type Answer = (response: ServerResponse, body: Buffer, start: number) => void
const whole: Answer = (response, body) => response.end(body)
let answer: Answer = whole
let token: string | undefined
let knowsRanges = true
let requests: { url: string; range: string | undefined }[] = []
const server = createServer(serve)

function serve(request: IncomingMessage, response: ServerResponse): void {
  const url = request.url!.split('?')[0]!
  requests.push({ url, range: request.headers.range })
  const json = (value: unknown, status = 200) => {
    response.writeHead(status, { 'Content-Type': 'application/json' }).end(JSON.stringify(value))
  }
  if (token && request.headers.authorization !== `Bearer ${token}`) {
    json({ error: 'Invalid credentials' }, 401)
  } else if (url === '/api/models/o/gated/revision/main') {
    json({ error: 'Access to this model is restricted' }, 403)
  } else if (/^\/api\/models\/o\/m\/revision\/(main|v1|a{40})$/.test(url)) {
    json({ _id: '1', id: 'o/m', sha, lastModified: '2025-01-01T00:00:00Z' })
  } else if (url === `/api/models/o/m/tree/${sha}`) {
    json(
      Object.entries(files).map(([name, { content, isLarge }]) => ({
        type: 'file',
        path: name,
        size: content.length,
        oid: gitHash(content),
        ...(isLarge && { lfs: { oid: sha256(content), size: content.length, pointerSize: 130 } }),
      })),
    )
  } else if (url.startsWith(`/o/m/resolve/${sha}/`)) {
    const { content, isLarge } = files[url.split('/').at(-1)!]!
    const start = !knowsRanges ? 0 : Number(request.headers.range?.match(/^bytes=(\d+)-$/)?.[1] ?? 0)
    if (start > 0)
      response.writeHead(206, { 'Content-Range': `bytes ${start}-${content.length - 1}/${content.length}` })
    if (isLarge) answer(response, content.subarray(start), start)
    else response.end(content.subarray(start))
  } else {
    json({ error: 'Repository not found' }, 404)
  }
}

let env: NodeJS.ProcessEnv
test.before(() => new Promise<void>(resolve => server.listen(0, '127.0.0.1', resolve)))
test.after(() => {
  server.closeAllConnections()
  server.close()
})
test.before.each(() => {
  answer = whole
  token = undefined
  knowsRanges = true
  requests = []
  env = { HF_ENDPOINT: `http://127.0.0.1:${(server.address() as AddressInfo).port}`, HF_HOME: makeTempDir() }
})

const folder = () => path.join(env.HF_HOME!, 'hub', 'models--o--m')
const blob = () => path.join(folder(), 'blobs', sha256(weights))
const fetched = () => requests.filter(({ url }) => url.endsWith('model.safetensors'))

async function fails(model: string, message: RegExp, code = 'ERR_RAPO_IO'): Promise<void> {
  let error: unknown
  try {
    await resolveModel(model, { env })
  } catch (thrown) {
    error = thrown
  }
  assert.instance(error, RapoError)
  assert.match((error as RapoError).message, message)
  assert.is((error as RapoError).code, code)
}

test("a model lies as the hub's own programs lay it, and is asked for once", async () => {
  const progress: [number, number][] = []
  const dir = await resolveModel('o/m', { env, onProgress: (done, total) => progress.push([done, total]) })
  assert.is(dir, path.join(folder(), 'snapshots', sha))
  assert.equal(readdirSync(dir).sort(), ['config.json', 'model.safetensors', 'tokenizer.json'])
  assert.equal(readFileSync(path.join(dir, 'model.safetensors')), weights)
  assert.ok(lstatSync(path.join(dir, 'config.json')).isSymbolicLink())
  assert.is(readFileSync(path.join(folder(), 'refs', 'main'), 'utf8'), sha)
  const blobs = [
    sha256(weights),
    gitHash(files['config.json']!.content),
    gitHash(files['tokenizer.json']!.content),
  ]
  assert.equal(readdirSync(path.join(folder(), 'blobs')).sort(), blobs.sort())
  const total = weights.length + 22 + 2
  assert.equal(progress.at(-1), [total, total])

  requests = []
  assert.is(await resolveModel('o/m', { env }), dir)
  assert.is(await resolveModel('o/m@v1', { env }), dir)
  assert.is(await resolveModel(`o/m@${sha}`, { env }), dir)
  assert.equal(fetched(), [])
})

test('a directory, and what is no name of a model, are not looked up', async () => {
  const dir = makeTempDir()
  assert.is(await resolveModel(dir, { env }), dir)
  assert.is(await resolveModel('test/golden', { env }), 'test/golden')
  assert.is(await resolveModel('./o/m', { env }), './o/m')
  assert.equal(requests, [])
})

test('a connection that is cut in the middle is taken up where it stopped', async () => {
  let cuts = 0
  answer = (response, body, start) => {
    if (++cuts > 5) response.end(body)
    else cut(response, body.subarray(0, 10_000), start + 10_000)
  }
  const dir = await resolveModel('o/m', { env })
  assert.equal(readFileSync(path.join(dir, 'model.safetensors')), weights)
  assert.equal(
    fetched().map(({ range }) => range),
    [undefined, 1, 2, 3, 4, 5].map(i => i && `bytes=${i}0000-`),
  )
})

test('a server that is gone leaves what has come, and the next call goes on from there', async () => {
  let cuts = 0
  answer = (response, body) => {
    if (cuts++ > 0) response.destroy()
    else cut(response, body.subarray(0, 10_000), 10_000)
  }
  await fails(
    'o/m',
    /the connection broke at byte 10000 of 100000 of .*model.safetensors .*goes on from there/,
  )
  assert.is(readFileSync(`${blob()}.incomplete`).length, 10_000)
  assert.not(existsSync(path.join(folder(), 'refs')))
  answer = whole
  requests = []
  const dir = await resolveModel('o/m', { env })
  assert.equal(fetched(), [{ url: `/o/m/resolve/${sha}/model.safetensors`, range: 'bytes=10000-' }])
  assert.equal(readFileSync(path.join(dir, 'model.safetensors')), weights)
})

test('wrong bytes, too few and too many are found, and not kept', async () => {
  const cases: [Answer, RegExp][] = [
    [
      (response, body) => response.end(Buffer.alloc(body.length)),
      /damaged: its hash is \w+, the hub says \w+/,
    ],
    [
      (response, body) => response.end(Buffer.concat([body, body])),
      /damaged: it has 200000 bytes, the hub says 100000/,
    ],
    [response => response.end(), /damaged: it has 0 bytes, the hub says 100000/],
  ]
  for (const [wrong, message] of cases) {
    answer = wrong
    await fails('o/m', message)
    assert.not(existsSync(`${blob()}.incomplete`))
    assert.not(existsSync(blob()))
  }
  // A damaged beginning from an earlier process.
  mkdirSync(path.dirname(blob()), { recursive: true })
  writeFileSync(`${blob()}.incomplete`, Buffer.alloc(500))
  answer = whole
  await fails('o/m', /damaged: its hash/)
  await resolveModel('o/m', { env })
  // A server that knows no ranges.
  env.HF_HOME = makeTempDir()
  mkdirSync(path.dirname(blob()), { recursive: true })
  writeFileSync(`${blob()}.incomplete`, weights.subarray(0, 500))
  knowsRanges = false
  requests = []
  await resolveModel('o/m', { env })
  assert.equal(
    fetched().map(({ range }) => range),
    ['bytes=500-'],
  )
})

test('the token goes along; without it, and for what is not there, the error says what to do', async () => {
  token = 'hf_right'
  await fails('o/m', /answered 401 .*needs HF_TOKEN/)
  await resolveModel('o/m', { env: { ...env, HF_TOKEN: 'hf_right' } })
  env.HF_HOME = makeTempDir()
  writeFileSync(path.join(env.HF_HOME, 'token'), 'hf_right\n')
  await resolveModel('o/m', { env })
  token = undefined
  await fails('o/none', /no directory o\/none, and .* answered 404 .* no such model or revision/)
  await fails('o/m@v9', /answered 404/)
  await fails('o/gated', /answered 403 .* ask for access on http:.*\/o\/gated/)
})

test('offline, and without a network, the cache serves if it is whole', async () => {
  const offline = { ...env, HF_HUB_OFFLINE: '1' }
  await resolveModel('o/m', { env })
  requests = []
  const dir = path.join(folder(), 'snapshots', sha)
  assert.is(await resolveModel('o/m', { env: offline }), dir)
  assert.equal(requests, [])
  const gone = createServer()
  await new Promise<void>(resolve => gone.listen(0, '127.0.0.1', resolve))
  const unreachable = { ...env, HF_ENDPOINT: `http://127.0.0.1:${(gone.address() as AddressInfo).port}` }
  await new Promise(resolve => gone.close(resolve))
  const warnings: string[] = []
  const onWarning = (warning: Error) => warnings.push(warning.message)
  process.once('warning', onWarning)
  assert.is(await resolveModel('o/m', { env: unreachable }), dir)
  await new Promise(resolve => setImmediate(resolve))
  process.off('warning', onWarning)
  assert.match(warnings[0]!, /cannot be reached .*ECONNREFUSED.*using the copy/)

  env = { ...unreachable, HF_HOME: makeTempDir() }
  await fails('o/m', /cannot be reached/)
  env.HF_HUB_OFFLINE = '1'
  await fails('o/m', /has no whole copy of it; HF_HUB_OFFLINE forbids/)
})

test('a repository without safetensors is refused', async () => {
  const { 'model.safetensors': kept, ...rest } = files
  delete files['model.safetensors']
  await fails('o/m', /has no config.json or no model.safetensors/, 'ERR_RAPO_FORMAT')
  Object.assign(files, rest, { 'model.safetensors': kept! })
})

test.run()
