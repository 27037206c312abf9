/** Nodes that several layers of the grammar make or ask about. */
import { Unreadable } from '../budget.js'
import type { Node } from '../tree.js'

export function apply(name: string, items: readonly Node[]): Node {
  return { type: 'apply', name, items }
}

export function isNumber(node: Node): node is Node & { type: 'number' } {
  return node.type === 'number' && node.value.denominator === 1n
}

export function marked(type: 'percent' | 'degrees', item: Node): Node {
  if (item.type === type) throw new Unreadable(`${type} of ${type}`)
  return { type, item }
}

export function primed(node: Node): Node {
  if (node.type !== 'variable') throw new Unreadable("a ' after what is no name")
  return { type: 'variable', name: `${node.name}'` }
}
