/** Commands of LaTeX: fractions, roots, functions, sums, integrals and limits, symbols. */
import { Unreadable } from '../budget.js'
import { decimal } from '../numbers.js'
import type { Token } from '../tokens.js'
import { integer, LOG, mapParts, type Node, type NumberSet, productOf, quotientOf } from '../tree.js'
import { Brackets } from './brackets.js'
import { apply, isNumber } from './nodes.js'

const functions = new Set(
  (
    'sin cos tan cot sec csc arcsin arccos arctan arccot sinh cosh tanh ln log lg exp ' +
    'cis max min gcd lcm det arg Re Im'
  ).split(' '),
)
const numberSets: Readonly<Record<string, NumberSet>> = {
  R: 'reals',
  Z: 'integers',
  N: 'naturals',
  Q: 'rationals',
  C: 'complexes',
}
/** Commands that are names. Other commands may be unknown relations or operations. */
const symbols = new Set(
  (
    'alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi omicron rho sigma tau upsilon phi chi psi ' +
    'omega Gamma Delta Theta Lambda Xi Pi Sigma Upsilon Phi Psi Omega ell hbar imath jmath partial nabla aleph top ' +
    'square star bullet dagger infty'
  ).split(' '),
)
const inverses: Readonly<Record<string, string>> = {
  sin: 'arcsin',
  cos: 'arccos',
  tan: 'arctan',
  cot: 'arccot',
}
const accents = new Set(
  'vec hat bar overline overrightarrow tilde widehat widetilde dot ddot overleftrightarrow'.split(' '),
)

export abstract class Commands extends Brackets {
  protected command(name: string): Node {
    switch (name) {
      case 'pi':
        return { type: 'constant', name: 'pi' }
      case 'infty':
        return { type: 'constant', name: 'infinity' }
      case 'emptyset':
        return { type: 'constant', name: 'empty' }
      case 'sum':
      case 'prod':
      case 'int':
      case 'lim':
        return this.bound(name)
      case 'neg':
        return apply('¬', [this.factor()])
      case 'frac':
        return this.fraction()
      case 'binom':
        return { type: 'call', name: 'binomial', items: [this.argument(), this.argument()] }
      case 'sqrt':
        return this.root()
      case 'cbrt':
        return { type: 'call', name: 'sqrt', items: [this.operand(), integer(3)] }
      case 'norm': {
        const node = this.list()
        if (!this.take('command', 'norm')) throw new Unreadable('no closing \\|')
        return { type: 'call', name: 'norm', items: [node] }
      }
      case 'langle':
      case 'lfloor':
      case 'lceil':
        return this.commandBrackets(name)
      case 'dollar':
      case 'euro':
      case 'pound':
      case 'yuan':
        this.currency = `${name}s`
        return this.signedFactor()
      case 'abs':
        return { type: 'call', name: 'abs', items: [this.operand()] }
      case 'floor':
      case 'ceil':
        return { type: 'call', name, items: [this.operand()] }
      case 'newline':
      case 'rangle':
      case 'rfloor':
      case 'rceil':
      case 'ldots':
        throw new Unreadable(`\\${name} where it makes no sense`)
    }
    const set = /^mathbb (.)$/.exec(name)?.[1]
    if (set && Object.hasOwn(numberSets, set)) return { type: 'constant', name: numberSets[set]! }
    if (accents.has(name)) return this.accented(name)
    if (functions.has(name)) return this.function(name)
    if (!symbols.has(name)) throw new Unreadable(`\\${name}`)
    return this.variable(`\\${name}`)
  }

  protected override fraction(): Node {
    const [left, right] = [this.argument(), this.argument()]
    const derivative = derivativeOf(left, right)
    if (!derivative) return quotientOf(left, right)
    const { name, of } = derivative
    return apply(name, [of ?? (this.is('sign', '(') ? this.factor() : this.nested(() => this.product()))])
  }

  /** \sum_{k=1}^{n} and its summand; also products, integrals and limits. */
  protected bound(kind: 'sum' | 'prod' | 'int' | 'lim'): Node {
    let from: Node | undefined
    let to: Node | undefined
    for (;;) {
      if (!from && this.take('sign', '_'))
        from = this.is('sign', '{') ? this.nested(() => this.primary()) : this.script()
      else if (!to && this.take('sign', '^')) to = this.script()
      else break
    }
    if (kind === 'int') return this.integral(from, to)
    const body = this.nested(() => this.signed())
    const name = from?.type === 'relation' ? nameOfBound(from.items[0]!) : undefined
    if (from?.type !== 'relation' || name === undefined) throw new Unreadable(`\\${kind} without a variable`)
    const bounds = [...from.items.slice(1), ...(to ? [to] : [])]
    return { type: 'bound', kind, variable: name, items: [withVariable(body, name), ...bounds] }
  }

  protected integral(from: Node | undefined, to: Node | undefined): Node {
    this.integrals++
    const body = this.isDifferential() ? integer(1) : this.nested(() => this.sum())
    this.integrals--
    if (!this.isDifferential()) throw new Unreadable('an integral without its d')
    this.at++
    const variable = this.primary()
    if (variable.type !== 'variable') throw new Unreadable('an integral without its variable')
    const bounds = from && to ? [from, to] : []
    // Without bounds the variable is not bound.
    if (!from || !to) return apply(`∫ d${variable.name}`, [body])
    return { type: 'bound', kind: 'int', variable: variable.name, items: [body, ...bounds] }
  }

  /** An argument of \frac: braces, or one character. */
  protected argument(): Node {
    return this.nested(() => {
      const token = this.peek()
      if (token?.type !== 'number' || token.text.length === 1) return this.primary()
      if (!/^\d+$/.test(token.text)) throw new Unreadable('a decimal without braces')
      // \frac12: each takes one digit.
      const rest: Token = { ...token, text: token.text.slice(1), spaced: false }
      this.tokens = this.tokens.with(this.at, rest)
      return decimal(token.text[0]!)
    })
  }

  protected root(): Node {
    let index: Node | undefined
    if (this.take('sign', '[')) {
      index = this.sum()
      this.expect('sign', ']')
    }
    const radicand = this.operand()
    return { type: 'call', name: 'sqrt', items: index ? [radicand, index] : [radicand] }
  }

  /** What \sqrt takes: the next primary. */
  protected operand(): Node {
    return this.nested(() => this.primary())
  }

  protected function(name: string): Node {
    let power: Node | undefined
    let base: Node | undefined
    for (;;) {
      if (!power && this.take('sign', '^')) power = this.script()
      else if (!base && this.take('sign', '_')) base = this.script()
      else break
    }
    // In "\gcd + 1" the command is a name.
    if (!this.isSign() && !this.isFactor()) return this.variable(`\\${name}`)
    if (/^(?:gcd|lcm|max|min|det)$/.test(name) && this.isSign()) return this.variable(`\\${name}`)
    const isInverse =
      power?.type === 'minus' && power.item.type === 'number' && power.item.value.numerator === 1n
    const called = isInverse && inverses[name] ? inverses[name]! : name
    const node = this.call(called, base, this.functionArgument())
    return power && called === name ? { type: 'power', left: node, right: power } : node
  }

  protected call(name: string, base: Node | undefined, argument: Node): Node {
    if (name === 'ln') return { type: 'call', name: 'log', items: [argument] }
    if (name === 'lg') return { type: 'call', name: 'log', items: [argument, integer(10)] }
    if (name === 'log') {
      if (!base) return { type: 'call', name: LOG, items: [argument] }
      return {
        type: 'call',
        name: 'log',
        items: base.type === 'constant' && base.name === 'e' ? [argument] : [argument, base],
      }
    }
    return { type: 'call', name, items: argument.type === 'list' ? argument.items : [argument] }
  }

  /** (…), or the factors up to the next function, sign or operator. */
  protected functionArgument(): Node {
    if (this.is('sign', '(') || this.is('sign', '{')) {
      const node = this.nested(() => this.primary())
      // sin (x)^2 is (sin x)^2: the caller reads the power. A tuple is a list of arguments.
      return node.type === 'brackets' && node.open === '('
        ? { type: 'list', connector: ',', items: node.items }
        : node
    }
    const factors = [this.isSign() ? this.signedFactor() : this.factor()]
    while (this.isFactor() && !this.isFunction() && !this.is('sign', '(')) factors.push(this.factor())
    return factors.length === 1 ? factors[0]! : { type: 'product', items: factors }
  }

  protected isFunction(): boolean {
    const token = this.peek()
    return token?.type === 'command' && functions.has(token.text)
  }
}

/** Here i is an index and not the imaginary unit. */
function nameOfBound(node: Node): string | undefined {
  return node.type === 'variable' || (node.type === 'constant' && node.name === 'i') ? node.name : undefined
}

function withVariable(node: Node, name: string): Node {
  if (node.type === 'constant' && node.name === name) return { type: 'variable', name }
  return mapParts(node, part => withVariable(part, name))
}

/** dy/dx, d/dx, ∂f/∂x, d²y/dx² by their two halves. `of` is missing where the function follows. */
function derivativeOf(above: Node, below: Node): { name: string; of?: Node } | undefined {
  const [top, ...rest] = above.type === 'product' ? above.items : [above]
  const [bottom, ...by] = below.type === 'product' ? below.items : [below]
  const sign = (node: Node): string => {
    if (node.type === 'variable') return node.name
    return node.type === 'power' && isNumber(node.right)
      ? `${sign(node.left)}^${node.right.value.numerator}`
      : ''
  }
  if (!/^(?:d|\\partial)(?:\^\d+)?$/.test(sign(top!)) || sign(top!)[0] !== sign(bottom!)[0]) return undefined
  if (by.length === 0 || by.some(part => sign(part) === '')) return undefined
  const name = `${sign(top!)}/${[bottom!, ...by].map(sign).join('')}`
  return rest.length === 0 ? { name } : { name, of: productOf(...rest) }
}
