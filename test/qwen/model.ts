/** The real model that `npm run test:qwen` and `npm run bench:qwen` take, and a Python with transformers beside it. */
import { execFileSync } from 'node:child_process'
import { existsSync, mkdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { fileURLToPath } from 'node:url'
import { cacheDir } from '../../lib/setup/cache.js'
import { makeVenv } from '../../lib/setup/venv.js'

export const root = fileURLToPath(new URL('../..', import.meta.url))

/** Twenty problems of GSM8K's test set (MIT licence, openai/grade-school-math). */
export const problems: { prompt: string; answer: string }[] = readFileSync(
  path.join(root, 'test', 'qwen', 'gsm8k.jsonl'),
  'utf8',
)
  .trim()
  .split('\n')
  .map(line => JSON.parse(line))

/**
 * RAPO_QWEN: a Hugging Face directory of a Qwen2.5 model with its chat; else what ../shared/qwen/fetch 0.5b makes.
 * Ends the process, saying why, where there is neither.
 */
export function findModel(): string {
  if (process.env.RAPO_QWEN) return process.env.RAPO_QWEN
  const fetch = path.join(root, '..', 'shared', 'qwen', 'fetch')
  if (existsSync(fetch)) return execFileSync(fetch, ['0.5b'], { encoding: 'utf8' }).trim().split('\n').at(-1)!
  console.log(`SKIPPED: RAPO_QWEN names no model directory, and there is no ${fetch}`)
  process.exit(0)
}

const packages = ['torch==2.13.0', 'transformers==5.24.0', 'numpy', 'safetensors']

/** A python with torch and transformers: RAPO_TEST_PYTHON, else a private environment in the cache, made once. */
export async function findPython(): Promise<string> {
  if (process.env.RAPO_TEST_PYTHON) return process.env.RAPO_TEST_PYTHON
  const dir = path.join(cacheDir(), 'qwen', packages.slice(0, 2).join('-'))
  const python = path.join(dir, 'bin', 'python')
  if (existsSync(path.join(dir, 'rapo-done'))) return python
  console.log(`installing ${packages.join(', ')} into ${dir}`)
  rmSync(dir, { recursive: true, force: true })
  mkdirSync(path.dirname(dir), { recursive: true })
  const log = `${dir}.log`
  writeFileSync(log, '')
  const install = await makeVenv(dir, { env: process.env, log })
  await install('torch and transformers', packages)
  writeFileSync(path.join(dir, 'rapo-done'), '')
  return python
}
