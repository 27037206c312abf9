/** The results of the theory for one problem: a table for the terminal and a figure as a self-contained SVG. */
import { scaleBand, scaleLinear } from 'd3-scale'
import { percent } from '../report/format.js'
import { type Html, html } from '../report/html.js'
import {
  type TheoryObjective,
  type TheoryProblem,
  theoryDescent,
  theoryObjectives,
  theoryOptimum,
  theoryValue,
} from './theory.js'

const titles: Record<TheoryObjective, string> = {
  'reverse-kl': 'reverse KL',
  'forward-kl': 'forward KL',
  'forward-kl-entropy': 'forward KL + entropy',
}

interface Solved {
  readonly objective: TheoryObjective
  readonly policy: Float64Array
  readonly descent: Float64Array
  /** Largest difference between closed form and ascent. */
  readonly distance: number
  readonly value: number
  /** The maximiser's mass on outcomes without reference mass. */
  readonly outside: number
}

function solve(problem: TheoryProblem): Solved[] {
  return theoryObjectives.map(objective => {
    const policy = theoryOptimum(objective, problem)
    const descent = theoryDescent(objective, problem).policy
    return {
      objective,
      policy,
      descent,
      distance: policy.reduce((x, y, i) => Math.max(x, Math.abs(y - descent[i]!)), 0),
      value: theoryValue(objective, problem, policy),
      outside: policy.reduce((x, y, i) => x + (problem.reference[i] === 0 ? y : 0), 0),
    }
  })
}

/** One line per outcome, then a summary of each maximiser. Throws as theoryOptimum does. */
export function theoryTable(problem: TheoryProblem): string {
  const solved = solve(problem)
  const columns: [string, (row: Solved) => string][] = [
    ['objective', ({ value }) => value.toFixed(6)],
    ['mass where p = 0', ({ outside }) => outside.toFixed(6)],
    ['closed form − ascent', ({ distance }) => distance.toExponential(1)],
  ]
  const rows = [
    ['outcome', 'reward', 'reference p', ...solved.map(({ objective }) => titles[objective])],
    ...Array.from(problem.rewards, (reward, i) => [
      String(i),
      reward.toFixed(2),
      problem.reference[i]!.toFixed(4),
      ...solved.map(({ policy }) => policy[i]!.toFixed(6)),
    ]),
    ...columns.map(([name, show]) => [name, '', '', ...solved.map(show)]),
  ]
  const widths = rows[0]!.map((_, column) => Math.max(...rows.map(row => row[column]!.length)))
  const lines = rows.map(row =>
    row.map((cell, i) => (i === 0 ? cell.padEnd(widths[i]!) : cell.padStart(widths[i]!))).join('  '),
  )
  lines.splice(1 + problem.rewards.length, 0, '')
  return lines.join('\n')
}

const WIDTH = 760
const MARGIN = { left: 52, right: 20, top: 76, bottom: 40 }
const PANEL = { height: 84, gap: 40 }

interface Panel {
  readonly className: string
  readonly title: string
  readonly note?: string
  readonly bars: ArrayLike<number>
  /** Upper end of the scale; by default the highest bar. */
  readonly top?: number
  readonly dots?: ArrayLike<number>
}

/** Rewards, reference and the three maximisers: closed form as bars, ascent as dots. Throws as theoryOptimum does. */
export function theoryFigure(problem: TheoryProblem): string {
  const outcomes = Array.from(problem.rewards, (_, i) => i)
  const without = outcomes.filter(i => problem.reference[i] === 0)
  const solved = solve(problem)
  const likeliest = Math.max(...solved.flatMap(({ policy }) => [...policy]))
  const panels: Panel[] = [
    { className: 'reward', title: 'reward r', bars: problem.rewards },
    { className: 'reference', title: 'reference p', bars: problem.reference },
    ...solved.map(({ objective, policy, descent, outside }) => ({
      className: objective,
      title: `maximises reward ${objective === 'reverse-kl' ? '− α KL(π‖p)' : '− α KL(p‖π)'}${objective === 'forward-kl-entropy' ? ' + β H(π)' : ''}`,
      note: outside === 0 ? 'no mass where p = 0' : `${percent(outside)} % of its mass where p = 0`,
      bars: policy,
      top: likeliest,
      dots: descent,
    })),
  ]
  const height = MARGIN.top + panels.length * (PANEL.height + PANEL.gap) - PANEL.gap + MARGIN.bottom
  const x = scaleBand<number>()
    .domain(outcomes)
    .range([MARGIN.left, WIDTH - MARGIN.right])
    .paddingInner(0.3)
    .paddingOuter(0.15)
  const topOf = (panel: number) => MARGIN.top + panel * (PANEL.height + PANEL.gap)
  const shade = (i: number) =>
    html`<rect class="outside" x="${round(x(i)! - 0.15 * x.step())}" y="${MARGIN.top}" width="${round(x.step())}" height="${height - MARGIN.top - MARGIN.bottom}"/>`
  const alpha = `α = ${problem.klCoef}, β = ${problem.entropyCoef}`
  const svg = html`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 ${WIDTH} ${height}" role="img" aria-labelledby="title desc">
  <title id="title">What maximises reward with a reverse-KL penalty, a forward-KL penalty, and a forward-KL penalty with entropy</title>
  <desc id="desc">Bars for ${outcomes.length} outcomes, ${alpha}: rewards, the reference, and the three maximisers. The reference has no mass on ${without.join(', ')}. The reverse-KL maximiser has none there either; the others do where the reward is high enough.</desc>
  <style>
    /* The figure brings its own background, so that it reads on any page whatever theme the page has. */
    svg { --page: #fff; --edge: #d0d7de; --ink: #1f2328; --muted: #59636e; --outside: #f1f3f5; --reward: #8a6d00; --reference: #6c727b; --reverse-kl: #d55e00; --forward-kl: #0072b2; --forward-kl-entropy: #00845f }
    @media (prefers-color-scheme: dark) {
      svg { --page: #0d1117; --edge: #3d444d; --ink: #e6edf3; --muted: #9aa4af; --outside: #1b222b; --reward: #e8b93c; --reference: #9aa1ab; --reverse-kl: #f58a46; --forward-kl: #58aee8; --forward-kl-entropy: #35c497 }
    }
    .page { fill: var(--page); stroke: var(--edge) }
    .outside { fill: var(--outside) }
    .reward { --c: var(--reward) } .reference { --c: var(--reference) }
    ${theoryObjectives.map(name => html`.${name} { --c: var(--${name}) } `)}
    .bar { fill: var(--c); fill-opacity: .85 }
    .dot { fill: var(--page); stroke: var(--c); stroke-width: 1.6 }
    .axis { stroke: var(--edge) }
    text { fill: var(--muted); font: 12px system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif }
    .head { fill: var(--ink); font-size: 14px; font-weight: 600 }
  </style>
  <rect class="page" x=".5" y=".5" width="${WIDTH - 1}" height="${height - 1}" rx="10"/>
  <text x="${MARGIN.left}" y="28">bars: closed form · dots: gradient ascent on the objective · ${alpha}</text>
  ${without.length > 0 && html`<rect class="outside" x="${WIDTH - MARGIN.right - 130}" y="17" width="14" height="14"/><text x="${WIDTH - MARGIN.right - 110}" y="28">no reference mass</text>`}
  ${without.map(shade)}
  ${panels.map((panel, i) => drawPanel(panel, topOf(i), x))}
  ${outcomes.map(i => html`<text x="${round(x(i)! + x.bandwidth() / 2)}" y="${height - MARGIN.bottom + 18}" text-anchor="middle">${i}</text>`)}
  <text x="${MARGIN.left - 8}" y="${height - MARGIN.bottom + 18}" text-anchor="end">id</text>
</svg>`
  return `${svg}\n`
}

function drawPanel(
  { className, title, note, bars, dots, top: highest }: Panel,
  top: number,
  x: ReturnType<typeof scaleBand<number>>,
): Html {
  const values = Array.from(bars)
  const y = scaleLinear()
    .domain([Math.min(0, ...values), highest ?? (Math.max(...values) || 1)])
    .nice(3)
    .range([top + PANEL.height, top])
  const bar = (value: number, i: number) =>
    html`<rect class="bar" x="${round(x(i)!)}" y="${round(Math.min(y(0), y(value)))}" width="${round(x.bandwidth())}" height="${round(Math.abs(y(value) - y(0)))}"><title>${i}: ${value.toFixed(4)}</title></rect>`
  const dot = (value: number, i: number) =>
    html`<circle class="dot" cx="${round(x(i)! + x.bandwidth() / 2)}" cy="${round(y(value))}" r="3.5"/>`
  const tick = (value: number) =>
    html`<line class="axis" x1="${MARGIN.left}" x2="${WIDTH - MARGIN.right}" y1="${round(y(value))}" y2="${round(y(value))}"/><text x="${MARGIN.left - 8}" y="${round(y(value))}" dy=".32em" text-anchor="end">${value}</text>`
  return html`<g class="${className}">
    <text class="head" x="${MARGIN.left}" y="${top - 10}">${title}</text>
    ${note && html`<text x="${WIDTH - MARGIN.right}" y="${top - 10}" text-anchor="end">${note}</text>`}
    ${y.ticks(3).map(tick)}
    ${values.map(bar)}
    ${dots && Array.from(dots, dot)}
  </g>`
}

const round = (value: number) => Number(value.toFixed(1))
