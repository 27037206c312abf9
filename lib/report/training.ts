/** The course of training: one chart per metric (docs/metrics.md) with all runs, and the time of each phase. */
import { type HealthConfig, symptomsOf } from '../train/health.js'
import { lineChart } from './chart.js'
import { duration, number } from './format.js'
import { type Html, html } from './html.js'
import type { Run, StepMetrics } from './load.js'
import { missing, runName, type ShownRun } from './parts.js'
import { decimate, innerRange, movingMean, type Point } from './series.js'

type Trained = ShownRun & { readonly run: Run & { readonly metrics: readonly StepMetrics[] } }

interface Chart {
  readonly field: string
  readonly title: string
  /** The y axis starts at 0. */
  readonly fromZero?: boolean
}

const CHARTS: readonly Chart[] = [
  { field: 'rewardMean', title: 'Reward', fromZero: true },
  { field: 'zeroAdvantageFraction', title: 'Groups without signal', fromZero: true },
  { field: 'filteredFraction', title: 'Groups left out', fromZero: true },
  { field: 'kl', title: 'KL penalty', fromZero: true },
  { field: 'entropy', title: 'Entropy', fromZero: true },
  { field: 'loss', title: 'Loss' },
  { field: 'gradNorm', title: 'Gradient norm', fromZero: true },
  { field: 'clipFractionLow', title: 'Clipped, lower bound', fromZero: true },
  { field: 'clipFractionHigh', title: 'Clipped, upper bound', fromZero: true },
  { field: 'completionLengthMean', title: 'Completion length', fromZero: true },
  { field: 'turnsMean', title: 'Turns of an episode', fromZero: true },
  { field: 'truncatedFraction', title: 'Truncated completions', fromZero: true },
  { field: 'seconds', title: 'Seconds a step', fromZero: true },
]

/** Each of the two moving means covers this share of the steps to either side. */
const SMOOTHING = 1 / 100
/** Share of the raw values at each end that may lie outside a chart. */
const CUT = 0.02
/** The width of a chart in pixels, about; finer detail would not show. */
const RAW_BINS = 280
const LINE_BINS = 140
/** Largest number of runs for which the last value of each is shown beside a chart's title. */
const MOST_VALUES = 4

export function trainingSection(shown: readonly ShownRun[]): Html {
  const trained = shown.filter((entry): entry is Trained => (entry.run.metrics?.length ?? 0) > 0)
  const others = shown.filter(({ run }) => !run.metrics?.length && !run.isBase)
  const lastStep = Math.max(1, ...trained.map(({ run }) => run.metrics.at(-1)!.step))
  const reach = Math.floor(lastStep * SMOOTHING)
  const charts = chartsOf(trained).flatMap(chart => metricChart(chart, trained, reach, lastStep) ?? [])
  return html`<section id="training">
    <h2>Training</h2>
    ${
      trained.length > 0 &&
      html`${healthNotes(trained)}<p class="note">${smoothingNote(reach)} ${objectiveNote(trained)}</p>
    <div class="grid training">${charts}</div>${phases(trained)}`
    }
    ${trained.length + others.length === 0 && html`<p class="missing">No training is recorded here.</p>`}
    ${others.map(({ run }) => missing(`${run.name} has no line in metrics.jsonl`, 'rapo train'))}
  </section>`
}

/** What says that a run learns nothing; of a mean over seeds, what each of them says. */
function healthNotes(trained: readonly Trained[]): Html | false {
  const notes = trained
    .flatMap(({ run }) => run.seeds ?? [run])
    .flatMap(run =>
      symptomsOf(run.metrics ?? [], settingsOf(run)).map(({ text }) => ({ name: run.name, text })),
    )
  return (
    notes.length > 0 &&
    html`<div class="warning" role="alert"><b>In these steps little or nothing was learnt.</b>
      <ul>${notes.map(({ name, text }) => html`<li>${trained.length > 1 && html`<b>${name}</b> `}${text}</li>`)}</ul></div>`
  )
}

function settingsOf({ config }: Run): HealthConfig {
  const { maxNewTokens, groupSize } = (config?.value.sampling ?? {}) as Record<string, unknown>
  const known = (value: unknown) => (typeof value === 'number' ? value : undefined)
  return { maxNewTokens: known(maxNewTokens), groupSize: known(groupSize) }
}

const smoothingNote = (reach: number) =>
  reach > 0
    ? `Lines: weighted mean over ${4 * reach + 1} steps; faint: every step, of which the outermost ${100 * CUT} % may lie outside. The number is where the line ends.`
    : 'The number is where the line ends.'

/** Each run minimises its own loss: the values of two objectives measure different things. */
function objectiveNote(trained: readonly Trained[]): string {
  const objectives = trained.map(({ run }) => JSON.stringify(run.config?.value.objective))
  if (new Set(objectives).size < 2) return ''
  return 'Loss and KL penalty are those of each run’s own objective, and these differ: compare their course, not their values.'
}

function metricChart(
  { field, title, fromZero }: Chart,
  trained: readonly Trained[],
  reach: number,
  lastStep: number,
): Html | undefined {
  const series = trained.flatMap(entry => {
    const lines = isOfEvaluation(field) ? (entry.run.evals ?? []) : entry.run.metrics
    const points = lines.map(step => ({ x: step.step, y: metricOf(step, field) }))
    return points.some(({ y }) => y !== null) ? [{ entry, points, smooth: smoothed(points, reach) }] : []
  })
  if (series.length === 0) return undefined
  const curves = series.map(({ entry, points, smooth }) => ({
    look: entry.look,
    points: decimate(smooth, LINE_BINS),
    ...(reach > 0 && { faint: decimate(points, RAW_BINS) }),
  }))
  const axes = {
    label: `${title} by step`,
    xLabel: 'step',
    x: [Math.min(lastStep - 1, ...series.flatMap(({ points }) => points[0]?.x ?? [])), lastStep] as const,
    y: range(series, fromZero),
  }
  const last = series.map(({ entry, smooth }) => {
    const value = smooth.findLast(({ y }) => y !== null)?.y
    return html`<span class="${entry.look.className}" title="${entry.run.name}">${number(value)}</span>`
  })
  const values = last.length <= MOST_VALUES && html`<span class="last">${last}</span>`
  return html`<figure data-metric="${field}"><div class="chart-title"><b>${title}</b>${values}<code class="note">${field}</code></div>
    ${lineChart(axes, curves)}</figure>`
}

/** Two moving means in a row have weights that fall off to both sides, so that a spike becomes a bump and not a plateau. */
const smoothed = (points: readonly Point[], reach: number) => movingMean(movingMean(points, reach), reach)

/** With several rewards, a chart of each one's mean behind that of the reward. */
function chartsOf(trained: readonly Trained[]): Chart[] {
  const names = new Set(
    trained.flatMap(({ run }) => run.metrics.flatMap(({ rewards }) => Object.keys(rewards ?? {}))),
  )
  const [first, ...rest] = CHARTS
  const parts = [...names].map(name => ({
    field: `rewards.${name}.mean`,
    title: `Reward ${name}`,
    fromZero: true,
  }))
  const scores = new Set(trained.flatMap(({ run }) => run.evals?.flatMap(line => Object.keys(line)) ?? []))
  const evaluations = [...scores]
    .filter(isOfEvaluation)
    .map(name => ({ field: name, title: `Evaluation: ${name}`, fromZero: true }))
  return [...evaluations, first!, ...parts, ...rest]
}

/** pass@1, maj@4: of evals.jsonl, not of metrics.jsonl. */
const isOfEvaluation = (field: string) => /^(pass|maj)@\d+$/.test(field)

/** null if the step lacks the value. `seconds` is the sum over all phases. */
function metricOf(step: StepMetrics, field: string): number | null {
  if (field === 'seconds') {
    const seconds = Object.values(step.seconds ?? {}).filter(value => value != null)
    return seconds.length > 0 ? seconds.reduce((sum, value) => sum + value, 0) : null
  }
  const [, reward] = /^rewards\.(.*)\.mean$/.exec(field) ?? []
  const value = reward === undefined ? step[field] : step.rewards?.[reward]?.mean
  return typeof value === 'number' ? value : null
}

function range(
  series: readonly { points: readonly Point[]; smooth: readonly Point[] }[],
  fromZero = false,
): [number, number] {
  const values = (points: readonly Point[]) => points.flatMap(({ y }) => y ?? [])
  const raw = series.flatMap(({ points }) => innerRange(values(points), CUT) ?? [])
  const smooth = series.flatMap(({ smooth }) => innerRange(values(smooth), 0) ?? [])
  const all = [...raw, ...smooth, ...(fromZero ? [0] : [])]
  const [low, high] = [Math.min(...all), Math.max(...all)]
  if (low < high) return [low, high]
  return low === 0 ? [0, 1] : [low - Math.abs(low) / 2, low + Math.abs(low) / 2]
}

/** Mean seconds per step of each phase, as bars on one scale. */
function phases(trained: readonly Trained[]): Html | false {
  const means = trained.map(({ run }) => {
    const names = [...new Set(run.metrics.flatMap(({ seconds }) => Object.keys(seconds ?? {})))]
    return names.map(name => {
      const sum = run.metrics.reduce((sum, { seconds }) => sum + (seconds?.[name] ?? 0), 0)
      return { name, mean: sum / run.metrics.length }
    })
  })
  const longest = Math.max(...means.map(phases => phases.reduce((sum, { mean }) => sum + mean, 0)))
  if (!(longest > 0)) return false
  const rows = trained.map((entry, i) => {
    const bar = means[i]!.map(
      ({ mean }, phase) =>
        html`<span class="phase-${phase % 4}" style="width:${((100 * mean) / longest).toFixed(2)}%"></span>`,
    )
    const texts = means[i]!.map(
      ({ name, mean }, at) => html`${at > 0 && ' · '}<span class="whole">${name} ${duration(mean)}</span>`,
    )
    return html`<div>${runName(entry)}</div><div class="bar ${entry.look.className}" aria-hidden="true">${bar}</div><div class="phase-note">${texts}</div>`
  })
  return html`<h3>Where the time of a step goes</h3><div class="phases">${rows}</div>`
}
