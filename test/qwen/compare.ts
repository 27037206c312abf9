/**
 * `npm run test:qwen`: a real Qwen2.5 against transformers, on the same machine.
 *
 * Rounding: both programs round float32 in an order of their own. What transformers' float32 loses against its float64 is
 * the measure; ours may lose as much, twice over, since it is not the same sum. The same for bfloat16.
 */
import { execFileSync } from 'node:child_process'
import { createHash } from 'node:crypto'
import {
  existsSync,
  mkdirSync,
  mkdtempSync,
  readFileSync,
  renameSync,
  rmSync,
  statSync,
  writeFileSync,
} from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { packTokens } from '../../lib/model/batch.js'
import { loadPolicy, saveLogits } from '../../lib/model/engine.js'
import type { Policy } from '../../lib/model/policy.js'
import { createTemplate, stopTokenIdsFor } from '../../lib/model/template.js'
import { loadTokenizer } from '../../lib/model/tokenizer.js'
import { cacheDir } from '../../lib/setup/cache.js'
import { findModel, findPython, problems } from './model.js'

const NEW_TOKENS = 64
/** Prompts whose logits are compared, each at this many positions spread over it. */
const LOGIT_PROMPTS = 2
const LOGIT_ROWS = 8

const model = findModel()
const python = await findPython()
const scratch = mkdtempSync(path.join(tmpdir(), 'rapo-qwen-'))
process.on('exit', () => rmSync(scratch, { recursive: true, force: true }))

const tokenizer = loadTokenizer(model)
const boxed = createTemplate('qwen-boxed', model)
const prompts = problems.map(({ prompt }) => tokenizer.encode(boxed.render(prompt)))
const rows = prompts
  .slice(0, LOGIT_PROMPTS)
  .map(({ length }) =>
    Array.from({ length: LOGIT_ROWS }, (_, i) => Math.floor(((i + 1) * length) / LOGIT_ROWS) - 1),
  )
const texts = [
  ...problems.map(({ prompt }) => prompt),
  ...problems.map(({ prompt }) => boxed.render(prompt)),
  '  two spaces , a comma !\n\n\ttabs\r\n',
  'naïve café – 数学は楽しい 🤔 \u00a0 ﬁ',
  '1234567890 3.14 −7 $\\frac{1}{2}$ <|im_end|>x<|endoftext|>',
]

const script = fileURLToPath(new URL('reference.py', import.meta.url))

/** What the script says: made once for each model, script and input, and kept in the cache, since it takes minutes. */
function reference(what: 'logits' | 'greedy', input: object) {
  const { size, mtimeMs } = statSync(path.join(model, 'model.safetensors'))
  const key = createHash('sha256')
    .update(JSON.stringify([what, path.resolve(model), size, mtimeMs, input]))
    .update(readFileSync(script))
    .digest('hex')
  const file = path.join(cacheDir(), 'qwen', `${key.slice(0, 16)}.safetensors`)
  if (!existsSync(file)) {
    console.log(`transformers computes ${what} to compare with (minutes, once)`)
    const source = path.join(scratch, `${what}.json`)
    writeFileSync(source, JSON.stringify(input))
    mkdirSync(path.dirname(file), { recursive: true })
    const args = [script, what, model, source, `${file}.part`]
    execFileSync(python, args, { stdio: ['ignore', 'inherit', 'pipe'] })
    renameSync(`${file}.part`, file)
  }
  const content = readFileSync(file)
  const length = Number(content.readBigUInt64LE(0))
  const header = JSON.parse(content.toString('utf8', 8, 8 + length))
  const arrays = (name: string) => {
    const { dtype, data_offsets } = header[name]
    const bytes = content.subarray(8 + length + data_offsets[0], 8 + length + data_offsets[1])
    const copy = new Uint8Array(bytes).buffer
    return dtype === 'F64' ? new Float64Array(copy) : new Float32Array(copy)
  }
  return { told: JSON.parse(header.__metadata__.told), arrays }
}

const expected = reference('logits', { texts, prompts: prompts.slice(0, LOGIT_PROMPTS), rows })
const { greedy } = reference('greedy', { prompts, newTokens: NEW_TOKENS }).told as { greedy: number[][] }

test('token ids and chats are those of transformers', () => {
  for (const [i, text] of texts.entries()) assert.equal(tokenizer.encode(text), expected.told.texts[i], text)
  for (const text of texts.slice(0, 40)) assert.is(tokenizer.decode(tokenizer.encode(text)), text)
  const chat = createTemplate('chat', model)
  for (const [i, text] of texts.entries()) assert.is(chat.render(text), expected.told.chats[i])
})

function errorsOf(found: ArrayLike<number>, exact: ArrayLike<number>) {
  let max = 0
  let squares = 0
  for (let i = 0; i < exact.length; i++) {
    const difference = Math.abs(found[i]! - exact[i]!)
    if (!(difference <= max)) max = difference
    squares += difference ** 2
  }
  return { max, rms: Math.sqrt(squares / exact.length) }
}

async function compareLogits(policy: Policy): Promise<void> {
  for (const [i, positions] of rows.entries()) {
    const file = path.join(scratch, `logits-${i}`)
    await saveLogits(policy, packTokens([prompts[i]!]), Int32Array.from(positions), file)
    const content = readFileSync(file)
    const start = 8 + Number(content.readBigUInt64LE(0))
    const ours = new Float32Array(new Uint8Array(content.subarray(start)).buffer)
    const exact = expected.arrays(`float64.${i}`)
    assert.is(ours.length, exact.length)
    const theirs = errorsOf(expected.arrays(`${policy.info.dtype}.${i}`), exact)
    const error = errorsOf(ours, exact)
    console.log(
      `  prompt ${i}, ${policy.info.dtype}: off float64 by ${error.max.toExponential(1)} at most, ${error.rms.toExponential(1)} rms; ` +
        `transformers by ${theirs.max.toExponential(1)}, ${theirs.rms.toExponential(1)}`,
    )
    assert.ok(error.rms <= 2 * theirs.rms)
    assert.ok(error.max <= 2 * theirs.max)
  }
}

async function compareSaved(policy: Policy, dtype: string, maxShardBytes: number): Promise<void> {
  const dir = path.join(scratch, `saved-${dtype}`)
  mkdirSync(dir)
  await policy.save(dir, { maxShardBytes })
  const answer = execFileSync(python, [script, 'check', model, dir, dtype], {
    stdio: ['ignore', 'pipe', 'pipe'],
  })
  const result = JSON.parse(answer.toString().trim().split('\n').at(-1)!)
  assert.equal(result, { different: [], missing: [], unexpected: [], tensors: result.tensors })
  assert.ok(result.tensors > 100)
  rmSync(dir, { recursive: true })
}

test('float32: logits equal to rounding, greedy completions token for token, saved weights', async () => {
  const policy = await loadPolicy(model, { trainable: false })
  await compareLogits(policy)
  const { tokens } = await policy.generate(packTokens(prompts), {
    ...{ n: 1, maxNewTokens: NEW_TOKENS, temperature: 0, topP: 1, topK: 0, minP: 0, seed: 1 },
    stopTokenIds: stopTokenIdsFor(model, tokenizer, boxed),
  })
  const ours = prompts.map((_, i) => [...tokens.tokenIds.subarray(tokens.offsets[i], tokens.offsets[i + 1])])
  const differing = ours.flatMap((ids, i) => (String(ids) === String(greedy[i]) ? [] : [i]))
  console.log(`  greedy: ${ours.length - differing.length} of ${ours.length} completions equal`)
  for (const [i, ids] of ours.entries()) {
    assert.equal(tokenizer.decode(ids), tokenizer.decode(greedy[i]!), `problem ${i}`)
    assert.equal(ids, greedy[i], `problem ${i}`)
  }
  await compareSaved(policy, 'float32', 700_000_000)
  await policy.dispose()
})

test('bfloat16: logits as close as those of transformers, saved weights', async () => {
  const policy = await loadPolicy(model, { trainable: false, dtype: 'bfloat16' })
  await compareLogits(policy)
  await compareSaved(policy, 'bfloat16', 5e9)
  await policy.dispose()
})

test.run()
