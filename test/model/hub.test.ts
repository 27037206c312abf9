/** The hub's protocol from a server of our own: what is fetched, where it lies, and every way in which a download breaks. */
import { createHash } from 'node:crypto'
import { once } from 'node:events'
import {
  existsSync,
  lstatSync,
  mkdirSync,
  readdirSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  symlinkSync,
  writeFileSync,
} from 'node:fs'
import promises from 'node:fs/promises'
import { createServer, type IncomingMessage, type Server, type ServerResponse } from 'node:http'
import { syncBuiltinESMExports } from 'node:module'
import type { AddressInfo } from 'node:net'
import path from 'node:path'
import { parquetWriteBuffer } from 'hyparquet-writer'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { RapoError } from '../../lib/base/errors.js'
import { gradeLines } from '../../lib/cli/grade.js'
import { readProblems } from '../../lib/data/problems.js'
import { readRows } from '../../lib/data/rows.js'
import { resolveDataFile, resolveModel } from '../../lib/model/hub.js'
import { exact } from '../../lib/reward/exact.js'
import { tinyConfig } from '../helpers/engine-util.js'
import { makeTempDir } from '../helpers/fake-policy.js'

const sha = 'a'.repeat(40)
const weights = Buffer.from(Array.from({ length: 100_000 }, (_, i) => i % 251))
const configText = JSON.stringify(tinyConfig)
const files: Record<string, { content: Buffer; isLarge?: boolean }> = {
  'config.json': { content: Buffer.from(configText) },
  'tokenizer.json': { content: Buffer.from('{}') },
  'model.safetensors': { content: weights, isLarge: true },
  'pytorch_model.bin': { content: Buffer.from('not wanted'), isLarge: true },
  'README.md': { content: Buffer.from('# not wanted') },
}
const parquet = Buffer.from(
  parquetWriteBuffer({
    columnData: [
      { name: 'prompt', data: ['1 + 1?', '2 + 2?'] },
      { name: 'answer', data: ['2', '4'] },
    ],
  }),
)
/** Of the dataset o/d. */
const dataFiles: Record<string, { content: Buffer; isLarge?: boolean }> = {
  'main/train.parquet': { content: parquet, isLarge: true },
  'main/train.jsonl': {
    content: Buffer.from('{"prompt":"1 + 1?","answer":"2"}\n{"prompt":"2 + 2?","answer":"4"}\n'),
  },
  'main/with space.csv': { content: Buffer.from('prompt,answer\n1 + 1?,2\n2 + 2?,4\n') },
  'main/broken.parquet': { content: parquet.subarray(0, 50) },
}
const gitHash = (content: Buffer) =>
  createHash('sha1').update(`blob ${content.length}\0`).update(content).digest('hex')
const sha256 = (content: Buffer) => createHash('sha256').update(content).digest('hex')

/** Sends some bytes, waits until they are on the client's disk, and cuts the connection. */
async function cut(response: ServerResponse, bytes: Buffer, end: number, of = blob()): Promise<void> {
  response.write(bytes)
  const size = () => statSync(`${of}.incomplete`, { throwIfNoEntry: false })?.size
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
/** Answers of a test's own, by the beginning of the path. */
let rigged: Record<string, (response: ServerResponse, request: IncomingMessage) => void> = {}
const server = createServer(serve)
/** Another host: its port is another. */
const other = createServer((request, response) => onOther(request, response))
let onOther: typeof serve = serve
const addressOf = (of: Server) => `http://127.0.0.1:${(of.address() as AddressInfo).port}`

function serve(request: IncomingMessage, response: ServerResponse): void {
  const url = request.url!.split('?')[0]!
  requests.push({ url, range: request.headers.range })
  const rig = Object.keys(rigged).find(start => url.startsWith(start))
  const describe = ([name, { content, isLarge }]: [string, { content: Buffer; isLarge?: boolean }]) => ({
    type: 'file',
    path: name,
    size: content.length,
    oid: gitHash(content),
    ...(isLarge && { lfs: { oid: sha256(content), size: content.length, pointerSize: 130 } }),
  })
  const send = ({ content, isLarge }: { content: Buffer; isLarge?: boolean }) => {
    const start = !knowsRanges ? 0 : Number(request.headers.range?.match(/^bytes=(\d+)-$/)?.[1] ?? 0)
    if (start > 0)
      response.writeHead(206, { 'Content-Range': `bytes ${start}-${content.length - 1}/${content.length}` })
    if (isLarge) answer(response, content.subarray(start), start)
    else response.end(content.subarray(start))
  }
  const json = (value: unknown, status = 200) => {
    response.writeHead(status, { 'Content-Type': 'application/json' }).end(JSON.stringify(value))
  }
  if (rig !== undefined) {
    rigged[rig]!(response, request)
  } else if (token && request.headers.authorization !== `Bearer ${token}`) {
    json({ error: 'Invalid credentials' }, 401)
  } else if (url === '/api/models/o/gated/revision/main') {
    json({ error: 'Access to this model is restricted' }, 403)
  } else if (/^\/api\/models\/o\/m\/revision\/(main|v1|a{40})$/.test(url)) {
    json({ _id: '1', id: 'o/m', sha, lastModified: '2025-01-01T00:00:00Z' })
  } else if (url === `/api/models/o/m/tree/${sha}`) {
    json(Object.entries(files).map(describe))
  } else if (url.startsWith(`/o/m/resolve/${sha}/`)) {
    send(files[url.split('/').at(-1)!]!)
  } else if (/^\/api\/datasets\/o\/d\/revision\/(main|v1|refs%2Fconvert%2Fparquet)$/.test(url)) {
    json({ _id: '2', id: 'o/d', sha, lastModified: '2025-01-01T00:00:00Z' })
  } else if (url === `/api/datasets/o/d/paths-info/${sha}`) {
    let body = ''
    request.on('data', chunk => (body += chunk))
    request.on('end', () => {
      const { paths } = JSON.parse(body)
      json(
        Object.entries(dataFiles)
          .filter(([name]) => paths.includes(name))
          .map(describe),
      )
    })
  } else if (url.startsWith(`/datasets/o/d/resolve/${sha}/`)) {
    send(dataFiles[decodeURIComponent(url).split('/').slice(6).join('/')]!)
  } else {
    json({ error: 'Repository not found' }, 404)
  }
}

let env: NodeJS.ProcessEnv
test.before(async () => {
  for (const each of [server, other]) {
    await new Promise<void>(resolve => each.listen(0, '127.0.0.1', resolve))
  }
})
test.after(() => {
  for (const each of [server, other]) {
    each.closeAllConnections()
    each.close()
  }
})
test.before.each(() => {
  answer = whole
  token = undefined
  knowsRanges = true
  requests = []
  rigged = {}
  onOther = serve
  env = { HF_ENDPOINT: addressOf(server), HF_HOME: path.join(makeTempDir(), 'home') }
})

const folder = () => path.join(env.HF_HOME!, 'hub', 'models--o--m')
const blob = () => path.join(folder(), 'blobs', sha256(weights))
const fetched = () => requests.filter(({ url }) => url.endsWith('model.safetensors'))

async function fails(
  name: string,
  message: RegExp | string,
  code = 'ERR_RAPO_IO',
  resolve: typeof resolveModel = resolveModel,
): Promise<void> {
  let error: unknown
  try {
    await resolve(name, { env })
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
  const total = weights.length + configText.length + 2
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

test('what has come is not fetched again: a single byte, and all of them', async () => {
  mkdirSync(path.dirname(blob()), { recursive: true })
  writeFileSync(`${blob()}.incomplete`, weights.subarray(0, 1))
  const place = path.join(await resolveModel('o/m', { env }), 'model.safetensors')
  assert.equal(fetched(), [{ url: `/o/m/resolve/${sha}/model.safetensors`, range: 'bytes=1-' }])
  assert.equal(readFileSync(place), weights)
  env.HF_HOME = makeTempDir()
  requests = []
  mkdirSync(path.dirname(blob()), { recursive: true })
  writeFileSync(`${blob()}.incomplete`, weights)
  assert.equal(readFileSync(path.join(await resolveModel('o/m', { env }), 'model.safetensors')), weights)
  assert.equal(fetched(), [])
})

test('wrong bytes, too few and too many are found, and not kept', async () => {
  const cases: [Answer, RegExp][] = [
    [
      (response, body) => response.end(Buffer.alloc(body.length)),
      /damaged: its hash is \w+, the hub says \w+/,
    ],
    [
      (response, body) => response.end(Buffer.concat([body, body])),
      /damaged: it has more than the 100000 bytes that the hub says/,
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
  await fails('o/none', /no directory o\/none \(.*none\), and .* answered 404 .* no such model or revision/)
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
  await fails('o/m', /^o\/m on .* holds its weights as pytorch_model.bin only/, 'ERR_RAPO_FORMAT')
  Object.assign(files, rest, { 'model.safetensors': kept! })
})

test('a model that the engine cannot run is refused before its weights are fetched', async () => {
  const own = files['config.json']!
  const cases: [object, RegExp][] = [
    [{ architectures: ['GemmaForCausalLM'] }, /config.json: architectures is \["GemmaForCausalLM"\]/],
    [{ quantization_config: { quant_method: 'awq' } }, /config.json: quantization_config says .* by AWQ/],
  ]
  for (const [changes, message] of cases) {
    files['config.json'] = { content: Buffer.from(JSON.stringify({ ...tinyConfig, ...changes })) }
    requests = []
    await fails('o/m', message, 'ERR_RAPO_UNSUPPORTED')
    assert.ok(requests.some(({ url }) => url.endsWith('/config.json')))
    assert.not(requests.some(({ url }) => url.endsWith('/model.safetensors')))
  }
  files['config.json'] = own
})

test('a repository of an adapter says how the two are merged', async () => {
  const kept = { ...files }
  for (const name of Object.keys(files)) delete files[name]
  files['adapter_config.json'] = { content: Buffer.from('{}') }
  await fails('o/m', /^o\/m on .* holds an adapter of PEFT .*from_pretrained\('o\/m'/, 'ERR_RAPO_FORMAT')
  delete files['adapter_config.json']
  Object.assign(files, kept)
})

const dataFolder = () => path.join(env.HF_HOME!, 'hub', 'datasets--o--d')
const failsData = (name: string, message: RegExp | string, code?: string) =>
  fails(name, message, code, resolveDataFile)

/** readRows and what is built on it read the process's environment. */
async function inEnvironment<T>(body: () => Promise<T>): Promise<T> {
  const before = { ...process.env }
  Object.assign(process.env, env)
  try {
    return await body()
  } finally {
    for (const name of Object.keys(env)) {
      if (before[name] === undefined) delete process.env[name]
      else process.env[name] = before[name]
    }
  }
}

test("a file of a dataset lies as the hub's own programs lay it, and only it is fetched", async () => {
  const told: unknown[] = []
  const name = 'hf://datasets/o/d/main/train.parquet'
  const file = await resolveDataFile(name, { env, onProgress: (...all) => told.push(all) })
  assert.is(file, path.join(dataFolder(), 'snapshots', sha, 'main', 'train.parquet'))
  assert.equal(readFileSync(file), parquet)
  assert.ok(lstatSync(file).isSymbolicLink())
  assert.is(readFileSync(path.join(dataFolder(), 'refs', 'main'), 'utf8'), sha)
  assert.equal(readdirSync(path.join(dataFolder(), 'blobs')), [sha256(parquet)])
  assert.equal(told.at(-1), [parquet.length, parquet.length, name])
  requests = []
  assert.is(await resolveDataFile('hf://datasets/o/d@v1/main/train.parquet', { env }), file)
  assert.is(await resolveDataFile('hf://datasets/o/d@refs/convert/parquet/main/train.parquet', { env }), file)
  assert.is(
    await resolveDataFile('hf://datasets/o/d@refs%2Fconvert%2Fparquet/main/train.parquet', { env }),
    file,
  )
  assert.equal(
    requests.filter(({ url }) => url.includes('/resolve/')),
    [],
  )
  assert.is(await resolveDataFile('main/train.parquet', { env }), 'main/train.parquet')
})

test('problems and answers to grade from the hub: JSON Lines, CSV and Parquet alike', () =>
  inEnvironment(async () => {
    for (const name of ['train.parquet', 'train.jsonl', 'with space.csv']) {
      const file = `hf://datasets/o/d/main/${name}`
      const problems = await readProblems(file, exact)
      assert.equal(
        problems.map(({ prompt, answer }) => [prompt, answer]),
        [
          ['1 + 1?', '2'],
          ['2 + 2?', '4'],
        ],
        name,
      )
    }
    const output = path.join(env.HF_HOME!, 'graded.jsonl')
    dataFiles['main/answers.csv'] = { content: Buffer.from('answer,reference\n2,2\n3,4\n') }
    const input = 'hf://datasets/o/d/main/answers.csv'
    const counts = await gradeLines({ task: 'exact', input, output })
    assert.equal(counts, { correct: 1, total: 2, unusable: [] })
  }))

test('a file that is broken, or that the dataset has not, and a name of another form', async () => {
  await inEnvironment(async () => {
    const name = 'hf://datasets/o/d/main/broken.parquet'
    const error = await readRows(name).catch(error => error)
    assert.is(error.code, 'ERR_RAPO_DATA')
    assert.match(error.message, `${name} is no readable Parquet file: `)
  })
  await failsData(
    'hf://datasets/o/d/main/none.csv',
    /none.csv: the dataset o\/d on http:.* has no file main\/none.csv at revision main/,
    'ERR_RAPO_DATA',
  )
  await failsData(
    'hf://datasets/o/none/x.csv',
    /answered 404 for a dataset of that name: no such dataset or revision/,
  )
  await failsData('hf://datasets/o/d@v9/main/train.jsonl', /answered 404/)
  for (const name of [
    'hf://datasets/o/d',
    'hf://o/d/x.csv',
    'hf://datasets/o/d/../x',
    'hf://datasets/o/d@../x',
    'hf://datasets/o/d//x',
    'hf://datasets/o/d/x/',
  ]) {
    await failsData(name, /names no file: it must be hf:\/\/datasets\/OWNER\/NAME\/PATH/, 'ERR_RAPO_DATA')
  }
})

test('a broken download of data goes on where it stopped, by itself and in a later call', async () => {
  const name = 'hf://datasets/o/d/main/train.parquet'
  const place = path.join(dataFolder(), 'blobs', sha256(parquet))
  let cuts = 0
  answer = (response, body, start) => {
    if (++cuts === 1) cut(response, body.subarray(0, 100), start + 100, place)
    else response.destroy()
  }
  await failsData(name, /the connection broke at byte 100 of \d+ of .*goes on from there/)
  assert.is(statSync(`${place}.incomplete`).size, 100)
  cuts = 0
  requests = []
  answer = (response, body, start) => {
    if (++cuts === 1) cut(response, body.subarray(0, 100), start + 100, place)
    else response.end(body)
  }
  assert.equal(readFileSync(await resolveDataFile(name, { env })), parquet)
  assert.equal(
    requests.flatMap(({ url, range }) => (url.endsWith('train.parquet') ? [range] : [])),
    ['bytes=100-', 'bytes=200-'],
  )
})

test('data offline: the cached file serves, another is an error that says why', async () => {
  const name = 'hf://datasets/o/d/main/train.jsonl'
  const file = await resolveDataFile(name, { env })
  requests = []
  env.HF_HUB_OFFLINE = '1'
  assert.is(await resolveDataFile(name, { env }), file)
  await failsData(
    'hf://datasets/o/d/main/train.parquet',
    /train.parquet: the cache .*datasets--o--d has no whole copy of it; HF_HUB_OFFLINE forbids/,
  )
  assert.equal(requests, [])
})

const info = '/api/models/o/m/revision/'
const tree = '/api/models/o/m/tree/'
const answers = (value: unknown) => (response: ServerResponse) => {
  response.writeHead(200, { 'Content-Type': 'application/json' })
  response.end(typeof value === 'string' ? value : JSON.stringify(value))
}
const config = {
  type: 'file',
  path: 'config.json',
  size: configText.length,
  oid: gitHash(files['config.json']!.content),
}
const large = { type: 'file', path: 'model.safetensors', size: weights.length, oid: 'b'.repeat(40) }
/** All that lies in and beside the cache. */
const everything = () => readdirSync(path.dirname(env.HF_HOME!), { recursive: true })

test('a commit that is none is no path, and a commit that was asked for is not another', async () => {
  const b = 'b'.repeat(40)
  const wrong = [`../../../${sha}`, '..', '', 'main', sha.toUpperCase(), `${sha}\n`, sha.slice(1), 1, null]
  for (const other of wrong) {
    rigged[info] = answers({ _id: '1', id: 'o/m', sha: other })
    await fails('o/m', /answered that main is the commit |answered as no hub does/)
  }
  rigged[info] = answers({ _id: '1', id: 'o/m', sha: b })
  await fails(`o/m@${sha}`, `answered that ${sha} is the commit "${b}"`)
  rigged['/api/datasets/o/d/revision/'] = answers({ _id: '1', id: 'o/d', sha: '../../x' })
  await failsData('hf://datasets/o/d/main/train.jsonl', /answered that main is the commit "..\/..\/x"/)
  assert.equal(everything(), [])
})

test('a listing whose hashes, sizes or names are none writes nothing', async () => {
  const evil = '../../../../evil'
  const wrong: [unknown, RegExp][] = [
    ...[undefined, null, '', evil, 'b'.repeat(39), 'b'.repeat(64), 7, ['b'.repeat(40)]].map(
      oid => [[{ ...config, oid }], /listed a file without .*config.json/] as [unknown, RegExp],
    ),
    ...[evil, '', 'b'.repeat(40), 7, undefined].map(
      oid => [[{ ...large, lfs: { oid } }], /listed a file without .*model.safetensors/] as [unknown, RegExp],
    ),
    ...[-1, 1.5, '22', null, undefined, 1e300].map(
      size => [[{ ...config, size }], /listed a file without .*config.json/] as [unknown, RegExp],
    ),
    [[{ ...config, path: ['config.json'] }], /listed a file without/],
    [[config, { ...config, path: 'Config.json' }], /two files of one name: config.json and Config.json/],
    [[config, { ...config, oid: 'b'.repeat(40) }], /two files of one name: config.json and config.json/],
    [[null], /answered as no hub does/],
    [{ error: 'no list' }, /answered as no hub does/],
    ['<html>sign in to this network</html>', /answered as no hub does: Unexpected token/],
    ['', /answered as no hub does/],
    [[{ ...config, path: evil }, { ...config, path: `x/${evil}.json` }, large], /has no config.json/],
  ]
  for (const [listing, message] of wrong) {
    rigged[tree] = answers(listing)
    await fails('o/m', message, /has no/.test(message.source) ? 'ERR_RAPO_FORMAT' : 'ERR_RAPO_IO')
    assert.equal(everything(), [], JSON.stringify(listing))
  }
  // The same file twice, as a listing in parts may have it.
  rigged[tree] = answers([config, config, { ...large, lfs: { oid: sha256(weights) } }])
  assert.equal(readdirSync(await resolveModel('o/m', { env })).sort(), ['config.json', 'model.safetensors'])
})

test('of a dataset only the file that was asked for is taken', async () => {
  const file = { type: 'file', path: '../../../../evil', size: 1, oid: 'b'.repeat(40) }
  rigged['/api/datasets/o/d/paths-info/'] = answers([file, { ...file, path: 'main/Train.jsonl' }])
  await failsData('hf://datasets/o/d/main/train.jsonl', /has no file main\/train.jsonl/, 'ERR_RAPO_DATA')
  assert.equal(everything(), [])
})

test('names that lead out of the cache, on any system, are not looked up', async () => {
  const outside = path.join(env.HF_HOME!, 'hub', 'x')
  mkdirSync(path.join(folder(), 'refs'), { recursive: true })
  writeFileSync(outside, sha)
  for (const name of ['o/m@../../x', 'o/m@a/../../b', 'o/m@/x', 'o/m@.', 'o/m@a//b', '../m', 'o/..']) {
    assert.is(await resolveModel(name, { env }), name)
    assert.is(await resolveModel(name, { env: { ...env, HF_HUB_OFFLINE: '1' } }), name)
  }
  // They would share a folder with o--m/x and o/m--x.
  for (const name of ['o--m/x', 'o/m--x', 'o..p/m']) assert.is(await resolveModel(name, { env }), name)
  for (const file of ['C:x', 'a/c:\\x', 'a\\..\\..\\x', '\\\\host\\x', 'a\0b', 'a\nb', './x']) {
    await failsData(`hf://datasets/o/d/${file}`, /names no file/, 'ERR_RAPO_DATA')
  }
  await failsData('hf://datasets/o--d/e/x.csv', /names no file/, 'ERR_RAPO_DATA')
  assert.equal(requests, [])
  await failsData('hf://datasets/o/d/a--b/x..y.csv', /has no file a--b\/x..y.csv/, 'ERR_RAPO_DATA')
})

test('a small file of other bytes, and a file that goes on behind its end or stops before', async () => {
  const place = path.join(folder(), 'blobs', config.oid)
  rigged[`/o/m/resolve/${sha}/config.json`] = response => response.end(configText.replace('qwen2', 'qwen3'))
  await fails('o/m', /config.json is damaged: its hash is \w+, the hub says/)
  let sent = 0
  const closed = new Promise<void>(resolve => {
    rigged[`/o/m/resolve/${sha}/config.json`] = response => {
      const more = () => {
        response.write(Buffer.alloc(1000), () => setImmediate(more))
        sent += 1000
      }
      response.on('close', resolve)
      more()
    }
  })
  await fails('o/m', RegExp(`config.json is damaged: it has more than the ${configText.length} bytes`))
  await closed
  assert.ok(sent > configText.length)
  rigged = {
    [tree]: answers([
      { ...config, size: configText.length + 8 },
      { ...large, lfs: { oid: sha256(weights) } },
    ]),
  }
  await fails(
    'o/m',
    RegExp(
      `config.json is damaged: it has ${configText.length} bytes, the hub says ${configText.length + 8}`,
    ),
  )
  // Some servers refuse a range that begins at the end.
  mkdirSync(path.dirname(place), { recursive: true })
  writeFileSync(`${place}.incomplete`, files['config.json']!.content)
  rigged[`/o/m/resolve/${sha}/config.json`] = response => response.writeHead(416).end()
  await fails(
    'o/m',
    RegExp(
      `config.json is damaged: it has no more than ${configText.length} bytes, the hub says ${configText.length + 8}`,
    ),
  )
  assert.not(existsSync(place))
  assert.not(existsSync(`${place}.incomplete`))
})

test('answers without an end are cut', async () => {
  for (const url of [info, tree]) {
    rigged = {
      [url]: response => {
        const more = () => response.destroyed || response.write(Buffer.alloc(2 ** 20, ' '), more)
        more()
      },
    }
    await fails('o/m', /answered more than 16777216 bytes/)
  }
  let parts = 0
  rigged = {
    [tree]: response => {
      parts++
      response.setHeader('Link', `<${env.HF_ENDPOINT}${tree}${sha}?cursor=${parts}>; rel="next"`)
      response.end('[]')
    },
  }
  await fails('o/m', /goes on listing files after 1000 answers/)
  assert.is(parts, 999)
  assert.equal(everything(), [])
})

test('a token of a mirror is sent, to the hub alone, and an error does not show it', async () => {
  token = 'mirror-7f2c'
  env.HF_TOKEN = ` ${token}\n`
  const seen: (string | undefined)[] = []
  onOther = (request, response) => {
    seen.push(request.headers.authorization)
    if (request.url!.startsWith('/tree')) answers([config])(response)
    else response.end(weights)
  }
  rigged[`/o/m/resolve/${sha}/model.safetensors`] = (response, request) => {
    assert.is(request.headers.authorization, 'Bearer mirror-7f2c')
    response.writeHead(302, { Location: `${addressOf(other)}/blob` }).end()
  }
  rigged[tree] = response => {
    response.setHeader('Link', `<${addressOf(other)}/tree>; rel="next"`)
    answers([{ ...large, lfs: { oid: sha256(weights) } }])(response)
  }
  const dir = await resolveModel('o/m', { env })
  assert.equal(readdirSync(dir).sort(), ['config.json', 'model.safetensors'])
  assert.equal(seen, [undefined, undefined])
  env.HF_TOKEN = 'secret\nX-Evil: 1'
  await fails('o/m', /^the token of the hub must be ASCII letters/, 'ERR_RAPO_CONFIG')
})

test('an address of the hub that is none', async () => {
  for (const address of ['hub', 'file:///etc', 'http://name:secret@127.0.0.1:1', '//x']) {
    env.HF_ENDPOINT = address
    await fails(
      'o/m',
      /^HF_ENDPOINT must be an http:\/\/ or https:\/\/ address .*, got [^n]*$/,
      'ERR_RAPO_CONFIG',
    )
  }
})

test("the environment's proxies are used, NO_PROXY goes past them, and an error names them", async () => {
  const seen: string[] = []
  onOther = (request, response) => {
    seen.push(new URL(request.url!).host)
    request.url = request.url!.replace('http://hub.invalid', '')
    serve(request, response)
  }
  other.on('connect', ({ url }, socket) => {
    seen.push(url!)
    socket.end('HTTP/1.1 403 Forbidden\r\n\r\n')
  })
  const proxy = addressOf(other)
  const direct = env
  token = 'hf_right'
  env = { ...direct, HF_ENDPOINT: 'http://hub.invalid', HTTP_PROXY: proxy, HF_TOKEN: token }
  const dir = await resolveModel('o/m', { env })
  assert.equal(readFileSync(path.join(dir, 'model.safetensors')), weights)
  assert.equal([...new Set(seen)], ['hub.invalid'])
  assert.is(seen.length, 5)
  env = { ...direct, HF_HOME: makeTempDir(), HF_ENDPOINT: 'https://hub.invalid' }
  env.https_proxy = proxy.replace('http://', '')
  seen.length = 0
  await fails(
    'o/m',
    /cannot be reached \(.*403.*; by way of the proxy that HTTP_PROXY or HTTPS_PROXY names\)/,
  )
  assert.equal(seen, ['hub.invalid:443'])
  seen.length = 0
  env = { ...direct, HTTP_PROXY: proxy, NO_PROXY: 'example.org,127.0.0.1', HF_TOKEN: token }
  await resolveModel('o/m', { env })
  assert.equal(seen, [])
  env = { ...direct, HTTP_PROXY: 'http://[' }
  await fails('o/m', /^HTTP_PROXY and HTTPS_PROXY must be addresses/, 'ERR_RAPO_CONFIG')
  other.removeAllListeners('connect')
})

test('links in the cache that lead out of it are neither followed nor trusted', async () => {
  const dir = await resolveModel('o/m', { env })
  const outside = path.join(env.HF_HOME!, 'outside.json')
  const entry = path.join(dir, 'config.json')
  const small = path.join(folder(), 'blobs', config.oid)
  const replace = (file: string) => {
    rmSync(file, { force: true })
    writeFileSync(outside, '{"model_type":"outside"}')
    symlinkSync(outside, file)
  }
  const offline = { ...env, HF_HUB_OFFLINE: '1' }
  const isMended = async () => {
    assert.is(await resolveModel('o/m', { env: offline }).catch(error => error.code), 'ERR_RAPO_IO')
    assert.is(await resolveModel('o/m', { env }), dir)
    assert.is(await resolveModel('o/m', { env: offline }), dir)
    assert.is(readFileSync(entry, 'utf8'), configText)
    assert.is(readFileSync(outside, 'utf8'), '{"model_type":"outside"}')
  }
  replace(entry)
  await isMended()
  replace(small)
  await isMended()
  rmSync(small)
  replace(`${small}.incomplete`)
  await isMended()
  replace(path.join(folder(), 'refs', 'main'))
  await isMended()
  assert.is(readFileSync(path.join(folder(), 'refs', 'main'), 'utf8'), sha)
  // A branch that leads out of the snapshots, a link to other bytes of the cache, a file cut short.
  writeFileSync(path.join(folder(), 'refs', 'main'), '../../..')
  await isMended()
  rmSync(entry)
  symlinkSync(blob(), entry)
  assert.is(await resolveModel('o/m', { env }), dir)
  assert.is(readFileSync(entry, 'utf8'), configText)
  writeFileSync(small, '{')
  assert.is(await resolveModel('o/m', { env }), dir)
  assert.is(readFileSync(entry, 'utf8'), configText)
  // Where links are not allowed there are copies.
  rmSync(entry)
  writeFileSync(entry, configText)
  requests = []
  assert.is(await resolveModel('o/m', { env: offline }), dir)
  assert.is(await resolveModel('o/m', { env }), dir)
  assert.not(requests.some(({ url }) => url.includes('/resolve/')))
})

test('a copy without its tokenizer or with a shard elsewhere is not whole; the weights come last', async () => {
  const offline = { ...env, HF_HUB_OFFLINE: '1' }
  const isWhole = () =>
    resolveModel('o/m', { env: offline }).then(
      () => true,
      () => false,
    )
  const dir = await resolveModel('o/m', { env })
  renameSync(path.join(dir, 'tokenizer.json'), path.join(env.HF_HOME!, 'tokenizer.json'))
  assert.not(await isWhole())
  renameSync(path.join(env.HF_HOME!, 'tokenizer.json'), path.join(dir, 'tokenizer.json'))
  assert.ok(await isWhole())
  rmSync(path.join(dir, 'model.safetensors'))
  assert.not(await isWhole())
  const index = (shard: string) =>
    writeFileSync(
      path.join(dir, 'model.safetensors.index.json'),
      JSON.stringify({ weight_map: { a: shard, b: 'config.json' } }),
    )
  index('../../../../outside')
  writeFileSync(path.join(env.HF_HOME!, 'hub', 'outside'), '')
  assert.not(await isWhole())
  index('tokenizer.json')
  assert.ok(await isWhole())
  writeFileSync(path.join(dir, 'model.safetensors.index.json'), '{"weight_map":')
  assert.not(await isWhole())

  env.HF_HOME = makeTempDir()
  files['generation_config.json'] = { content: Buffer.from('{}') }
  answer = response => response.destroy()
  await fails('o/m', /the connection broke at byte 0 of 100000/)
  delete files['generation_config.json']
  const snapshot = path.join(folder(), 'snapshots', sha)
  assert.equal(readdirSync(snapshot).sort(), ['config.json', 'generation_config.json', 'tokenizer.json'])
})

test('where links are not allowed, a snapshot holds copies', async () => {
  const { symlink } = promises
  const refuse = (code: string) => {
    promises.symlink = () => Promise.reject(Object.assign(new Error(code), { code }))
    syncBuiltinESMExports()
  }
  try {
    refuse('ENOSPC')
    await fails('o/m', /the disk is full/)
    refuse('EPERM')
    const dir = await resolveModel('o/m', { env })
    assert.ok(lstatSync(path.join(dir, 'config.json')).isFile())
    assert.equal(readFileSync(path.join(dir, 'model.safetensors')), weights)
  } finally {
    promises.symlink = symlink
    syncBuiltinESMExports()
  }
  requests = []
  await resolveModel('o/m', { env })
  assert.not(requests.some(({ url }) => url.includes('/resolve/')))
})

test('what onProgress throws comes back as it is, and a cache that is whole may be read-only', async () => {
  // With the mark of an error of a file, of which the callback's is none.
  const thrown = Object.assign(new Error('enough'), { syscall: 'write' })
  for (const onProgress of [() => Promise.reject(thrown), () => fail(thrown)]) {
    assert.is(await resolveModel('o/m', { env, onProgress }).catch(error => error), thrown)
  }
  assert.not(existsSync(blob()))
  await resolveModel('o/m', { env })
  const before = statSync(path.join(folder(), 'refs', 'main'), { bigint: true })
  await resolveModel('o/m', { env })
  const after = statSync(path.join(folder(), 'refs', 'main'), { bigint: true })
  assert.equal([after.ino, after.mtimeNs], [before.ino, before.mtimeNs])
})

test('an onProgress that fails when everything was fetched is a warning', async () => {
  const late = new Error('too late')
  for (const last of [() => Promise.reject(late), () => fail(late)]) {
    rmSync(folder(), { recursive: true, force: true })
    let isChecked = false
    const onProgress = (done: number, total: number) => {
      if (done < total) return
      // Told first of the last bytes, then once more when they are checked.
      const answer = isChecked ? last() : undefined
      isChecked = true
      return answer
    }
    const warned = once(process, 'warning')
    const model = await resolveModel('o/m', { env, onProgress })
    assert.equal(readFileSync(path.join(model, 'model.safetensors')), weights)
    const [warning] = await warned
    assert.is(warning.name, 'RapoWarning')
    assert.match(warning.message, /onDownload failed.*too late/)
  }
})

test('an abort ends the request that is running, and gives the lock back; the next call goes on from there', async () => {
  const reason = new Error('enough')
  for (const sent of [0, 10_000]) {
    rmSync(folder(), { recursive: true, force: true })
    const controller = new AbortController()
    let closed: Promise<unknown> | undefined
    answer = (response, body) => {
      closed = once(response, 'close')
      response.write(body.subarray(0, sent))
      response.flushHeaders()
      // The rest never comes.
      if (sent === 0) setImmediate(() => controller.abort(reason))
    }
    const onProgress = (done: number) => {
      if (done > 5000) controller.abort(reason)
    }
    const calls = { env, onProgress, signal: controller.signal }
    assert.is(await resolveModel('o/m', calls).catch(error => error), reason)
    await closed
    assert.not(existsSync(path.join(folder(), 'rapo.lock')))
    answer = whole
    const dir = await resolveModel('o/m', { env })
    assert.equal(readFileSync(path.join(dir, 'model.safetensors')), weights)
  }
  assert.is(
    await resolveModel('o/m', { env, signal: AbortSignal.abort(reason) }).catch(error => error),
    reason,
  )
})

test('an abort reaches the files of data', async () => {
  const reason = new Error('enough')
  const name = 'hf://datasets/o/d/main/train.jsonl'
  const signal = AbortSignal.abort(reason)
  const error = await readProblems(name, exact, { signal }).catch(error => error)
  assert.is(error, reason)
})

function fail(error: Error): never {
  throw error
}

test.run()
