/** Benchmark results as a picture of its own: a bar a result, a whisker its interval, one scale a batch. */
import { scaleLinear } from 'd3-scale'
import { html } from '../report/html.js'
import { type BenchReport, type BenchResult, formatMachine, titleOf } from './results.js'

const [width, left, right, bar, gap] = [640, 190, 90, 18, 6]

const style = `text { font: 12px system-ui, sans-serif; fill: #222 } .title { font-weight: 600 } .note { fill: #666 }
rect { fill: #9aa4b2 } .rapo { fill: #2563eb } path { stroke: #222; fill: none }
@media (prefers-color-scheme: dark) { text { fill: #eee } .note { fill: #aaa } path { stroke: #eee } svg { background: #14161a } }`

/** An SVG file's text. */
export function benchChart(report: BenchReport): string {
  const titles = [...new Set(report.results.map(titleOf))]
  const lines = formatMachine(report.machine).split('\n')
  let y = 20
  const text = (line: string, className: string) => {
    const element = html`<text class="${className}" x="12" y="${y}">${line}</text>`
    y += 18
    return element
  }
  const head = [
    text(`Value and gradient, one call (rapo ${report.rapo})`, 'title'),
    lines.map(line => text(line, 'note')),
  ]
  const groups = titles.map(title => {
    y += 12
    const heading = text(title, 'title')
    const results = report.results.filter(result => titleOf(result) === title)
    const x = scaleLinear([0, Math.max(...results.map(({ ms }) => ms.high))], [left, width - right])
    const bars = results.map(result => {
      const drawn = drawBar(result, x, y)
      y += bar + gap
      return drawn
    })
    return [heading, bars]
  })
  return html`<svg xmlns="http://www.w3.org/2000/svg" width="${width}" height="${y}" viewBox="0 0 ${width} ${y}" role="img"
aria-label="Milliseconds of each result"><style>${style}</style>${head}${groups}</svg>
`.toString()
}

function drawBar({ name, ms }: BenchResult, x: (value: number) => number, y: number) {
  const middle = y + bar / 2
  const [low, high] = [x(ms.low).toFixed(1), x(ms.high).toFixed(1)]
  return html`<text x="${left - 8}" y="${middle + 4}" text-anchor="end">${name}</text>
<rect class="${name.startsWith('rapo') ? 'rapo' : 'peer'}" x="${left}" y="${y}" width="${(x(ms.median) - left).toFixed(1)}" height="${bar}"/>
<path d="M${low} ${middle}H${high}M${low} ${middle - 4}V${middle + 4}M${high} ${middle - 4}V${middle + 4}"/>
<text x="${Number(high) + 6}" y="${middle + 4}">${ms.median.toFixed(2)} ms</text>
`
}
