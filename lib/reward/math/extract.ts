/** The final answer in a completion. */
import { isDenied, wordsOfAmount } from './words.js'

/** Which text is the answer: the last box; otherwise the answer that the text states; otherwise its last formula or number. */
export type Extraction = 'boxed' | 'final' | 'any'

export const extractions: readonly Extraction[] = ['boxed', 'final', 'any']

/** Only so many characters at the end of a text without a box are examined. */
const MAX_TEXT = 4000

/** undefined where there is none. */
export function extractAnswer(completion: string, extraction: Extraction): string | undefined {
  const boxed = extractBoxed(completion)
  if (boxed !== undefined || extraction === 'boxed') return boxed
  const text = completion.slice(-MAX_TEXT).trim()
  return statedAnswer(text) ?? (extraction === 'any' ? lastAnswer(text) : undefined)
}

const boxCommand = /\\(?:boxed|fbox)(?![A-Za-z])\s*/g
/** The text between boxes or formulas that form one answer together. */
const joint = /^(?:[\s$,;&]|\\[()[\],;: ]|\\(?:quad|qquad|text|mbox)(?![a-z])|[{}]|\b(?:and|or)\b)*$/

/**
 * The content of the last \boxed{…} or \fbox{…}. Its braces must be balanced; of nested boxes the outer one counts; empty boxes
 * are ignored unless all are empty. Several boxes with a comma, "and" or "or" between them are one list. \boxed 5, as TeX
 * allows it, holds the number that follows. undefined if there is no box.
 */
export function extractBoxed(completion: string): string | undefined {
  const closing = matchBraces(completion)
  let last: string[] | undefined
  let end = 0
  const add = (content: string, start: number, stop: number) => {
    const between = completion.slice(end, start)
    const isJoint =
      last !== undefined && /,|;|\b(?:and|or)\b/.test(between) && between.length < 60 && joint.test(between)
    // "The answer is \boxed{12}, within \boxed{} as you asked."
    if (last === undefined || content.trim() !== '') {
      const connector = /\bor\b/.test(between) ? ' \\text{ or } ' : ', '
      last = isJoint && !last!.includes(content) ? [...last!, connector, content] : isJoint ? last : [content]
    }
    end = stop
  }
  for (const match of completion.matchAll(boxCommand)) {
    if (match.index < end) continue
    const start = match.index + match[0].length
    if (completion[start] === '{') {
      const close = closing.get(start)
      if (close !== undefined) add(completion.slice(start + 1, close), match.index, close + 1)
    } else {
      const bare = /^(?:\$?-?\d[\d.,/]*\d|\$?-?\d)/.exec(completion.slice(start, start + 100))
      if (bare) add(bare[0].replace('$', ''), match.index, start + bare[0].length)
    }
  }
  return last?.join('')
}

/** For each opening brace the position of its closing brace, if there is one. Escaped braces are ignored. */
function matchBraces(text: string): Map<number, number> {
  const closing = new Map<number, number>()
  const open: number[] = []
  for (let at = 0; at < text.length; at++) {
    const character = text[at]
    if (character === '\\') at++
    else if (character === '{') open.push(at)
    else if (character === '}' && open.length > 0) closing.set(open.pop()!, at)
  }
  return closing
}

/** The final answer of a reference that is a whole solution: what follows the last ####, or the last box. */
export function finalReference(reference: string): string {
  const at = reference.lastIndexOf('####')
  const final = at < 0 ? extractBoxed(reference) : reference.slice(at + 4).trim()
  return final === undefined || final.trim() === '' ? reference : final
}

const statement =
  /(?:####|\b(?:ans|answer|solution|result|option|choice)s?\b(?:\s+(?:to|of|for)\b[^.:=\n]{0,80}?)?\**\s*(?:\bis\b|\bare\b|\bequals\b|=|:)|答案(?:是|为|：|:)?)/gi

/** "The answer is 5", "Answer: 5", "#### 5": what follows, up to the end of the sentence. */
function statedAnswer(text: string): string | undefined {
  const tagged = [...text.matchAll(/<answer>((?:(?!<answer>)[\s\S])*?)<\/answer>/gi)].at(-1)
  if (tagged) return tagged[1]!.trim() || undefined
  const last = [...text.matchAll(statement)].at(-1)
  if (!last) return undefined
  if (isDenied(sentenceBefore(text, last.index))) return undefined
  const rest = text.slice(last.index + last[0].length).replace(/^[\s*:}]+/, '')
  const formula = /^(?:\$\$[^$]*\$\$|\$[^$]*\$|\\\[[\s\S]*?\\\]|\\\([\s\S]*?\\\))/.exec(rest)?.[0] ?? ''
  const after = rest.slice(formula.length)
  const stop = /\n|[.!?](?=\s|\**$|$)|。/.exec(after)?.index ?? after.length
  const answer = `${formula}${after.slice(0, stop)}`.replaceAll('**', '').trim()
  return answer === '' ? undefined : answer
}

/** The text after the last end of a sentence. */
function sentenceBefore(text: string, at: number): string {
  return /[^.!?\n。]*$/.exec(text.slice(Math.max(0, at - 200), at))![0]
}

/** The last formula, or several with a comma or "and" between them. Of a text without formulas, the last line or number. */
function lastAnswer(text: string): string | undefined {
  const formula = lastFormula(text)
  if (formula) return isDenied(formula.around) ? undefined : formula.text
  const line = text
    .slice(text.lastIndexOf('\n') + 1)
    .replaceAll('**', '')
    .replaceAll(/\b(?:equals|is equal to)\b/gi, '=')
    .replace(introduction, '')
    .trim()
  if (!/[a-z]{3,}\s+[a-z]{2,}/i.test(line)) return line === '' ? undefined : line
  const number = [...line.matchAll(/(?<![\w.])[-−]?(?:\$\s?)?\d[\d,]*(?:\.\d+)?(?:\s?\/\s?\d+)?\s?%?/g)].at(
    -1,
  )
  if (!number) return undefined
  const after = line.slice(number.index + number[0].length)
  if (isDenied(`${sentenceBefore(line, number.index)} ${after}`)) return undefined
  const end = /[.!?,;:](?:\s|$)/.exec(after)?.index
  return `${number[0].trim()} ${wordsOfAmount(after.slice(0, end))}`.trim()
}

const introduction =
  /^(?:(?:so|thus|hence|therefore|then|finally|we (?:get|have|find)|it is|it['’]s|that is|this is|there (?:are|is)),?\s+)+/i

export interface Formula {
  readonly text: string
  /** The sentence that contains the answer, without the answer. */
  readonly around: string
}

/** The last formula between dollar signs, \( and \) or \[ and \], together with the formulas that are joined to it. */
export function lastFormula(text: string): Formula | undefined {
  const tail = text.slice(-MAX_TEXT)
  const formulas = [
    ...tail.matchAll(/\$\$([^$]+)\$\$|\$([^$]+)\$|\\\(((?:(?!\\[()]).)+)\\\)|\\\[((?:(?!\\[[\]]).)+)\\\]/gs),
  ]
  // The exponent of a unit in "10 cm$^2$" is not an answer.
  while (/^\$\s*[\^_]/.test(formulas.at(-1)?.[0] ?? '')) formulas.pop()
  const last = formulas.at(-1)
  if (!last) return undefined
  const contentOf = (match: RegExpExecArray) => match.slice(1).find(Boolean) ?? ''
  let content = contentOf(last)
  let first = last
  for (const match of formulas.slice(0, -1).reverse()) {
    const between = tail.slice(match.index + match[0].length, first.index)
    if (!/,|;|\b(?:and|or)\b/.test(between) || between.length > 30 || !joint.test(between)) break
    content = `${contentOf(match)}${/\bor\b/.test(between) ? ' \\text{ or } ' : ', '}${content}`
    first = match
  }
  const after = tail.slice(last.index + last[0].length)
  const stop = /[.!?](?:\s|$)|\n|。/.exec(after)?.index ?? after.length
  return { text: content, around: `${sentenceBefore(tail, first.index)} ${after.slice(0, stop)}` }
}
