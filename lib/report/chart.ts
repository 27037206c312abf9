/** Line charts as SVG text. Colours come from the page's CSS variables, so that they follow light and dark. */
import { scaleLinear, scaleLog } from 'd3-scale'
import {
  area,
  line,
  type SymbolType,
  symbol,
  symbolCircle,
  symbolCross,
  symbolDiamond,
  symbolSquare,
  symbolStar,
  symbolTriangle,
  symbolWye,
} from 'd3-shape'
import { number } from './format.js'
import { type Html, html } from './html.js'
import type { Point } from './series.js'

/** The look of one run in the whole report: a colour (CSS class), a symbol and, when the palette is used up, a dash. */
export interface Look {
  readonly className: string
  readonly symbol: SymbolType
  readonly dash?: string
}

/** Number of colours for runs, in addition to the base's colour. */
const PALETTE_SIZE = 6
const DASHES = [undefined, '5 3', '2 3']
const SYMBOLS = [symbolSquare, symbolTriangle, symbolDiamond, symbolCross, symbolStar, symbolWye]

export function looks(isBase: readonly boolean[]): Look[] {
  let index = 0
  return isBase.map(base => {
    if (base) return { className: 'run-base', symbol: symbolCircle }
    const color = index % PALETTE_SIZE
    const dash = DASHES[Math.floor(index / PALETTE_SIZE) % DASHES.length]
    index++
    return { className: `run-${color}`, symbol: SYMBOLS[color]!, ...(dash && { dash }) }
  })
}

/** A run's line and symbol, shown beside its name. */
export function swatch(look: Look, isLine = true): Html {
  return html`<svg class="swatch ${look.className}" width="26" height="12" viewBox="0 0 26 12" aria-hidden="true">
    ${isLine && html`<path class="line" ${dashOf(look)} d="M1 6H25"/>`}
    <path class="mark" transform="translate(13 6)" d="${symbol(look.symbol, 42)() ?? ''}"/></svg>`
}

const dashOf = (look: Look) => look.dash !== undefined && html`stroke-dasharray="${look.dash}"`

export interface MarkedPoint extends Point {
  readonly y: number
  /** An interval's ends. */
  readonly low: number | null
  readonly high: number | null
  /** Shown when the pointer rests on the mark. */
  readonly title: string
}

export interface Curve {
  readonly look: Look
  /** The line. */
  readonly points: readonly Point[]
  /** A faint line under it. */
  readonly faint?: readonly Point[]
  /** A mark at each, and a shaded band between low and high. */
  readonly marked?: readonly MarkedPoint[]
}

export interface Axes {
  /** A description for readers who cannot see the chart. */
  readonly label: string
  readonly xLabel: string
  readonly x: readonly [number, number]
  readonly y: readonly [number, number]
  /** Whether x has powers of two; otherwise x is linear. */
  readonly isLog2?: boolean
  readonly formatY?: (value: number) => string
  readonly height?: number
}

export const WIDTH = 340
const MARGIN = { top: 10, right: 12, bottom: 22, left: 50 }

export function lineChart(axes: Axes, curves: readonly Curve[]): Html {
  const { height = 200 } = axes
  const [left, right, top, bottom] = [MARGIN.left, WIDTH - MARGIN.right, MARGIN.top, height - MARGIN.bottom]
  const y = scaleLinear().domain(axes.y).nice(4).range([bottom, top])
  const x = axes.isLog2
    ? scaleLog().base(2).domain(axes.x).range([left, right])
    : scaleLinear().domain(axes.x).range([left, right])
  const formatY = axes.formatY ?? number
  // A nested svg clips what leaves the frame and needs no id. The 4 leave room for marks on the edge.
  const frame = { x: left - 4, y: top - 4, width: right - left + 8, height: bottom - top + 8 }

  const pathOf = line<Point>(
    point => x(point.x),
    point => y(point.y!),
  )
    .defined(({ y }) => y !== null)
    .digits(1)
  const bandOf = area<MarkedPoint>(
    point => x(point.x),
    point => y(point.low!),
    point => y(point.high!),
  )
    .defined(({ low, high }) => low !== null && high !== null)
    .digits(1)

  // Many overlapping bands must not hide the lines.
  const bandOpacity = Math.min(0.14, round(0.5 / curves.length, 2))

  const gridLine = (tick: number) => html`<g transform="translate(0 ${round(y(tick))})">
    <line class="grid-line" x1="${left}" x2="${right}"/><text class="tick" x="${left - 8}" dy=".32em" text-anchor="end">${formatY(tick)}</text></g>`
  const xTick = (tick: number) => html`<g transform="translate(${round(x(tick))} ${bottom})">
    <line class="tick-line" y2="4"/><text class="tick" y="15" text-anchor="middle">${tick}</text></g>`
  const mark = (look: Look, point: MarkedPoint) =>
    html`<path class="mark" transform="translate(${round(x(point.x))} ${round(y(point.y))})" d="${symbol(look.symbol, 26)() ?? ''}"><title>${point.title}</title></path>`

  return html`<svg class="chart" viewBox="0 0 ${WIDTH} ${height}" role="img" aria-label="${axes.label}">
    ${y.ticks(4).map(gridLine)}
    ${xTicks(axes).map(xTick)}
    <text class="tick" x="${left - 8}" y="${bottom + 15}" text-anchor="end">${axes.xLabel}</text>
    <svg x="${frame.x}" y="${frame.y}" width="${frame.width}" height="${frame.height}" viewBox="${Object.values(frame).join(' ')}">
      ${curves.map(({ look, marked }) => marked && html`<path class="band ${look.className}" opacity="${bandOpacity}" d="${bandOf(marked) ?? ''}"/>`)}
      ${curves.map(({ look, faint }) => faint && html`<path class="faint ${look.className}" d="${pathOf(faint) ?? ''}"/>`)}
      ${curves.map(
        ({ look, points, marked = [] }) =>
          html`<g class="${look.className}"><path class="line" ${dashOf(look)} d="${pathOf(points) ?? ''}"/>${marked.map(point => mark(look, point))}</g>`,
      )}
    </svg>
  </svg>`
}

/** There is room for every power of two up to six of them; with more, every second one is shown. */
function xTicks({ x: [from, to], isLog2 }: Axes): number[] {
  if (!isLog2) return scaleLinear().domain([from, to]).ticks(5).filter(Number.isInteger)
  const first = Math.ceil(Math.log2(from))
  const last = Math.floor(Math.log2(to))
  const step = last - first > 6 ? 2 : 1
  return Array.from({ length: Math.floor((last - first) / step) + 1 }, (_, i) => 2 ** (first + i * step))
}

const round = (value: number, digits = 1) => Number(value.toFixed(digits))
