/** Makes text from a model, a file or another program safe to show to a person. */

/**
 * Characters that are invisible or change how other text is shown: control characters except newline and tab (every escape
 * sequence begins with one), soft hyphens, zero-width and bidirectional characters, line and paragraph separators, tags, the
 * byte-order mark, lone surrogates.
 */
export const HIDDEN = /[^\P{C}\n\t]|\u034f|[\u2028\u2029\u115f\u1160\u3164\uffa0]/gu

/**
 * For a terminal: each hidden character is written as in JSON, so that people see the character and the terminal does not act
 * on it.
 *
 *     plainText('\u001b[2J9*9') → '\\u001b[2J9*9'
 */
export function plainText(text: string): string {
  return text.replace(HIDDEN, character =>
    Array.from({ length: character.length }, (_, i) => {
      const code = character.charCodeAt(i).toString(16)
      return `\\u${code.padStart(4, '0')}`
    }).join(''),
  )
}

/** The same on one line. */
export const plainLine = (text: string) => plainText(text).replace(/\s+/g, ' ')

/** `1 step`, `2 steps`. */
export const plural = (
  count: number,
  one: string,
  many = `${one}s`,
  show: (count: number) => string = String,
) => `${show(count)} ${count === 1 ? one : many}`

/** `1.25 GB`, or `1.3 MB` below a tenth of that unit. */
export const byteSize = (bytes: number) =>
  bytes < 1e8 ? `${(bytes / 1e6).toFixed(1)} MB` : `${(bytes / 1e9).toFixed(2)} GB`

/** The commands' output. Text from a model, a file or a server cannot control the terminal. */
export const printLine = (text: string) => console.log(plainText(text))
export const printError = (text: string) => console.error(plainText(text))

/** Calls back when everything that was printed has been written. */
export const afterOutput = (done: () => void) => process.stdout.write('', done)
