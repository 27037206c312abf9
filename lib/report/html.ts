/** A template tag for HTML. It escapes inserted values, so that text of a model cannot become markup. */

import { HIDDEN, plural } from '../base/text.js'

/** Text that is markup already. Only html`` and raw() make it. */
export class Html {
  constructor(readonly text: string) {}
  toString() {
    return this.text
  }
}

export type Content = Html | string | number | false | undefined | readonly Content[]

/**
 * Strings and numbers are escaped and lose hidden characters, Html is inserted as it is, arrays are joined, and false and
 * undefined insert nothing.
 */
export function html(strings: TemplateStringsArray, ...values: Content[]): Html {
  return new Html(strings.reduce((text, string, i) => text + render(values[i - 1]) + string))
}

/** Markup made elsewhere. Never give it text that comes from a file. */
export const raw = (text: string) => new Html(text)

function render(value: Content): string {
  if (value instanceof Html) return value.text
  if (value === undefined || value === false) return ''
  if (typeof value === 'object') return value.map(render).join('')
  return escapeHtml(String(value))
}

const ENTITIES: Record<string, string> = {
  '&': '&amp;',
  '<': '&lt;',
  '>': '&gt;',
  '"': '&quot;',
  "'": '&#39;',
}
const escapeHtml = (text: string) =>
  text.replace(HIDDEN, '\ufffd').replace(/[&<>"']/g, character => ENTITIES[character]!)

/** Text of a model: each hidden character is shown by its name, and the characters beyond `limit` are only counted. */
export function visibleText(text: string, limit = 4000): Html {
  const shown = text.length > limit ? text.slice(0, limit).replace(/[\ud800-\udbff]$/, '') : text
  const parts: Content[] = []
  let end = 0
  for (const match of shown.matchAll(HIDDEN)) {
    parts.push(shown.slice(end, match.index), html`<span class="hidden-char">${nameOf(match[0])}</span>`)
    end = match.index + match[0].length
  }
  parts.push(shown.slice(end))
  if (shown.length < text.length) {
    parts.push(
      html`<span class="hidden-char">… ${plural(text.length - shown.length, 'more character')}</span>`,
    )
  }
  return html`${parts}`
}

const nameOf = (character: string) =>
  `U+${character.codePointAt(0)!.toString(16).toUpperCase().padStart(4, '0')}`
