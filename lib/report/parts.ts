/** Parts that several sections use. */
import { TABLE_K } from '../eval/groups.js'
import { type Look, swatch } from './chart.js'
import { type Html, html } from './html.js'
import type { Evaluation, Run } from './load.js'

/** A run and its look in the whole report. */
export interface ShownRun {
  readonly run: Run
  readonly look: Look
}

export type Evaluated = ShownRun & { readonly run: Run & { readonly evaluation: Evaluation } }

/** So many values of k are all shown. */
const FEW = 4

/** The values of k that the tables show, of those that any evaluation has. */
export function tableKs(evaluated: readonly Evaluated[]): number[] {
  const ks = [...new Set(evaluated.flatMap(({ run }) => run.evaluation.k))].sort((a, b) => a - b)
  return ks.length <= FEW ? ks : ks.filter(k => TABLE_K.includes(k))
}

export const groupTitle = (group: string) =>
  group === 'all' ? 'All problems' : `${group.charAt(0).toUpperCase()}${group.slice(1)}`

/** How many seeds a mean is over. */
export const seedNote = ({ run: { seeds } }: ShownRun) =>
  seeds && html`<span class="interval">${seeds.length} seeds</span>`

export const runName = ({ run, look }: ShownRun): Html =>
  html`<span class="name">${swatch(look)}${run.name}</span>`

/** A line that takes the place of missing data of a run directory. */
export const missing = (what: string, command: string): Html =>
  html`<p class="missing">${what}; <code>${command}</code> writes it.</p>`
