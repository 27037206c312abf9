/** Paired differences of pass@k between the trained runs. */
import { isInGroup } from '../eval/groups.js'
import { pairedDifference } from '../eval/seeds.js'
import { type Html, html } from './html.js'
import type { Evaluation, Run } from './load.js'
import { type Evaluated, groupTitle, runName, seedNote, tableKs } from './parts.js'
import { seedOf, sharedKs } from './seeds.js'

/** The pairs of evaluations, of equal seeds where both runs stand for several. */
function pairsOf(run: Run, baseline: Run): [Evaluation, Evaluation][] {
  const pair = ({ evaluation }: Run, other: Run | undefined): [Evaluation, Evaluation][] =>
    evaluation && other?.evaluation ? [[evaluation, other.evaluation]] : []
  if (!run.seeds || !baseline.seeds) return run.seeds || baseline.seeds ? [] : pair(run, baseline)
  return run.seeds.flatMap(one =>
    pair(
      one,
      baseline.seeds!.find(other => seedOf(other) === seedOf(one)),
    ),
  )
}

/**
 * Each trained run minus the baseline, at each k, with the interval over seeds and the one over problems; false where there
 * is nothing to compare. Without a name the baseline is the first trained run.
 */
export function differencesTable(
  evaluated: readonly Evaluated[],
  groups: readonly string[],
  name?: string,
): Html | false {
  const trained = evaluated.filter(({ run }) => !run.isBase && run.evaluation.perProblem.length > 0)
  const baseline = trained.find(({ run }) => run.name === name) ?? trained[0]
  const others = trained.flatMap(entry => {
    const pairs = baseline && entry !== baseline ? pairsOf(entry.run, baseline.run) : []
    return pairs.length > 0 ? [{ entry, pairs }] : []
  })
  if (!baseline || others.length === 0) return false
  const all = others.flatMap(({ pairs }) => pairs.flat())
  const shown = tableKs(evaluated)
  const ks = sharedKs(all).filter(k => shown.includes(k))
  if (ks.length === 0) return false
  const rows = (group: string) =>
    others.map(({ entry, pairs }) => {
      const [left, right] = [0, 1].map(side =>
        pairs.map(pair => pair[side]!.perProblem.filter(problem => isInGroup(problem, group))),
      )
      if (left![0]!.length === 0) return false
      const { mean, seeds, problems } = pairedDifference(left!, right!, ks)
      const range = ({ low, high }: typeof seeds, i: number) =>
        Number.isNaN(low[i]!) ? undefined : `${points(low[i]!)} to ${points(high[i]!)}`
      const cells = ks.map(
        (_, i) =>
          html`<td><span class="value">${points(mean[i]!)}</span>${[range(seeds, i), range(problems, i)].map(text => text && html`<span class="interval">${text}</span>`)}</td>`,
      )
      return html`<tr><td>${runName(entry)}${seedNote(entry)}</td>${cells}</tr>`
    })
  const isOfSeeds = others.some(({ pairs }) => pairs.length > 1)
  const overProblems = 'over problems (would other problems say the same of these trained models?)'
  const intervals = isOfSeeds
    ? `: the upper over seeds (would other seeds say the same of these problems?), the lower ${overProblems}.`
    : ` ${overProblems}. One seed does not say what another would.`
  return html`<h3>Differences to ${baseline.run.name}</h3>
    <p class="note">In percentage points, paired by problem${isOfSeeds && ' and seed'}, with 95 % intervals${intervals}</p>
    <div class="scroll"><table class="headline differences" style="--columns:${ks.length}">
    <thead><tr><th></th>${ks.map(k => html`<th scope="col"><span class="at">pass@</span>${k}</th>`)}</tr></thead>
    ${groups.map(group => html`<tbody><tr><th class="group" scope="rowgroup">${groupTitle(group)}</th><td colspan="${ks.length}"></td></tr>${rows(group)}</tbody>`)}
  </table></div>`
}

/** A difference of probabilities in percentage points, with its sign. */
function points(value: number): string {
  const text = (100 * Math.abs(value)).toFixed(1)
  if (text === '0.0') return '0.0'
  return `${value < 0 ? '−' : '+'}${text}`
}
