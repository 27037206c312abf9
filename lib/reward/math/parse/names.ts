/** Names: letters with their indices, runs of capitals, accents; combinations such as C_9^2, whose letter looks like a name. */
import { Unreadable } from '../budget.js'
import type { Token } from '../tokens.js'
import type { Node } from '../tree.js'
import { isNumber } from './nodes.js'
import { Stream } from './stream.js'

export abstract class Names extends Stream {
  protected letter({ text, isBold }: Extract<Token, { type: 'letter' }>): Node {
    if (text === 'e') return { type: 'constant', name: 'e' }
    if (text === 'i' && !isBold) return { type: 'constant', name: 'i' }
    if (/^[CAP]$/.test(text) && this.is('sign', '_')) {
      const start = this.at
      const chosen = this.chosen(text)
      if (chosen) return chosen
      this.at = start
    }
    if (isBold) return this.variable(text, true)
    // AB
    let run = text
    if (/[A-Z]/.test(text)) while (this.isCapital()) run += this.tokens[this.at++]!.text
    return this.variable(run)
  }

  /** A further letter of a name in capitals. The letter must have no index or power of its own. */
  protected isCapital(): boolean {
    const token = this.peek()
    return token?.type === 'letter' && /[A-Z]/.test(token.text) && !token.isBold
  }

  /** C_9^2, A_9^2, P_9^2 */
  protected chosen(letter: string): Node | undefined {
    this.at++
    const top = this.script()
    if (!this.take('sign', '^') || !isNumber(top)) return undefined
    const below = this.script()
    if (!isNumber(below) || top.value.numerator < below.value.numerator || top.value.numerator < 2n)
      return undefined
    return { type: 'call', name: letter === 'C' ? 'binomial' : 'permutations', items: [top, below] }
  }

  /** _9C_2, ^9C_2, 9C2: behind the first mark, or the first number. */
  protected combinations(first: Node | undefined): Node {
    const top = first ?? this.script()
    const letter = this.peek()?.text
    if (!this.take('letter') || (letter !== 'C' && letter !== 'P'))
      throw new Unreadable('an index without a name')
    this.take('sign', '_')
    const below = this.script()
    return { type: 'call', name: letter === 'C' ? 'binomial' : 'permutations', items: [top, below] }
  }

  /** A name with its subscript. */
  protected variable(name: string, isVector = false): Node {
    const full = this.take('sign', '_') ? `${name}_${this.raw()}` : name
    return isVector ? { type: 'variable', name: full, isVector } : { type: 'variable', name: full }
  }

  protected accented(name: string): Node {
    const content = this.raw()
    const isVector = /^(?:vec|overrightarrow|hat|widehat)$/.test(name)
    return this.variable(`\\${name}(${content})`, isVector)
  }
}
