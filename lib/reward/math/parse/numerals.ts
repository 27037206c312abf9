/** Numbers as they are written: decimals, repeating decimals, mixed numbers, numbers in a base. */
import { Unreadable } from '../budget.js'
import { based, decimal, numberInWords, repeatingDecimal } from '../numbers.js'
import type { Token } from '../tokens.js'
import type { Node } from '../tree.js'
import { Names } from './names.js'

export abstract class Numerals extends Names {
  protected number({ text }: Token): Node {
    if (/[A-Z]/.test(text)) return this.lettersInBase(text)
    if (this.is('letter', 'C') && !this.peek()!.spaced && this.peek(1)?.type === 'number')
      return this.combinations(decimal(text))
    if (this.is('sign', '_')) return this.based(text)
    const node = this.repeating(text) ?? decimal(text)
    if (!/^\d+$/.test(text)) return node
    return this.mixed(node) ?? node
  }

  /** 12_8, (12)_8, 12_{\text{eight}} */
  protected based(text: string): Node {
    this.at++
    const hasBrace = this.take('sign', '{')
    const hasBracket = this.take('sign', '(')
    const token = this.peek()
    const base =
      token?.type === 'number' ? Number(token.text) : Number(valueOfWord(token?.text ?? '') ?? Number.NaN)
    if (!(base >= 2 && base <= 36)) throw new Unreadable('a subscript that is no base')
    this.at++
    if (hasBracket) this.expect('sign', ')')
    if (hasBrace) this.expect('sign', '}')
    return based(text, base)
  }

  /** 1A_{16} */
  protected lettersInBase(text: string): Node {
    this.expect('sign', '_')
    const hasBrace = this.take('sign', '{')
    const base = Number(this.peek()?.text)
    if (!this.take('number') || !(base >= 2 && base <= 36))
      throw new Unreadable('a subscript that is no base')
    if (hasBrace) this.expect('sign', '}')
    return based(text, base)
  }

  /** 0.1\overline{23} */
  protected repeating(text: string): Node | undefined {
    const dots = this.is('sign', '.') && /^\d+$/.test(text) ? 1 : 0
    const mark = this.peek(dots)
    if (mark?.type !== 'command' || !['overline', 'bar', 'dot'].includes(mark.text)) return undefined
    if (dots === 0 && !text.includes('.')) return undefined
    const isBraced = this.peek(dots + 1)?.text === '{'
    const digits = this.peek(dots + (isBraced ? 2 : 1))
    if (digits?.type !== 'number' || !/^\d+$/.test(digits.text)) return undefined
    this.at += dots + (isBraced ? 3 : 2)
    if (isBraced) this.expect('sign', '}')
    return repeatingDecimal(text, digits.text)
  }

  /** 3\frac{1}{2} and 3 1/2, where all three are whole numbers. */
  protected mixed(whole: Node): Node | undefined {
    const [start, tokens] = [this.at, this.tokens]
    let fraction: Node | undefined
    if (this.take('command', 'frac')) fraction = this.fraction()
    else if (
      this.is('number') &&
      this.peek()!.spaced &&
      this.peek(1)?.text === '/' &&
      this.peek(2)?.type === 'number'
    ) {
      fraction = { type: 'quotient', left: decimal(this.peek()!.text), right: decimal(this.peek(2)!.text) }
      this.at += 3
    }
    if (
      fraction?.type === 'quotient' &&
      [fraction.left, fraction.right].every(part => part.type === 'number' && part.value.denominator === 1n)
    ) {
      return { type: 'sum', items: [whole, fraction] }
    }
    this.at = start
    this.tokens = tokens
    return undefined
  }
}

function valueOfWord(word: string): bigint | undefined {
  const node = numberInWords(word)
  return node?.type === 'number' ? node.value.numerator : undefined
}
