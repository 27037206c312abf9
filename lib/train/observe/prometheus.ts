/** The newest step as a file in Prometheus' text format, for the textfile collector of node-exporter. */
import { writeWhole } from '../../base/files.js'
import type { StepMetrics } from '../metrics.js'

/**
 * Replaces the file atomically, so that the collector, which reads *.prom, never sees a part of it.
 * If that fails, the old file stays and ERR_RAPO_IO is thrown.
 */
export function writePrometheus(
  file: string,
  metrics: StepMetrics & { readonly eval?: Readonly<Record<string, number>> },
  labels: Readonly<Record<string, string>>,
): void {
  writeWhole(file, formatPrometheus(metrics, labels))
}

/**
 * One gauge per metric: rewardMean → rapo_reward_mean; seconds has its phase as a label, rewards have their name, eval has the
 * measure, such as pass@1.
 */
export function formatPrometheus(metrics: object, labels: Readonly<Record<string, string>>): string {
  const { rewards, ...others } = metrics as { rewards?: Readonly<Record<string, object>> }
  return [...Object.entries(others), ...rewardEntries(rewards)]
    .map(([name, value]) => {
      const gauge = `rapo_${name.replace(/[A-Z]/g, letter => `_${letter.toLowerCase()}`)}`
      const samples =
        typeof value === 'object' && value !== null
          ? Object.entries(value).map(([inner, number]) =>
              sample(gauge, { ...labels, [labelOf[name] ?? 'reward']: inner }, number),
            )
          : [sample(gauge, labels, value)]
      return `# HELP ${gauge} ${name} of metrics.jsonl\n# TYPE ${gauge} gauge\n${samples.join('')}`
    })
    .join('')
}

const labelOf: Readonly<Record<string, string>> = { seconds: 'phase', eval: 'measure' }

/** { math: { mean, std } } → rewardsMean and rewardsStd, each by the reward's name. */
function rewardEntries(rewards: Readonly<Record<string, object>> = {}): [string, object][] {
  const all = Object.entries(rewards)
  const statistics = new Set(all.flatMap(([, values]) => Object.keys(values)))
  return [...statistics].map(statistic => [
    `rewards${statistic[0]!.toUpperCase()}${statistic.slice(1)}`,
    Object.fromEntries(all.map(([name, values]) => [name, values[statistic as keyof object]])),
  ])
}

function sample(gauge: string, labels: Readonly<Record<string, string>>, value: unknown): string {
  const pairs = Object.entries(labels).map(([name, text]) => `${name}="${escapeLabel(text)}"`)
  return `${gauge}{${pairs.join(',')}} ${formatNumber(value)}\n`
}

function escapeLabel(text: string): string {
  return text.replaceAll('\\', '\\\\').replaceAll('"', '\\"').replaceAll('\n', '\\n')
}

/** A value that is not a number becomes NaN; metrics.jsonl has null there. */
function formatNumber(value: unknown): string {
  if (typeof value !== 'number' || Number.isNaN(value)) return 'NaN'
  if (Number.isFinite(value)) return String(value)
  return value > 0 ? '+Inf' : '-Inf'
}
