/** Parts that several sections use. */
import { type Look, swatch } from './chart.js'
import { type Html, html } from './html.js'
import type { Run } from './load.js'

/** A run and its look in the whole report. */
export interface ShownRun {
  readonly run: Run
  readonly look: Look
}

export const runName = ({ run, look }: ShownRun): Html =>
  html`<span class="name">${swatch(look)}${run.name}</span>`

/** A line that takes the place of missing data of a run directory. */
export const missing = (what: string, command: string): Html =>
  html`<p class="missing">${what}; <code>${command}</code> writes it.</p>`
