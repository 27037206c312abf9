/** The abilities of the runs: the pass@k table and curves, and the number of problems solved at all. */
import { plural } from '../base/text.js'
import { lineChart, type MarkedPoint } from './chart.js'
import { coverage } from './compare.js'
import { differencesTable } from './differences.js'
import { count, percent, percentRange } from './format.js'
import { type Html, html } from './html.js'
import type { Evaluation } from './load.js'
import { type Evaluated, groupTitle, missing, runName, type ShownRun, seedNote, tableKs } from './parts.js'

export function passAtKSection(
  shown: readonly ShownRun[],
  conflicts: readonly string[],
  baseline?: string,
): Html {
  const evaluated = shown.filter((entry): entry is Evaluated => entry.run.evaluation !== undefined)
  const others = shown.filter(entry => entry.run.evaluation === undefined)
  const groups = groupNames(evaluated)
  return html`<section id="pass-at-k">
    <h2>pass@k</h2>
    ${
      evaluated.length > 0 &&
      html`<p class="note">The probability that at least one of k completions is correct, in percent, with its 95 % interval
      ${intervalNote(evaluated)} ${conditions(evaluated)}${conflicts.length === 0 && evaluated.length > 1 && ' The best value of a column is marked.'}</p>
    ${table(evaluated, groups, conflicts.length === 0, 'pass')}
    <div class="grid pass-at-k">${groups.map(group => curves(evaluated, group, groups))}</div>
    ${conflicts.length === 0 && differencesTable(evaluated, groups, baseline)}
    ${majority(evaluated, groups, conflicts.length === 0)}
    ${coverageTable(evaluated, groups)}`
    }
    ${others.map(({ run }) => missing(`${run.name} has no eval.json`, 'rapo eval'))}
  </section>`
}

/** 'all' first, then the difficulties in the order of their first appearance. */
function groupNames(evaluated: readonly Evaluated[]): string[] {
  const names = new Set(['all', ...evaluated.flatMap(({ run }) => Object.keys(run.evaluation.groups))])
  return [...names]
}

/** Which question each interval answers. */
function intervalNote(evaluated: readonly Evaluated[]): string {
  if (!evaluated.some(({ run }) => run.seeds)) return '(bootstrap over problems).'
  return `(bootstrap over problems: other problems of the same kind, the same trained models). A mean over seeds has two: the upper over seeds (Student’s t: other seeds, the same problems), the lower over problems. The bands are over seeds.`
}

/** The conditions of the evaluations. If they differ, the warning says how. */
function conditions(evaluated: readonly Evaluated[]): string {
  const all = evaluated.map(({ run }) => run.evaluation)
  const common = (read: (evaluation: Evaluation) => string | undefined) => {
    const values = new Set(all.map(read))
    return values.size === 1 ? [...values].filter(value => value !== undefined) : []
  }
  const parts = [
    ...common(({ groups }) => plural(groups.all!.problems, 'problem', 'problems', count)),
    ...common(
      ({ samplesPerProblem }) => `${plural(samplesPerProblem, 'completion', 'completions', count)} of each`,
    ),
    ...common(({ temperature }) => (temperature === undefined ? undefined : `temperature ${temperature}`)),
    ...common(({ maxNewTokens }) =>
      maxNewTokens === undefined
        ? undefined
        : `at most ${plural(maxNewTokens, 'token', 'tokens', count)} long`,
    ),
  ]
  return parts.length > 0 ? `${parts.join(', ')}.` : ''
}

/** maj@k of the runs whose verifier says what each completion answers. */
function majority(
  evaluated: readonly Evaluated[],
  groups: readonly string[],
  isComparable: boolean,
): Html | false {
  const voted = evaluated.filter(({ run }) => run.evaluation.groups.all?.majority)
  if (voted.length === 0 || tableKs(voted).length < 2) return false
  return html`<h3>maj@k</h3>
    <p class="note">The probability that the most frequent answer of k completions is correct (majority voting, cons@k), in percent, with its 95 % interval over problems.</p>
    ${table(voted, groups, isComparable, 'maj')}`
}

function table(
  evaluated: readonly Evaluated[],
  groups: readonly string[],
  isComparable: boolean,
  what: 'pass' | 'maj',
): Html {
  const ks = tableKs(evaluated)
  const valuesOf = (group: Evaluation['groups'][string] | undefined) => {
    const { values, low, high } =
      what === 'pass'
        ? { ...group, values: group?.passAtK }
        : { ...group?.majority, values: group?.majority?.majAtK }
    return { values: values ?? [], low: low ?? [], high: high ?? [] }
  }
  const cellOf = ({ run }: Evaluated, group: string, k: number) => {
    const index = run.evaluation.k.indexOf(k)
    const { values, low, high } = valuesOf(run.evaluation.groups[group])
    const value = index < 0 ? undefined : values[index]
    const problems = what === 'pass' ? run.evaluation.groups[group]?.overProblems : undefined
    const overProblems = problems && percentRange(problems.low[index]!, problems.high[index]!)
    return value === undefined ? undefined : { value, low: low[index]!, high: high[index]!, overProblems }
  }
  const rows = (group: string) => {
    const best = ks.map(k => Math.max(...evaluated.map(entry => cellOf(entry, group, k)?.value ?? -1)))
    const isMarked = isComparable && evaluated.length > 1
    return evaluated.map(entry => {
      const cells = ks.map((k, i) => {
        const cell = cellOf(entry, group, k)
        if (!cell) return html`<td>–</td>`
        // Values that are printed alike count as equally good.
        const isBest = isMarked && best[i]! > 0 && percent(cell.value) === percent(best[i])
        const interval = percentRange(cell.low, cell.high)
        return html`<td${isBest && html` class="best"`}><span class="value">${percent(cell.value)}</span>${[interval, cell.overProblems].map(text => text && html`<span class="interval">${text}</span>`)}</td>`
      })
      return html`<tr><td>${runName(entry)}${seedNote(entry)}</td>${cells}</tr>`
    })
  }
  return html`<div class="scroll"><table class="headline" style="--columns:${ks.length}">
    <thead><tr><th></th>${ks.map(k => html`<th scope="col"><span class="at">${what}@</span>${k}</th>`)}</tr></thead>
    ${groups.map(group => html`<tbody><tr><th class="group" scope="rowgroup">${groupTitle(group)}</th><td colspan="${ks.length}"></td></tr>${rows(group)}</tbody>`)}
  </table></div>`
}

/** One chart per group, all with the same axes, so that they can be compared. */
function curves(evaluated: readonly Evaluated[], group: string, groups: readonly string[]): Html {
  const inGroups = evaluated.flatMap(({ run }) => groups.flatMap(name => run.evaluation.groups[name] ?? []))
  const top = Math.max(
    0.01,
    ...inGroups.flatMap(({ passAtK, high }) => [...passAtK, ...high.map(value => value ?? 0)]),
  )
  const lastK = Math.max(2, ...evaluated.flatMap(({ run }) => run.evaluation.k))
  const drawn = evaluated.flatMap(({ look, run }) => {
    const points = markedPoints(run, group)
    return points.length > 0 ? [{ look, points, marked: points }] : []
  })
  const problems = evaluated[0]!.run.evaluation.groups[group]?.problems
  const axes = {
    label: `pass@k of ${group} problems`,
    xLabel: 'k =',
    x: [1, lastK] as const,
    y: [0, Math.min(1, top)] as const,
    isLog2: true,
    height: 250,
    formatY: (value: number) => `${Math.round(1000 * value) / 10} %`,
  }
  return html`<figure><div class="chart-title"><b>${groupTitle(group)}</b><span class="last">${problems !== undefined && plural(problems, 'problem', 'problems', count)}</span></div>
    ${lineChart(axes, drawn)}</figure>`
}

function markedPoints({ name, evaluation }: Evaluated['run'], group: string): MarkedPoint[] {
  const { passAtK, low, high } = evaluation.groups[group] ?? { passAtK: [], low: [], high: [] }
  return passAtK.map((y, i) => ({
    x: evaluation.k[i]!,
    y,
    low: low[i]!,
    high: high[i]!,
    title: `${name}: pass@${evaluation.k[i]} ${percent(y)} % (${percentRange(low[i]!, high[i]!) ?? 'no interval'})`,
  }))
}

/** A mean count: whole where it is. */
const tenths = (value: number) => (Number.isInteger(value) ? value : value.toFixed(1))

function coverageTable(evaluated: readonly Evaluated[], groups: readonly string[]): Html | false {
  if (evaluated.every(({ run }) => run.evaluation.perProblem.length === 0)) return false
  const base = evaluated.find(({ run }) => run.isBase)
  const cell = (entry: Evaluated, group: string) => {
    const { problems, solved, gained, lost } = coverage(entry.run, base?.run.evaluation, group)
    const change =
      gained !== undefined && html`<span class="interval">+${tenths(gained)} −${tenths(lost ?? 0)}</span>`
    return html`<td><span class="value">${tenths(solved)} of ${problems}</span>${change}</td>`
  }
  return html`<h3>Problems solved at least once</h3>
    <p class="note">Among all the completions of a problem at least one is correct.${base && evaluated.length > 1 && ` Below: problems that ${base.run.name} never solved (+), and those that only it solved (−).`}</p>
    <div class="scroll"><table>
    <thead><tr><th></th>${groups.map(group => html`<th scope="col">${groupTitle(group)}</th>`)}</tr></thead>
    <tbody>${evaluated.map(entry => html`<tr><td>${runName(entry)}</td>${groups.map(group => cell(entry, group))}</tr>`)}</tbody></table></div>`
}
