/** Answers that consist of words, and the parts of them that count. */
import { MAX_ANSWER, replaceUnicode } from './tokens.js'
import type { Node } from './tree.js'

/** The text without insignificant white space and dollar signs. */
export function condense(source: string): string {
  return source
    .trim()
    .replaceAll(/[\s$]+/g, (run, at: number, all: string) =>
      /[A-Za-z\d,]/.test(all[at - 1] ?? '') && /[A-Za-z\d]/.test(all[at + run.length] ?? '') ? ' ' : '',
    )
}

/** Words alone: no markup, no punctuation, no articles, lower case. */
export function textOf(source: string): string {
  if (source.length > MAX_ANSWER) return source
  return replaceUnicode(source)
    .replaceAll(
      /\\(?:text(?:bf|it|rm|normal)?|mbox|mathrm|mathbf|mathit|operatorname|left|right|boxed|fbox|[,;:! ])/g,
      ' ',
    )
    .replaceAll(/[\s{}$()[\].,;:!?~"'`\\]+/g, ' ')
    .replaceAll(/\b(?:the|an?) (?=[a-z]{3})/gi, '')
    .trim()
    .toLowerCase()
}

/** A name or word as text; undefined for an expression that is computed. */
export function wordOf(node: Node): string | undefined {
  if (node.type === 'text') return textOf(node.text)
  if (node.type === 'variable') return node.name.toLowerCase()
  if (node.type === 'apply') {
    const words = node.items.map(wordOf)
    return words.includes(undefined) ? undefined : `${node.name}(${words.join(',')})`.toLowerCase()
  }
  if (node.type === 'constant') return node.name === 'e' || node.name === 'i' ? node.name : undefined
  if (node.type === 'product') {
    const words = node.items.map(wordOf)
    return words.includes(undefined) ? undefined : words.join('')
  }
  return node.type === 'brackets' && node.items.length === 1 ? wordOf(node.items[0]!) : undefined
}
