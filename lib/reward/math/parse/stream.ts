/**
 * The tokens of an answer, the place that the reader has reached, and what it is inside of. The layers of the grammar extend
 * this class, each in a file of its own.
 */
import { Unreadable } from '../budget.js'
import type { Token } from '../tokens.js'
import type { Node } from '../tree.js'

/** Deeper nesting is refused. */
const MAX_DEPTH = 60

export abstract class Stream {
  protected tokens: readonly Token[]
  protected at = 0
  /** Number of open |…|, inside which a bar closes. */
  protected bars = 0
  /** Whether a currency sign or the scale of a temperature was read in this expression. */
  protected currency: string | undefined
  /** Whether the parser is inside an integral, which its d ends. */
  protected integrals = 0
  /** Whether the parser is inside the braces of a set, where a colon ends the element. */
  protected isInSet = false
  #depth = 0

  constructor(tokens: readonly Token[]) {
    this.tokens = tokens
  }

  // Layers above, which layers below need for what stands in brackets.
  protected abstract over(): Node
  protected abstract list(): Node
  protected abstract relation(): Node
  protected abstract sum(): Node
  protected abstract signed(): Node
  protected abstract product(): Node
  protected abstract signedFactor(): Node
  protected abstract factor(): Node
  protected abstract isFactor(): boolean
  protected abstract primary(): Node
  protected abstract script(): Node
  protected abstract fraction(): Node

  protected peek(ahead = 0): Token | undefined {
    return this.tokens[this.at + ahead]
  }

  protected is(type: Token['type'], text?: string): boolean {
    const token = this.tokens[this.at]
    return token?.type === type && (text === undefined || token.text === text)
  }

  protected take(type: Token['type'], text?: string): boolean {
    const found = this.is(type, text)
    if (found) this.at++
    return found
  }

  protected expect(type: Token['type'], text: string): void {
    if (!this.take(type, text)) throw new Unreadable(`no ${text}`)
  }

  protected nested<T>(body: () => T): T {
    if (++this.#depth > MAX_DEPTH) throw new Unreadable('nested too deeply')
    const result = body()
    this.#depth--
    return result
  }

  protected isAtEnd(): boolean {
    const token = this.peek()
    if (!token) return true
    return (token.type === 'sign' && [')', ']', '\\}', '}'].includes(token.text)) || token.type === 'end'
  }

  protected isSign(): boolean {
    const token = this.peek()
    if (token?.type === 'sign') return token.text === '+' || token.text === '-'
    return token?.type === 'command' && (token.text === 'pm' || token.text === 'mp')
  }

  /** \frac{\text{m}}{\text{s}} */
  protected isUnitFraction(): boolean {
    const types = ['command', 'sign', 'text', 'sign', 'sign', 'text', 'sign']
    return this.is('command', 'frac') && types.every((type, i) => this.peek(i)?.type === type)
  }

  /** dx, d\theta */
  protected isDifferential(): boolean {
    const [letter, name] = [this.peek(), this.peek(1)]
    return (
      letter?.type === 'letter' &&
      letter.text === 'd' &&
      (name?.type === 'letter' || name?.type === 'command')
    )
  }

  /** The next token or braced group as text. */
  protected raw(): string {
    if (!this.take('sign', '{')) {
      const token = this.peek()
      this.at++
      return token?.text ?? ''
    }
    let text = ''
    for (let depth = 1; ; this.at++) {
      const token = this.peek()
      if (!token) throw new Unreadable('a brace that is not closed')
      if (token.text === '{' && token.type === 'sign') depth++
      if (token.text === '}' && token.type === 'sign' && --depth === 0) {
        this.at++
        return text
      }
      text += token.text
    }
  }
}
