/** The final answer in a completion. */

const boxCommand = /\\(?:boxed|fbox)(?![A-Za-z])\s*/g

/**
 * What stands in the last \boxed{…} or \fbox{…} whose braces are balanced, and which is not empty if another is not; the
 * outer one of nested boxes. \boxed 5, as TeX allows it, holds the number that follows. undefined where there is none.
 */
export function extractBoxed(completion: string): string | undefined {
  const closing = matchBraces(completion)
  let last: string | undefined
  let end = 0
  for (const match of completion.matchAll(boxCommand)) {
    if (match.index < end) continue
    const start = match.index + match[0].length
    if (completion[start] === '{') {
      const close = closing.get(start)
      if (close === undefined) continue
      const content = completion.slice(start + 1, close)
      // "The answer is \boxed{12}, within \boxed{} as you asked."
      if (last === undefined || content.trim() !== '') last = content
      end = close
    } else {
      const bare = /^(?:\$?-?\d[\d.,/]*\d|\$?-?\d)/.exec(completion.slice(start, start + 100))
      if (bare) last = bare[0].replace('$', '')
    }
  }
  return last
}

/** The place of the closing brace of every opening one that has one; escaped braces are none. */
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

/** The final answer of a reference that is a whole solution: behind the last ####, or in its last box. */
export function finalReference(reference: string): string {
  const at = reference.lastIndexOf('####')
  if (at >= 0) return reference.slice(at + 4).trim()
  return /\\(?:boxed|fbox)(?![A-Za-z])/.test(reference) ? (extractBoxed(reference) ?? reference) : reference
}
