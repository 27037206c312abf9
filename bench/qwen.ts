/**
 * `npm run bench:qwen`: compares rapo with transformers on a real Qwen2.5, in turns, each in a process of its own.
 *
 *   generate   useful tokens per second at temperature 1, on the same prompts: Hugging Face generate at batch N; rapo with as
 *              many sequences at once; rapo with more prompts than that, where a waiting prompt replaces a finished sequence
 *   train      reference forward, policy forward and backward on SEQUENCES × LENGTH tokens; the same step with transformers
 *              and torch eager (torch_step.py)
 *
 *   --dtype float32,bfloat16  --rounds 2  --batch 48  --new-tokens 48  --sequences 4  --length 320  --parts generate,train
 *
 * A ratio is the median over rounds of rapo / transformers, by wall-clock time and by processor time. Other work on the machine
 * changes processor time less. test/qwen/model.ts says where the model comes from.
 */
import { type ChildProcess, spawn } from 'node:child_process'
import { readFileSync } from 'node:fs'
import { cpus } from 'node:os'
import path from 'node:path'
import { createInterface } from 'node:readline'
import { fileURLToPath } from 'node:url'
import { parseArgs } from 'node:util'
import { rapo } from '../lib/loss/objective.js'
import { packBatch, packTokens, toSequence } from '../lib/model/batch.js'
import { loadPolicy, predictMemory } from '../lib/model/engine.js'
import type { ModelDType } from '../lib/model/policy.js'
import { createTemplate, stopTokenIdsFor } from '../lib/model/template.js'
import { loadTokenizer } from '../lib/model/tokenizer.js'
import { findModel, findPython, problems, root } from '../test/qwen/model.js'

interface Measured {
  seconds: number
  /** Processor time of all threads. */
  cpu: number
  tokens: number
  /** Peak of the resident memory, in bytes. */
  peak: number
}

if (process.argv[2] === 'worker')
  await work(process.argv[3]!, process.argv[4]!, process.argv[5] as ModelDType)
else await bench()

async function work(part: string, model: string, dtype: ModelDType): Promise<void> {
  const isTraining = part === 'train'
  const policy = await loadPolicy(model, {
    dtype,
    trainable: isTraining,
    ...(isTraining && { referenceDir: model }),
  })
  console.log(JSON.stringify({ version: 'rapo' }))
  for await (const line of createInterface({ input: process.stdin })) {
    const given = JSON.parse(line)
    const start = performance.now()
    const before = process.cpuUsage()
    let tokens = 0
    if (isTraining) {
      const sequences: number[][] = given.sequences
      const items = sequences.map((ids, i) =>
        toSequence(ids.slice(0, given.prompt), ids.slice(given.prompt), {
          advantage: (2 * i) / Math.max(1, sequences.length - 1) - 1,
          refWeight: 1,
        }),
      )
      const weight = 1 / (sequences.length * (sequences[0]!.length - given.prompt))
      await policy.accumulate(
        packBatch(
          items,
          items.map(() => weight),
        ),
        rapo(),
      )
      await policy.zeroGrad()
      tokens = sequences.flat().length
    } else {
      const sampling = { n: 1, maxNewTokens: given.newTokens, temperature: 1, topP: 1, topK: 0, minP: 0 }
      const rest = { stopTokenIds: given.stop, seed: given.seed, maxBatch: given.maxBatch }
      const made = await policy.generate(packTokens(given.prompts), { ...sampling, ...rest })
      tokens = made.tokens.tokenIds.length
    }
    const { user, system } = process.cpuUsage(before)
    const peak = process.resourceUsage().maxRSS * 1024
    const seconds = (performance.now() - start) / 1000
    console.log(JSON.stringify({ seconds, cpu: (user + system) / 1e6, tokens, peak }))
  }
  await policy.dispose()
}

async function bench(): Promise<void> {
  const { values: flags } = parseArgs({
    options: {
      dtype: { type: 'string', default: 'float32,bfloat16' },
      rounds: { type: 'string', default: '2' },
      batch: { type: 'string', default: '48' },
      'new-tokens': { type: 'string', default: '48' },
      sequences: { type: 'string', default: '4' },
      length: { type: 'string', default: '320' },
      parts: { type: 'string', default: 'generate,train' },
    },
  })
  const model = findModel()
  const python = await findPython()
  const tokenizer = loadTokenizer(model)
  const template = createTemplate('qwen-boxed', model)
  const stop = stopTokenIdsFor(model, tokenizer, template)
  const encoded = problems.map(({ prompt }) => tokenizer.encode(template.render(prompt)))
  const take = (count: number) => Array.from({ length: count }, (_, i) => encoded[i % encoded.length]!)
  const [rounds, batch, newTokens, sequences, length] = [
    flags.rounds,
    flags.batch,
    flags['new-tokens'],
    flags.sequences,
    flags.length,
  ].map(Number) as [number, number, number, number, number]
  const load = () => readFileSync('/proc/loadavg', 'utf8').split(' ')[0]
  console.log(`${path.basename(model)}; ${cpus().length} × ${cpus()[0]?.model.trim()}; load ${load()}`)

  for (const part of flags.parts.split(',')) {
    for (const dtype of flags.dtype.split(',')) {
      const script = fileURLToPath(import.meta.url)
      const ours = start(process.execPath, ['--import', 'tsx', script, 'worker', part, model, dtype])
      const theirs = start(python, [path.join(root, 'bench', 'qwen.py'), part, model, dtype])
      await Promise.all([ours.next(), theirs.next()])
      const rows: Record<string, Measured>[] = []
      for (let round = 0; round < rounds; round++) {
        if (part === 'generate') {
          const request = { prompts: take(batch), newTokens, stop, seed: round + 1 }
          rows.push({
            transformers: await theirs.ask(request),
            rapo: await ours.ask({ ...request, maxBatch: batch }),
            'rapo, replacing': await ours.ask({ ...request, prompts: take(3 * batch), maxBatch: batch }),
          })
        } else {
          const text = encoded.flat()
          const request = {
            prompt: 64,
            sequences: Array.from({ length: sequences }, (_, i) => text.slice(i * 37, i * 37 + length)),
          }
          rows.push({ transformers: await theirs.ask(request), rapo: await ours.ask(request) })
        }
      }
      ours.stop()
      theirs.stop()
      const size =
        part === 'generate' ? `batch ${batch}, ${newTokens} new tokens` : `${sequences} × ${length} tokens`
      console.log(`\n${part}, ${dtype}, ${size}; load ${load()}`)
      for (const name of Object.keys(rows[0]!)) {
        const median = (of: (row: Record<string, Measured>) => number) =>
          rows.map(of).sort((a, b) => a - b)[Math.floor(rows.length / 2)]!
        const speed = median(row => row[name]!.tokens / row[name]!.seconds)
        const wall = median(
          ({ [name]: a, transformers: b }) => (a!.tokens / a!.seconds / b!.tokens) * b!.seconds,
        )
        const cpu = median(({ [name]: a, transformers: b }) => (a!.tokens / a!.cpu / b!.tokens) * b!.cpu)
        const peak = Math.max(...rows.map(row => row[name]!.peak))
        console.log(
          `  ${name.padEnd(16)}${speed.toFixed(1).padStart(8)} tokens/s  ${wall.toFixed(2).padStart(6)}×  ` +
            `by processor time ${cpu.toFixed(2).padStart(6)}×  peak ${(peak / 1e9).toFixed(2)} GB`,
        )
      }
      if (part === 'train') {
        const shape = { promptTokens: 1, maxNewTokens: 1, sequences: 1 }
        const { masters, moments } = await predictMemory(model, { dtype: dtype as ModelDType }, shape)
        const state = ((masters + moments) / 1e9).toFixed(2)
        console.log(
          `  of rapo's peak ${state} GB are the optimizer's state, which transformers' step does not hold`,
        )
      }
    }
  }
}

/** A child process that answers each line with one line. */
function start(command: string, args: string[]) {
  const child: ChildProcess = spawn(command, args, { stdio: ['pipe', 'pipe', 'inherit'] })
  const lines = createInterface({ input: child.stdout! })[Symbol.asyncIterator]()
  const next = async (): Promise<Measured> => {
    const { value, done } = await lines.next()
    if (done) throw new Error(`${command} ended early`)
    return JSON.parse(value)
  }
  return {
    next,
    ask(request: object) {
      child.stdin!.write(`${JSON.stringify(request)}\n`)
      return next()
    },
    stop: () => child.stdin!.end(),
  }
}
