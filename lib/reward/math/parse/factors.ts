/**
 * A factor: a number, name, command or bracket with what may follow it, such as powers, factorials, degrees, percent and
 * arguments.
 */
import { Unreadable } from '../budget.js'
import { decimal, ordinalEnding, perThousand } from '../numbers.js'
import { integer, type Node, type Relation } from '../tree.js'
import { closing } from './brackets.js'
import { Commands } from './commands.js'
import { apply, isNumber, marked, primed } from './nodes.js'

export const relations: Readonly<Record<string, Relation>> = {
  '=': '=',
  '<': '<',
  '>': '>',
  le: '<=',
  ge: '>=',
  ne: '!=',
  in: 'in',
  approx: '~',
  equiv: '=',
  to: '→',
  iff: '↔',
}
export const setOperations = { cup: 'union', cap: 'intersection', setminus: 'difference' } as const
/** Commands that stand between expressions, or behind them. */
const notFactors = new Set(
  'times cdot div pm mp newline rangle rfloor rceil not over choose dollar euro pound yuan mod pmod circ ldots norm'.split(
    ' ',
  ),
)
/**
 * Names of functions: f(5) is not a product. Among other names, only calls that nobody would write for a product: P(3), u(x).
 */
const functionNames = new Set(
  'f g h F G H \\phi \\Phi \\psi \\Psi \\Gamma \\zeta \\varphi \\sigma \\tau \\mu \\chi'.split(' '),
)

export abstract class Factors extends Commands {
  protected override primary(): Node {
    const token = this.peek()
    if (!token) throw new Unreadable('an end where more is expected')
    this.at++
    switch (token.type) {
      case 'number':
        return this.number(token)
      case 'letter':
        return this.letter(token)
      case 'command':
        return this.command(token.text)
      case 'begin':
        return this.matrix(token.text)
      case 'sign':
        if (token.text === '_' || token.text === '^') return this.combinations(undefined)
        if (token.text === '{' && this.peek()?.text === '}' && /^[_^]$/.test(this.peek(1)?.text ?? '')) {
          this.at += 2
          return this.combinations(undefined)
        }
        if (token.text === '{') return this.braced()
        if (token.text === '|') return this.absolute()
        if (Object.hasOwn(closing, token.text)) return this.brackets(token.text)
        break
    }
    throw new Unreadable(`"${token.text}" where a number or name is expected`)
  }

  /** A primary and its postfixes: powers, factorials, degrees, percent. */
  protected override factor(): Node {
    let node = this.nested(() => this.primary())
    for (;;) {
      if (this.take('sign', '^')) node = this.power(node)
      else if (this.take('sign', '!')) {
        const isDouble = this.take('sign', '!')
        node = { type: 'call', name: isDouble ? 'double factorial' : 'factorial', items: [node] }
      } else if (this.take('sign', '%')) node = marked('percent', node)
      else if (this.take('sign', '‰')) node = perThousand(node)
      else if (this.isCalled(node)) node = this.called(node)
      else if (this.take('sign', "'")) node = primed(node)
      else return node
    }
  }

  protected override isFactor(): boolean {
    const token = this.peek()
    if (!token) return false
    switch (token.type) {
      case 'letter':
        return this.integrals === 0 || !this.isDifferential()
      case 'number':
      case 'begin':
        return true
      case 'command':
        return !(
          Object.hasOwn(relations, token.text) ||
          Object.hasOwn(setOperations, token.text) ||
          notFactors.has(token.text) ||
          this.isUnitFraction()
        )
      case 'sign':
        if (token.text === '(' && this.peek(1)?.text === 'mod') return false
        return ['(', '[', '\\{', '{'].includes(token.text)
          ? !(token.text === '{' && this.peek(1)?.text === ':')
          : token.text === '|' && this.bars === 0
      default:
        return false
    }
  }

  /** Whether a bracket behind this name holds the arguments of a function. */
  protected isCalled(node: Node): boolean {
    if (!this.is('sign', '(')) return false
    if (node.type === 'apply') return node.name === '∘'
    const name = node.type === 'power' ? node.left : node
    if (name.type !== 'variable') return false
    if (functionNames.has(name.name.replace(/['_].*/, ''))) return true
    if (name !== node || name.name.length > 2) return false
    const [argument, close] = [this.peek(1), this.peek(2)]
    // P(3), u(x); A(1, 2) and C(9, 2)
    const isClosed = close?.text === ')' || (close?.text === ',' && /^[A-Z]$/.test(name.name))
    return isClosed && (argument?.type === 'number' || argument?.type === 'letter')
  }

  protected called(name: Node): Node {
    this.at++
    const { isInSet, bars } = { isInSet: this.isInSet, bars: this.bars }
    this.isInSet = false
    this.bars = 0
    const inner = this.nested(() => this.list())
    this.isInSet = isInSet
    this.bars = bars
    this.expect('sign', ')')
    const items = inner.type === 'list' && inner.connector === ',' ? inner.items : [inner]
    // C(9, 2)
    if (name.type === 'variable' && name.name === 'C' && items.length === 2 && items.every(isNumber))
      return { type: 'call', name: 'binomial', items }
    return applied(name, items)
  }

  protected power(base: Node): Node {
    const isBraced = this.is('sign', '{')
    const [mark, close] = isBraced ? [this.peek(1), this.peek(2)] : [this.peek(), undefined]
    if (mark?.text === 'circ' && (!isBraced || close?.text === '}')) {
      this.at += isBraced ? 3 : 1
      const scale = this.temperature()
      if (scale) {
        this.currency = scale
        return base
      }
      return marked('degrees', this.withMinutes(base))
    }
    // 45^o
    if (
      base.type === 'number' &&
      mark?.type === 'letter' &&
      mark.text === 'o' &&
      (!isBraced || close?.text === '}')
    ) {
      this.at += isBraced ? 3 : 1
      return marked('degrees', base)
    }
    // 21^{st}
    if (isBraced && base.type === 'number' && base.value.denominator === 1n) {
      const letters = [mark, close].map(token => (token?.type === 'letter' ? token.text : '')).join('')
      if (this.peek(3)?.text === '}' && letters === ordinalEnding(base.value.numerator)) {
        this.at += 4
        return base
      }
    }
    if (mark?.text === "'" && (!isBraced || close?.text === '}')) {
      this.at += isBraced ? 3 : 1
      return primed(base)
    }
    // 4^{\text{th}}
    const ordinal = isBraced ? mark : this.peek()
    if (ordinal?.type === 'text' && /^(?:st|nd|rd|th)$/.test(ordinal.text)) {
      this.at += isBraced ? 2 : 1
      if (isBraced) this.expect('sign', '}')
      return base
    }
    const right = this.script()
    // x^y^z stands for x^(y^z).
    if (!isBraced && this.take('sign', '^')) {
      return { type: 'power', left: base, right: this.nested(() => this.power(right)) }
    }
    return { type: 'power', left: base, right }
  }

  /** 20^\circ C, 20^\circ\text{C} */
  protected temperature(): string | undefined {
    const token = this.peek()
    const isName = token?.type === 'letter' || token?.type === 'text'
    const [, letter] = (isName && /^\s*([CF])(?:elsius|ahrenheit)?\s*$/.exec(token.text)) || []
    // 90^\circ C may be an angle named C, but not with a name behind it.
    if (letter === undefined || this.peek(1)?.type === 'letter') return undefined
    this.at++
    return letter === 'C' ? 'celsius' : 'fahrenheit'
  }

  /** 30^\circ 15' */
  protected withMinutes(degrees: Node): Node {
    const minutes = this.peek()
    if (minutes?.type !== 'number' || !/^\d\d?$/.test(minutes.text) || this.peek(1)?.text !== "'")
      return degrees
    this.at += 2
    return {
      type: 'sum',
      items: [degrees, { type: 'quotient', left: decimal(minutes.text), right: integer(60) }],
    }
  }

  /** What follows ^: braces, or one primary with its sign. */
  protected override script(): Node {
    if (this.take('sign', '-')) return { type: 'minus', item: this.script() }
    if (this.take('sign', '+')) return this.script()
    return this.nested(() => this.primary())
  }
}

/** f(x); (f ∘ g)(x) as f(g(x)). */
function applied(name: Node, items: readonly Node[]): Node {
  if (name.type !== 'apply') return apply(nameOfFunction(name), items)
  return applied(name.items[0]!, [applied(name.items[1]!, items)])
}

function nameOfFunction(node: Node): string {
  if (node.type === 'variable') return node.name
  const power = node.type === 'power' ? node.right : undefined
  const sign = power?.type === 'minus' ? '-' : ''
  const exponent = power?.type === 'minus' ? power.item : power
  if (node.type !== 'power' || node.left.type !== 'variable' || exponent?.type !== 'number')
    throw new Unreadable('what is no name of a function')
  return `${node.left.name}^${sign}${exponent.value.numerator}`
}
