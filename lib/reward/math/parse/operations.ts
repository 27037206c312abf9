/** Operations from the tightest to the loosest: products, sums, ratios, operations on sets. */
import { Unreadable } from '../budget.js'
import { kindOfRatio } from '../numbers.js'
import { type Node, productOf, quotientOf } from '../tree.js'
import { Factors, setOperations } from './factors.js'
import { apply } from './nodes.js'

export abstract class Operations extends Factors {
  protected sets(): Node {
    let left = this.ratio()
    for (;;) {
      const token = this.peek()
      if (token?.type !== 'command' || !Object.hasOwn(setOperations, token.text)) return left
      this.at++
      left = { type: setOperations[token.text as keyof typeof setOperations], left, right: this.ratio() }
    }
  }

  protected ratio(): Node {
    const start = this.at
    const items = [this.sum()]
    while (this.colon()) items.push(this.sum())
    if (items.length === 1) return items[0]!
    const written = this.tokens.slice(start, this.at).map(({ text }) => text)
    return { type: 'ratio', items, kind: kindOfRatio(written.join('').replaceAll(/[{}]/g, '')) }
  }

  /** 3:5, or 4{:}51. */
  protected colon(): boolean {
    if (this.isInSet) return false
    if (this.take('sign', ':')) return true
    if (!this.is('sign', '{') || this.peek(1)?.text !== ':' || this.peek(2)?.text !== '}') return false
    this.at += 3
    return true
  }

  protected override sum(): Node {
    const items: Node[] = []
    do items.push(this.signed())
    while (this.isSign())
    return items.length === 1 ? items[0]! : { type: 'sum', items }
  }

  protected override signed(): Node {
    if (!this.isSign()) return this.product()
    const { text } = this.peek()!
    this.at++
    const item = this.nested(() => this.signed())
    if (text === '+') return item
    return { type: text === '-' ? 'minus' : text === 'pm' ? 'plusMinus' : 'minusPlus', item }
  }

  protected override product(): Node {
    let factors = [this.factor()]
    const join = (): Node => inOrder(factors) ?? productOf(...factors)
    for (;;) {
      if (this.take('command', 'times')) {
        const right = this.signedFactor()
        const isVectors = isVector(right) && factors.some(isVector)
        if (isVectors) factors = [{ type: 'apply', name: '×', items: [join(), right] }]
        else factors.push(right)
      } else if (this.take('command', 'cdot')) {
        const right = this.signedFactor()
        const [left] = factors
        if (factors.length === 1 && isTuple(left!) && isTuple(right)) factors = [apply('·', [left!, right])]
        else factors.push(right)
      } else if (this.take('sign', '*')) factors.push(this.signedFactor())
      else if (this.take('sign', '/') || this.take('command', 'div')) {
        factors = [quotientOf(join(), this.signedFactor())]
      } else if (this.take('command', 'mod')) {
        factors = [{ type: 'call', name: 'mod', items: [join(), this.signedFactor()] }]
      } else if (this.take('command', 'circ')) {
        factors = [{ type: 'apply', name: '∘', items: [join(), this.factor()] }]
      } else if (this.isFactor()) {
        const isNumber = this.is('number')
        // Two numbers side by side are not a product.
        if (isNumber && this.peek(-1)?.type === 'number') throw new Unreadable('two numbers side by side')
        factors.push(this.factor())
      } else return join()
    }
  }

  /** After × and ÷ a sign may stand. */
  protected override signedFactor(): Node {
    if (this.take('sign', '-')) return { type: 'minus', item: this.nested(() => this.signedFactor()) }
    if (this.take('sign', '+')) return this.nested(() => this.signedFactor())
    return this.factor()
  }
}

function isVector(node: Node): boolean {
  if (node.type === 'variable') return node.isVector === true
  if (node.type === 'apply') return node.name === '×'
  return node.type === 'matrix' || (node.type === 'brackets' && node.open === '(')
}

function isTuple(node: Node): boolean {
  return node.type === 'brackets' && node.open === '(' && node.items.length > 1
}

/** A product whose factors cannot be exchanged: A⁻¹B, A^T B. */
function inOrder(factors: readonly Node[]): Node | undefined {
  const isCapital = (node: Node) => node.type === 'variable' && /^[A-Z]/.test(node.name)
  const isMatrix = (node: Node) =>
    node.type === 'power' &&
    isCapital(node.left) &&
    (node.right.type === 'minus' || (node.right.type === 'variable' && /^(?:T|\\top)$/.test(node.right.name)))
  if (factors.length < 2 || !factors.some(isMatrix)) return undefined
  const matrices = factors.filter(node => isMatrix(node) || isCapital(node))
  if (matrices.length < 2) return undefined
  return productOf(...factors.filter(node => !matrices.includes(node)), apply('matrix product', matrices))
}
