/**
 * The report on one or more runs: one HTML file that needs nothing else. Its sections follow the order of a reader's questions.
 */
import path from 'node:path'
import { RapoError } from '../base/errors.js'
import { makeDirectories, writeWhole } from '../base/files.js'
import { looks } from './chart.js'
import { configDifferences, evaluationConflicts } from './compare.js'
import { count, duration, withoutHome } from './format.js'
import { type Content, type Html, html, raw } from './html.js'
import { loadRuns, type Run, type StepMetrics } from './load.js'
import { missing, runName, type ShownRun } from './parts.js'
import { passAtKSection } from './passk.js'
import { samplesSection } from './samples.js'
import { groupBySeed, seedOf } from './seeds.js'
import { style } from './style.js'
import { trainingSection } from './training.js'

/** If the names take more characters than this, only their number is shown. */
const LONGEST_TITLE = 80

/** Scripts are forbidden: even if a model's text became markup, it could do nothing. */
const POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"

const SECTIONS = [
  ['pass-at-k', 'pass@k'],
  ['training', 'Training'],
  ['configuration', 'Configuration'],
  ['runs', 'Runs'],
  ['samples', 'Samples'],
] as const

export interface ReportOptions {
  /** Run directories (docs/files.md), in the order in which they are shown. */
  readonly runs: readonly string[]
  /** Directory with the base model's eval.json. Default: the only run without metrics.jsonl, if there is one. */
  readonly base?: string
  /** Name of the run that differences are taken to. Default: the first trained run. */
  readonly baseline?: string
  /** Show each run by itself, also those that differ by their seed alone. Default: the means of these. */
  readonly byRun?: boolean
  /** The HTML file. An existing file is replaced; a missing directory is made. */
  readonly output: string
  /** The time that the page shows as the time of its making. Default: now. */
  readonly made?: Date
}

/** Throws a RapoError that names the file, and the line or field, that cannot be read. The output is then left as it was. */
export async function writeReport(options: ReportOptions): Promise<void> {
  const { runs, base, baseline, byRun = false, output, made = new Date() } = options
  const loaded = await loadRuns(runs, base)
  const shown = byRun ? loaded : groupBySeed(loaded)
  if (baseline !== undefined && !shown.some(run => run.name === baseline && !run.isBase)) {
    const names = shown.filter(run => !run.isBase).map(run => run.name)
    throw new RapoError(
      'ERR_RAPO_INVALID_ARGUMENT',
      `baseline "${baseline}" is none of the trained runs: ${names.join(', ')}`,
    )
  }
  const page = renderPage(shown, made, baseline)
  makeDirectories(path.dirname(output))
  writeWhole(output, page)
}

function renderPage(runs: readonly Run[], made: Date, baseline?: string): string {
  const looksOfRuns = looks(runs.map(run => run.isBase))
  const shown = runs.map((run, i) => ({ run, look: looksOfRuns[i]! }))
  const conflicts = evaluationConflicts(runs)
  const names = runs.map(run => run.name).join(', ')
  const title = names.length <= LONGEST_TITLE ? names : `${runs.length} runs`
  return html`<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="${POLICY}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>${title} – rapo report</title>
<style>${raw(style)}</style>
</head>
<body>
<header><p class="overline">rapo report</p><h1>${title}</h1>
<nav>${SECTIONS.map(([id, name]) => html`<a href="#${id}">${name}</a>`)}</nav></header>
${warning(conflicts)}
<ul class="legend">${shown.map(entry => html`<li>${runName(entry)}</li>`)}</ul>
<main>
${passAtKSection(shown, conflicts, baseline)}
${trainingSection(shown)}
${configSection(shown)}
${factsSection(shown)}
${samplesSection(shown)}
</main>
<footer>Made on ${made.toISOString().slice(0, 16).replace('T', ' at ')} UTC by <code>rapo report</code>.</footer>
</body>
</html>
`.toString()
}

function warning(conflicts: readonly string[]): Html | false {
  return (
    conflicts.length > 0 &&
    html`<div class="warning" role="alert"><b>These runs were not evaluated alike; do not compare their pass@k.</b>
      <ul>${conflicts.map(conflict => html`<li>${conflict}</li>`)}</ul></div>`
  )
}

function configSection(shown: readonly ShownRun[]): Html {
  const configured = shown.flatMap(entry =>
    entry.run.config ? [{ ...entry, config: entry.run.config }] : [],
  )
  const others = shown.filter(({ run }) => !run.config && !run.isBase)
  const differences = configDifferences(configured.map(({ config }) => config.value))
  return html`<section id="configuration">
    <h2>Configuration</h2>
    ${
      configured.length > 1 &&
      differences.length > 0 &&
      html`<p class="note">Only the fields that differ.</p>
    <div class="scroll"><table class="config"><thead><tr><th></th>${configured.map(entry => html`<th scope="col">${runName(entry)}</th>`)}</tr></thead>
    <tbody>${differences.map(({ field, values }) => html`<tr><td>${breakable(field)}</td>${values.map(value => html`<td>${breakable(value ?? '–')}</td>`)}</tr>`)}</tbody></table></div>`
    }
    ${configured.length > 1 && differences.length === 0 && html`<p class="note">The configurations are equal.</p>`}
    ${configured.map(entry => html`<details><summary>${runName(entry)} <span class="note">config.yaml</span></summary><pre>${withoutHome(entry.config.text)}</pre></details>`)}
    ${configured.length + others.length === 0 && html`<p class="missing">No configuration is recorded here.</p>`}
    ${others.map(({ run }) => missing(`${run.name} has no config.yaml`, 'rapo train'))}
  </section>`
}

function factsSection(shown: readonly ShownRun[]): Html {
  return html`<section id="runs"><h2>Runs</h2><div class="cards wide">${shown.map(facts)}</div></section>`
}

/** Lines may break after the slashes and dots of a path or field. */
const breakable = (text: string): Html =>
  html`${withoutHome(text)
    .split(/(?<=[/.])/)
    .map((part, i) => [i > 0 && html`<wbr>`, part])}`

function facts(entry: ShownRun): Html {
  const { dir, config, metrics, evaluation } = entry.run
  const { seeds } = entry.run
  const rows: [string, Content][] = [[seeds ? 'First directory' : 'Directory', breakable(dir)]]
  if (seeds) rows.push(['Seeds', `${seeds.map(seedOf).join(', ')}; what follows are means`])
  const trainedModel = (config?.value.model as { dir?: unknown } | undefined)?.dir
  if (typeof trainedModel === 'string') rows.push(['Trained from', breakable(trainedModel)])
  if (metrics) {
    const sum = (read: (step: StepMetrics) => number) => metrics.reduce((sum, step) => sum + read(step), 0)
    const seconds = sum(step =>
      Object.values(step.seconds ?? {}).reduce<number>((sum, value) => sum + (value ?? 0), 0),
    )
    rows.push(
      ['Steps', count(metrics.at(-1)?.step ?? 0)],
      ['Tokens trained on', count(sum(step => (typeof step.tokens === 'number' ? step.tokens : 0)))],
      ['Training time', duration(seconds)],
    )
    if (metrics.length > 0) rows.push(['Time a step', duration(seconds / metrics.length)])
  }
  if (evaluation) {
    rows.push(
      ['Evaluated model', breakable(evaluation.model)],
      ['Problems', breakable(evaluation.problems)],
      ['Completions a problem', count(evaluation.samplesPerProblem)],
    )
    if (evaluation.seconds !== undefined) rows.push(['Evaluation time', duration(evaluation.seconds)])
    if (evaluation.seconds && evaluation.tokens) {
      rows.push([
        'Tokens generated',
        `${count(evaluation.tokens)} (${count(Math.round(evaluation.tokens / evaluation.seconds))} a second)`,
      ])
    }
  }
  return html`<div class="card"><h3>${runName(entry)}</h3><dl>${rows.map(([name, value]) => html`<dt>${name}</dt><dd>${value}</dd>`)}</dl></div>`
}
