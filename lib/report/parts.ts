/** What several sections share. */
import { type Look, swatch } from './chart.js'
import { type Html, html } from './html.js'
import type { Run } from './load.js'

/** A run and how it looks everywhere in the report. */
export interface ShownRun {
  readonly run: Run
  readonly look: Look
}

export const runName = ({ run, look }: ShownRun): Html =>
  html`<span class="name">${swatch(look)}${run.name}</span>`

/** A line in the place of what a run directory lacks. */
export const missing = (what: string, command: string): Html =>
  html`<p class="missing">${what}; <code>${command}</code> writes it.</p>`
