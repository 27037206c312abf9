/** Small run directories for the report's tests, in the form that docs/files.md describes. */
import { mkdirSync, mkdtempSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import path from 'node:path'

export const temporaryDir = () => mkdtempSync(path.join(tmpdir(), 'rapo-report-'))

export interface FixtureFiles {
  config?: string
  metrics?: readonly object[] | string
  samples?: readonly object[] | string
  evaluation?: object | string
  evalSamples?: readonly object[] | string
  evals?: readonly object[] | string
  evalsSamples?: readonly object[] | string
}

export function writeRun(dir: string, files: FixtureFiles): string {
  mkdirSync(dir, { recursive: true })
  const write = (name: string, text: string | undefined) => {
    if (text !== undefined) writeFileSync(path.join(dir, name), text)
  }
  const lines = (value: readonly object[] | string | undefined) =>
    typeof value === 'object' ? value.map(line => `${JSON.stringify(line)}\n`).join('') : value
  const { evaluation } = files
  write('config.yaml', files.config)
  write('metrics.jsonl', lines(files.metrics))
  write('samples.jsonl', lines(files.samples))
  write('eval.json', typeof evaluation === 'object' ? JSON.stringify(evaluation) : evaluation)
  write('eval-samples.jsonl', lines(files.evalSamples))
  write('evals.jsonl', lines(files.evals))
  write('evals-samples.jsonl', lines(files.evalsSamples))
  return dir
}

export function metricsOf(steps: number, fields: object = {}) {
  return Array.from({ length: steps }, (_, i) => ({
    step: i + 1,
    rewardMean: 0.1 + (0.4 * i) / steps + 0.05 * Math.sin(i * 7.1),
    zeroAdvantageFraction: 0.2,
    loss: 0.01 * Math.sin(i * 3.3),
    kl: 0.1 * (i / steps),
    entropy: 1 - (0.5 * i) / steps,
    clipFractionLow: 0.001,
    clipFractionHigh: 0.002,
    gradNorm: 0.5 + 0.1 * Math.cos(i * 5.7),
    completionLengthMean: 9.5,
    truncatedFraction: 0,
    tokens: 1000,
    seconds: { rollout: 0.1, score: 0.01, train: 0.2, save: i % 50 === 0 ? 0.1 : 0 },
    ...fields,
  }))
}

export function samplesOf(steps: number) {
  return Array.from({ length: 2 * steps }, (_, i) => sampleOf({ step: 1 + Math.floor(i / 2), reward: i % 2 }))
}

export function sampleOf(fields: object = {}) {
  const rest = { problemId: 'p-1', prompt: '3 5 7 =22\n', completion: '3*5+7', reason: 'equals 22' }
  return { ...rest, reward: 1, finishReason: 'stop', ...fields }
}

/** Two problems of each of two difficulties, and passAtK of each group at k = 1, 4, 16, … */
export function evaluationOf(groups: Record<string, readonly number[]>, fields: object = {}) {
  const entries = Object.entries(groups).map(([name, passAtK]) => [
    name,
    {
      problems: name === 'all' ? 4 : 2,
      passAtK,
      low: passAtK.map(value => Math.max(0, value - 0.1)),
      high: passAtK.map(value => Math.min(1, value + 0.1)),
    },
  ])
  return {
    model: 'models/countdown-base',
    problems: 'data/test.jsonl',
    samplesPerProblem: 32,
    temperature: 1,
    seed: 1,
    maxNewTokens: 24,
    k: [1, 4, 16, 64, 256, 1024].slice(0, groups.all?.length ?? 3),
    groups: Object.fromEntries(entries),
    perProblem: [
      { id: 'e-1', difficulty: 'easy', n: 32, correct: 20 },
      { id: 'e-2', difficulty: 'easy', n: 32, correct: 12 },
      { id: 'h-1', difficulty: 'hard', n: 32, correct: 1 },
      { id: 'h-2', difficulty: 'hard', n: 32, correct: 0 },
    ],
    seconds: 2,
    tokens: 3000,
    ...fields,
  }
}

/** Complete runs named base, grpo and rapo. */
export function writeThreeRuns(dir: string) {
  const config = (penalty: string, output: string) =>
    `model:\n  dir: models/countdown-base\nobjective:\n  penalty: ${penalty}\n  klCoef: 0.02\nrun:\n  output: ${output}\n`
  const evalSamples = ['e-1', 'e-2', 'h-1'].flatMap(problemId => [
    sampleOf({ problemId }),
    sampleOf({ problemId, completion: '3+5+7', reward: 0, reason: 'equals 15, not 22' }),
  ])
  const base = writeRun(path.join(dir, 'base'), {
    evaluation: evaluationOf(
      {
        all: [0.1, 0.3, 0.5, 0.6, 0.7, 0.8],
        easy: [0.2, 0.55, 0.8, 0.9, 1, 1],
        hard: [0, 0.05, 0.2, 0.3, 0.4, 0.5],
      },
      { name: 'base' },
    ),
    evalSamples,
  })
  const grpo = writeRun(path.join(dir, 'grpo'), {
    config: config('reverse-k3', 'runs/grpo'),
    metrics: metricsOf(400),
    samples: samplesOf(400),
    evaluation: evaluationOf(
      {
        all: [0.3, 0.4, 0.5, 0.55, 0.6, 0.65],
        easy: [0.5, 0.6, 0.7, 0.8, 0.9, 1],
        hard: [0.12, 0.2, 0.3, 0.3, 0.3, 0.3],
      },
      { name: 'GRPO-RKL' },
    ),
    evalSamples,
  })
  const solved = [20, 12, 3, 2].map((correct, i) => ({
    id: ['e-1', 'e-2', 'h-1', 'h-2'][i],
    difficulty: i < 2 ? 'easy' : 'hard',
    n: 32,
    correct,
  }))
  const rapo = writeRun(path.join(dir, 'rapo'), {
    config: config('forward', 'runs/rapo'),
    metrics: metricsOf(400, { entropy: 0.8 }),
    samples: samplesOf(400),
    evaluation: evaluationOf(
      {
        all: [0.25, 0.45, 0.6, 0.65, 0.7, 0.75],
        easy: [0.45, 0.7, 0.9, 0.95, 0.99996, 1],
        hard: [0.1, 0.2, 0.4, 0.45, 0.5, 0.55],
      },
      { name: 'RAPO', perProblem: solved },
    ),
    evalSamples,
  })
  return { base, grpo, rapo }
}
