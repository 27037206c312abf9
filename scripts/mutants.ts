/** Mutants: single small mistakes in a source text, in a fixed order. */
import ts from 'typescript'

export interface Mutant {
  /** Its range in the text of the file, and the replacement. */
  readonly start: number
  readonly end: number
  readonly text: string
  readonly what: string
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
const twins = new Map([
  ['min', 'max'],
  ['max', 'min'],
  ['ceil', 'floor'],
  ['floor', 'ceil'],
  ['some', 'every'],
  ['every', 'some'],
])

/** Types, imports and the wording of messages are not changed: a test that noticed such a change would prove nothing. */
export function drawTypeScript(file: string, source: string): Mutant[] {
  const tree = ts.createSourceFile(file, source, ts.ScriptTarget.Latest, true)
  const mutants: Mutant[] = []
  const add = (start: number, end: number, text: string, name: string) => {
    const before = source.slice(start, end)
    const shorten = (part: string) =>
      (part.length > 60 ? `${part.slice(0, 57)}...` : part).replace(/\s+/g, ' ')
    mutants.push({ start, end, text, what: `${name}: ${shorten(before)} → ${shorten(text) || '(nothing)'}` })
  }
  const replace = (node: ts.Node, text: string, name: string) => add(node.getStart(), node.end, text, name)

  const visit = (node: ts.Node): void => {
    if (ts.isTypeNode(node) || ts.isImportDeclaration(node) || ts.isExportDeclaration(node)) return
    if (ts.isInterfaceDeclaration(node) || ts.isTypeAliasDeclaration(node)) return
    if (ts.isThrowStatement(node)) {
      replace(node, ';', 'no throw')
      return
    }
    if (ts.isNewExpression(node) && /Error$/.test(node.expression.getText())) return
    if (
      ts.isCallExpression(node) &&
      /\b(fault|refused|invalid|describe|help|emitWarning|printLine|printError)$/.test(
        node.expression.getText(),
      )
    )
      return
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
      replace(node, node.kind === T.TrueKeyword ? 'false' : 'true', 'boolean')
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
      replace(node.expression, `!(${node.expression.getText()})`, 'negated')
      replace(node.expression, 'false', 'never')
    } else if (ts.isConditionalExpression(node)) {
      add(node.condition.getStart(), node.condition.end, `!(${node.condition.getText()})`, 'negated')
    } else if (ts.isExpressionStatement(node)) {
      if (!/^super\b|^'use/.test(node.getText())) replace(node, ';', 'statement removed')
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
      if (
        a!.getText() !== b!.getText() &&
        ![a, b].some(each => ts.isArrowFunction(each!) || ts.isSpreadElement(each!))
      ) {
        add(a!.getStart(), b!.end, `${b!.getText()}, ${a!.getText()}`, 'arguments swapped')
      }
    }
    ts.forEachChild(node, visit)
  }
  visit(tree)
  return mutants
}

const nativeOperators: Record<string, string> = {
  '<': '<=',
  '<=': '<',
  '>': '>=',
  '>=': '>',
  '==': '!=',
  '!=': '==',
  '+': '-',
  '-': '+',
  '*': '+',
  '/': '*',
  '&&': '||',
  '||': '&&',
}
/** Names, members, indices and calls of one name. Commas are excluded, so that no argument list is cut. */
const operand = String.raw`[\w.]+(?:(?:->|::|\.)\w+|\[[\w\s+*.\->]+\]|\([\w.\->\[\]]*\))*`
const expression = RegExp(
  String.raw`(?<=(?:[(!;?:]|= |return |, |&& |\|\| |\? |: ))(${operand}) (<|<=|>|>=|==|!=|\+|-|\*|/) (${operand})(?=(?:\)|;|,| \?| :| &&| \|\|))`,
  'g',
)

/**
 * Mutants of C++ code. Each is switched on by an environment variable, so that one build holds all of them. Only whole
 * expressions inside functions are changed, at places where a conditional expression is allowed.
 */
export function drawNative(source: string): Mutant[] {
  const mutants: Mutant[] = []
  let offset = 0
  for (const line of source.split('\n')) {
    const code = line.replace(/\/\/.*/, '')
    if (
      /^\s/.test(line) &&
      !/^\s*[#*]|constexpr|static_assert|template|throw |invalid|"|<<|operator/.test(code)
    ) {
      for (const match of code.matchAll(expression)) {
        const [whole, left, operator, right] = match
        const start = offset + match.index
        const other = `${left} ${nativeOperators[operator!]} ${right}`
        mutants.push({ start, end: start + whole.length, text: other, what: `operator: ${whole} → ${other}` })
      }
    }
    offset += line.length + 1
  }
  return mutants
}
