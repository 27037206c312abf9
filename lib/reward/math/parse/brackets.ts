/** What stands in brackets: groups, tuples, intervals, sets, absolute values, matrices and systems. */
import { Unreadable } from '../budget.js'
import type { Node } from '../tree.js'
import { Numerals } from './numerals.js'

export const closing: Readonly<Record<string, string>> = { '(': ')', '[': ']', '\\{': '\\}' }
const closingCommand: Readonly<Record<string, string>> = {
  langle: 'rangle',
  lfloor: 'rfloor',
  lceil: 'rceil',
}

export abstract class Brackets extends Numerals {
  protected braced(): Node {
    if (this.take('sign', '}')) throw new Unreadable('empty braces')
    const node = this.over()
    this.expect('sign', '}')
    return node
  }

  protected absolute(): Node {
    const outer = this.bars
    this.bars = 1
    const item = this.list()
    this.bars = outer
    this.expect('sign', '|')
    return { type: 'call', name: 'abs', items: [item] }
  }

  protected brackets(open: string): Node {
    const outer = this.bars
    this.bars = 0
    if (open === '\\{' && this.take('sign', '\\}')) return { type: 'constant', name: 'empty' }
    const first = this.peek()
    if (open === '\\{' && this.is('begin')) return this.system(outer)
    if (open === '\\{' && this.isSetBuilder()) {
      const condition = this.list()
      this.bars = outer
      this.expect('sign', '\\}')
      return condition
    }
    const isInSet = this.isInSet
    this.isInSet = open === '\\{'
    if (open === '\\{') this.bars = 1
    let inner = this.list()
    // {kπ : k ∈ ℤ}
    if (open === '\\{' && (this.take('sign', ':') || this.take('sign', '|')))
      inner = { type: 'list', connector: ',', items: [inner, this.list()] }
    this.isInSet = isInSet
    this.bars = outer
    const close = [')', ']', '\\}'].find(sign => this.take('sign', sign))
    if (!close || (close === '\\}') !== (open === '\\{')) throw new Unreadable(`no ${closing[open]}`)
    if (inner.type === 'list' && inner.connector === ',')
      return { type: 'brackets', open, close, items: inner.items }
    // (12)_8
    if (open === '(' && this.is('sign', '_') && inner.type === 'number') return this.based(first!.text)
    if (open === '(' && close === ')') return inner
    // [x] groups within expressions.
    if (open === '[' && close === ']') return inner
    return { type: 'brackets', open, close, items: [inner] }
  }

  /** A left brace before rows, which has no right brace. */
  protected system(bars: number): Node {
    const node = this.primary()
    this.take('sign', '\\}')
    this.bars = bars
    return node.type === 'matrix' ? { type: 'list', connector: 'and', items: node.rows.flat() } : node
  }

  /** {x | …, {x : … and {x ∈ ℝ | …: takes all before the condition. */
  protected isSetBuilder(): boolean {
    if (!this.is('letter')) return false
    const isInReals = this.peek(1)?.text === 'in' && this.peek(2)?.text === 'mathbb R'
    const mark = this.peek(isInReals ? 3 : 1)
    if (mark?.type !== 'sign' || (mark.text !== '|' && mark.text !== ':')) return false
    this.at += isInReals ? 4 : 2
    return true
  }

  protected commandBrackets(name: string): Node {
    const inner = this.list()
    if (!this.take('command', closingCommand[name]!)) throw new Unreadable(`no \\${closingCommand[name]}`)
    if (name === 'lfloor' || name === 'lceil') return { type: 'call', name: name.slice(1), items: [inner] }
    return { type: 'brackets', open: '(', close: ')', items: inner.type === 'list' ? inner.items : [inner] }
  }

  protected matrix(environment: string): Node {
    const isCases = /^(?:d?cases|aligned|align|gathered)$/.test(environment)
    if (!isCases && !/^(?:[pbBvV]?matrix|smallmatrix|array)$/.test(environment)) {
      throw new Unreadable(`the environment ${environment}`)
    }
    const bars = this.bars
    this.bars = 0
    const rows: Node[][] = []
    let row: Node[] = []
    while (!this.is('end')) {
      // "if x > 0", "otherwise"
      if (isCases && row.length > 0 && this.is('text') && /^(?:if|for|when|where)$/i.test(this.peek()!.text))
        this.at++
      row.push(isCases && row.length > 0 ? this.list() : this.relation())
      if (isCases) while (this.take('connector', ','));
      if (this.take('sign', '&')) continue
      rows.push(row)
      row = []
      if (!this.take('command', 'newline')) break
    }
    this.bars = bars
    this.expect('end', environment)
    if (rows.length === 0 || rows.some(({ length }) => length !== rows[0]!.length)) {
      throw new Unreadable('a matrix whose rows differ in length')
    }
    if (isCases) {
      if (rows[0]!.length > 2) throw new Unreadable('cases of more than two columns')
      return rows[0]!.length === 2
        ? { type: 'piecewise', items: rows.flat() }
        : { type: 'list', connector: 'and', items: rows.flat() }
    }
    const matrix: Node = { type: 'matrix', rows }
    return environment === 'vmatrix' ? { type: 'call', name: 'determinant', items: [matrix] } : matrix
  }
}
