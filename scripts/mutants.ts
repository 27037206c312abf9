/** Mutants: single small mistakes in a source text, in a fixed order. */
import ts from 'typescript'

export interface Mutant {
  /** Its range in the text of the file, and the replacement; '' for a statement that is removed. */
  readonly start: number
  readonly end: number
  readonly text: string
  readonly what: string
}

/** The mistake in words. Of a long text, the part around the first difference is shown. */
function describe(name: string, before: string, after: string): string {
  let same = 0
  while (same < before.length && before[same] === after[same]) same++
  const from = after && before.length > 80 ? Math.max(0, same - 30) : 0
  const shorten = (part: string) => {
    const flat = part.slice(from).replace(/\s+/g, ' ')
    return (from > 0 ? '...' : '') + (flat.length > 80 ? `${flat.slice(0, 77)}...` : flat)
  }
  return `${name}: ${shorten(before)} → ${after ? shorten(after) : '(nothing)'}`
}

const T = ts.SyntaxKind
const swapped = new Map<ts.SyntaxKind, string[]>([
  [T.LessThanToken, ['<=', '>=']],
  [T.LessThanEqualsToken, ['<', '>']],
  [T.GreaterThanToken, ['>=', '<=']],
  [T.GreaterThanEqualsToken, ['>', '<']],
  [T.EqualsEqualsEqualsToken, ['!==']],
  [T.ExclamationEqualsEqualsToken, ['===']],
  [T.PlusToken, ['-']],
  [T.MinusToken, ['+']],
  [T.AsteriskToken, ['/']],
  [T.SlashToken, ['*']],
  [T.AmpersandAmpersandToken, ['||']],
  [T.BarBarToken, ['&&']],
  [T.QuestionQuestionToken, ['&&']],
  [T.PlusEqualsToken, ['-=']],
  [T.MinusEqualsToken, ['+=']],
])
const comparisons = [
  T.LessThanToken,
  T.LessThanEqualsToken,
  T.GreaterThanToken,
  T.GreaterThanEqualsToken,
  T.EqualsEqualsEqualsToken,
  T.ExclamationEqualsEqualsToken,
]
const twins = new Map([
  ['min', 'max'],
  ['max', 'min'],
  ['ceil', 'floor'],
  ['floor', 'ceil'],
  ['some', 'every'],
  ['every', 'some'],
])
/** Calls whose arguments are only words for a person. The removal of such a call is a mutant, its words are not. */
const wording =
  /\b(fault|refused|invalid|describe|help|emitWarning|printLine|printError|option|argument|description|summary|usage|addHelpText)$/
/** Durations of waiting, and sizes of pieces: another number changes only how long something takes. */
const paces = /(ms|millis|interval|timeout|delay|patience|period|pause|buffer|chunk|size)$/i

/**
 * Types, imports and the wording of messages are not changed: a test that noticed such a change would prove nothing. Nor are
 * durations, and arguments of two kinds are not swapped: the type check finds that.
 */
export function drawTypeScript(file: string, source: string): Mutant[] {
  const tree = ts.createSourceFile(file, source, ts.ScriptTarget.Latest, true)
  const mutants: Mutant[] = []
  const add = (start: number, end: number, text: string, name: string) =>
    mutants.push({ start, end, text, what: describe(name, source.slice(start, end), text) })
  const replace = (node: ts.Node, text: string, name: string) => add(node.getStart(), node.end, text, name)
  const negate = (node: ts.Expression) => {
    const isCovered =
      (ts.isBinaryExpression(node) && comparisons.includes(node.operatorToken.kind)) ||
      (ts.isPrefixUnaryExpression(node) && node.operator === T.ExclamationToken)
    if (!isCovered) replace(node, `!(${node.getText()})`, 'negated')
  }

  const visit = (node: ts.Node): void => {
    if (ts.isTypeNode(node) || ts.isImportDeclaration(node) || ts.isExportDeclaration(node)) return
    if (ts.isInterfaceDeclaration(node) || ts.isTypeAliasDeclaration(node)) return
    if (ts.isThrowStatement(node)) {
      replace(node, ';', 'no throw')
      return
    }
    if (ts.isNewExpression(node) && /Error$/.test(node.expression.getText())) return
    if (ts.isVariableDeclaration(node) && paces.test(node.name.getText())) return
    if (ts.isCallExpression(node)) {
      const name = node.expression.getText()
      if (wording.test(name)) {
        // A chain of calls goes on to the left.
        ts.forEachChild(node.expression, visit)
        return
      }
      if (/\b(setTimeout|setInterval)$/.test(name)) {
        visit(node.arguments[0]!)
        return
      }
    }
    if (ts.isBinaryExpression(node)) {
      const isText = [node.left, node.right].some(
        side => ts.isStringLiteralLike(side) || ts.isTemplateExpression(side),
      )
      const operators =
        isText && node.operatorToken.kind === T.PlusToken ? [] : (swapped.get(node.operatorToken.kind) ?? [])
      for (const operator of operators) replace(node.operatorToken, operator, 'operator')
    } else if (ts.isNumericLiteral(node) && !ts.isPropertyAssignment(node.parent.parent ?? node)) {
      replace(node, `(${node.text} + 1)`, 'off by one')
    } else if (node.kind === T.TrueKeyword || node.kind === T.FalseKeyword) {
      const isOnce = ts.isPropertyAssignment(node.parent) && node.parent.name.getText() === 'once'
      if (!isOnce) replace(node, node.kind === T.TrueKeyword ? 'false' : 'true', 'boolean')
    } else if (ts.isStringLiteral(node) && /^\S{1,20}$/.test(node.text) && ts.isExpression(node.parent)) {
      replace(node, "''", 'empty text')
    } else if (
      ts.isArrayLiteralExpression(node) &&
      node.elements.length > 0 &&
      !ts.isBinaryExpression(node.parent)
    ) {
      replace(node, '[]', 'empty list')
    } else if (
      ts.isPrefixUnaryExpression(node) &&
      [T.ExclamationToken, T.MinusToken].includes(node.operator as number)
    ) {
      replace(node, `(${node.operand.getText()})`, 'sign dropped')
    } else if (ts.isIfStatement(node)) {
      negate(node.expression)
      replace(node.expression, 'false', 'never')
    } else if (ts.isConditionalExpression(node)) {
      negate(node.condition)
    } else if (ts.isExpressionStatement(node)) {
      if (!/^super\b|^'use|\.unref\(\)$/.test(node.getText())) replace(node, ';', 'statement removed')
    } else if (ts.isPropertyAccessExpression(node) && ts.isCallExpression(node.parent)) {
      const twin = twins.get(node.name.text)
      if (twin) replace(node.name, twin, 'twin')
    }
    // Math.max and similar functions do not depend on the order of their arguments.
    if (
      ts.isCallExpression(node) &&
      node.arguments.length >= 2 &&
      !/^Math\.(min|max|hypot)$/.test(node.expression.getText())
    ) {
      const [a, b] = node.arguments
      if (a!.getText() !== b!.getText() && kindOf(a!) === kindOf(b!) && kindOf(a!) !== 'function') {
        add(a!.getStart(), b!.end, `${b!.getText()}, ${a!.getText()}`, 'arguments swapped')
      }
    }
    ts.forEachChild(node, visit)
  }
  visit(tree)
  return mutants
}

function kindOf(node: ts.Expression): string {
  if (ts.isStringLiteralLike(node) || ts.isTemplateExpression(node)) return 'text'
  if (ts.isNumericLiteral(node)) return 'number'
  if (ts.isObjectLiteralExpression(node) || ts.isArrayLiteralExpression(node)) return 'object'
  if (ts.isArrowFunction(node) || ts.isFunctionExpression(node) || ts.isSpreadElement(node)) return 'function'
  return 'other'
}

const nativeOperators: Record<string, string[]> = {
  '<': ['<=', '>='],
  '<=': ['<', '>'],
  '>': ['>=', '<='],
  '>=': ['>', '<'],
  '==': ['!='],
  '!=': ['=='],
  '+': ['-'],
  '-': ['+'],
  '*': ['/'],
  '/': ['*'],
  '%': ['*'],
  '&&': ['||'],
  '||': ['&&'],
}
/** Parts of an expression: pattern, and what may stand instead. */
const nativeParts: readonly [string, RegExp, (found: string) => string[]][] = [
  [
    'operator',
    /(?<= )(?:<=|>=|==|!=|<|>|\+|-|\*|\/|%|&&|\|\|)(?=\s)/g,
    found => nativeOperators[found] ?? [],
  ],
  ['sign dropped', /(?<![\w)\]>])!(?=[\w(])/g, () => ['']],
  ['sign dropped', /(?<=^|[(,?:=&|*/+<>-] ?)(?<![\w)\]]\s?)-(?=[\w(])/g, () => ['']],
  ['off by one', /(?<![\w.])\d+(?:\.\d+f?)?(?![\w.'])/g, found => [`(${found} + 1)`]],
  ['twin', /\bstd::min\b/g, () => ['std::max']],
  ['twin', /\bstd::max\b/g, () => ['std::min']],
  ['boolean', /\b(?:true|false)\b/g, found => [found === 'true' ? 'false' : 'true']],
]
/** Prefetching, the division of work among threads, and memory set aside in advance: only the speed depends on these. */
const onlySpeed = /prefetch|grain|kStream|reserve\(|shrink_to_fit|hardware_concurrency/i

/**
 * Mutants of C++ code. Each is switched on by an environment variable, so that one build holds all of them: they are whole
 * expressions, which become conditional expressions, or whole statements. Some do not compile; they are left out at the build.
 */
export function drawNative(source: string): Mutant[] {
  const code = blank(source)
  const mutants: Mutant[] = []
  const lineOf = (at: number) => {
    const from = source.lastIndexOf('\n', at - 1) + 1
    const to = source.indexOf('\n', at)
    return source.slice(from, to < 0 ? undefined : to)
  }
  const isDrawn = (start: number, end: number) => {
    const line = lineOf(start)
    return (
      /^\s/.test(line) &&
      !/\b(?:constexpr|static_assert|template|operator|using|typedef|enum)\b/.test(line) &&
      !onlySpeed.test(lineOf(start)) &&
      // Texts, macros and lambdas.
      !/[§¶]|\[[&=]|\[this\b/.test(code.slice(start, end))
    )
  }
  const change = (start: number, end: number) => {
    if (end <= start || !isDrawn(start, end) || /^[{[]/.test(code.slice(start, end))) return
    const text = source.slice(start, end)
    for (const [name, pattern, others] of nativeParts) {
      for (const match of code.slice(start, end).matchAll(pattern)) {
        for (const other of others(match[0])) {
          const after = text.slice(0, match.index) + other + text.slice(match.index + match[0].length)
          mutants.push({ start, end, text: after, what: describe(name, text, after) })
        }
      }
    }
  }

  for (const match of code.matchAll(/\b(if|while|for) \(/g)) {
    const open = match.index + match[0].length
    const close = endOf(code, open, '')
    if (close === undefined) continue
    const parts = split(code, open, close)
    const [start, end] = parts[match[1] === 'for' ? 1 : parts.length - 1] ?? [open, open]
    if (/(?<![=!<>+*/|&-])= /.test(code.slice(start, end))) continue
    change(start, end)
    if (match[1] !== 'if' || !isDrawn(start, end)) continue
    const condition = source.slice(start, end)
    const isComparison = /^[^&|!]+ (?:<=|>=|==|!=|<|>) [^&|]+$/.test(condition)
    if (!isComparison && !/^!\w[\w.]*$/.test(condition)) {
      const text = `!(${condition})`
      mutants.push({ start, end, text, what: describe('negated', condition, text) })
    }
    mutants.push({ start, end, text: 'false', what: describe('never', condition, 'false') })
  }
  for (const match of code.matchAll(/\breturn (?=[^;])|[\w\])] (?:[+\-*/|]?=) /g)) {
    const start = match.index + match[0].length
    const end = endOf(code, start, ';')
    if (end !== undefined) change(start, end)
  }
  for (const match of code.matchAll(/(?<=[;{}):]\s*\n|else\n)( +)(\S[^\n]*);(?=\n)/g)) {
    const statement = match[2]!
    const start = match.index + match[1]!.length
    const isCall = /^[\w:.>-]+\(.*\)$/.test(statement) && !/^(?:[A-Z_]+|return|throw)\b/.test(statement)
    const isStep = /^(?:\+\+|--)[\w.>[\]-]+$/.test(statement)
    const assigned = /^[\w.>*()[\]+-]+ (=|\+=|-=|\*=|\/=|\|=) /.exec(statement)
    if (!(isCall || isStep || assigned) || onlySpeed.test(statement)) continue
    if (!isBalanced(statement) || /¶|\[[&=]|\[this\b|[{}]/.test(statement)) continue
    const end = start + statement.length
    const text = source.slice(start, end)
    mutants.push({ start, end: end + 1, text: '', what: describe('statement removed', text, '') })
    if (assigned?.[1] === '+=' || assigned?.[1] === '-=') {
      const after = text.replace(/ ([+-])= /, (_, sign) => ` ${sign === '+' ? '-' : '+'}= `)
      mutants.push({ start, end, text: after, what: describe('operator', text, after) })
    }
  }
  return mutants.sort((a, b) => a.start - b.start || a.end - b.end)
}

/** The text with comments as spaces, texts as § and macros as ¶, so that all positions stay. */
function blank(source: string): string {
  const fill = (text: string, by: string) => text.replace(/[^\n]/g, by)
  return source
    .replace(/\/\/[^\n]*|\/\*[\s\S]*?\*\//g, text => fill(text, ' '))
    .replace(/"(?:\\.|[^"\\\n])*"|'(?:\\.|[^'\\\n])+'/g, text => fill(text, '§'))
    .replace(/^[ \t]*#(?:[^\n]*\\\n)*[^\n]*/gm, text => fill(text, '¶'))
}

/** Where the expression ends that begins here: at the text `stop`, at a comma, or at a bracket that closes an outer one. */
function endOf(code: string, start: number, stop: string): number | undefined {
  let depth = 0
  for (let at = start; at < code.length; at++) {
    const each = code[at]!
    if ('([{'.includes(each)) depth++
    else if (')]}'.includes(each)) {
      if (depth === 0) return at
      depth--
    } else if (depth === 0 && stop && (each === stop || /^, (?:\*?\w+ =)/.test(code.slice(at, at + 40))))
      return at
    // An unclosed bracket, or an argument list without brackets of its own, such as a template's.
    else if (depth === 0 && stop && each === ',') return undefined
  }
  return undefined
}

function split(code: string, start: number, end: number): [number, number][] {
  const parts: [number, number][] = []
  let from = start
  let depth = 0
  for (let at = start; at <= end; at++) {
    const each = code[at]!
    if (at === end || (each === ';' && depth === 0)) {
      const space = /^\s*/.exec(code.slice(from, at))![0].length
      parts.push([from + space, at])
      from = at + 1
    } else if ('([{'.includes(each)) depth++
    else if (')]}'.includes(each)) depth--
  }
  return parts
}

function isBalanced(text: string): boolean {
  let depth = 0
  for (const each of text) {
    if (each === '(') depth++
    if (each === ')' && --depth < 0) return false
  }
  return depth === 0
}
