/**
 * `npm run bench -- --scaling`: nanoseconds of processor time per logit for growing V and N. A flat line means that the cost is
 * linear in both. The processor time of all threads is taken, since other programs change it least.
 */
import { writeFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { makeBatch, median, oracle, validate, withIsa } from '../lib/bench/batch.js'
import { kernelsInfo, policyLoss } from '../lib/loss/kernels.js'
import { rapo } from '../lib/loss/objective.js'
import { lineChart, looks, swatch } from '../lib/report/chart.js'
import { html } from '../lib/report/html.js'
import { style } from '../lib/report/style.js'

const vocabularies = [1000, 2048, 4096, 8192, 16384, 32768, 65536, 131072, 262144]
const rowCounts = [16, 64, 256]

export function measureScaling(isa: string, cpu: string): void {
  const objective = rapo()
  const { threads } = kernelsInfo()
  const calls = rowCounts.flatMap(rows =>
    vocabularies.map(V => {
      const batch = makeBatch('float32', rows, V)
      const grad = new Float32Array(rows * V)
      const { loss } = withIsa(isa, () => policyLoss(batch, objective, { grad }))
      validate(`N = ${rows}, V = ${V}`, { loss, grad }, oracle(batch, objective), objective, 64, V)
      return { rows, V, batch, grad, ns: [] as number[] }
    }),
  )
  for (let round = 0; round < 15; ++round) {
    for (const { rows, V, batch, grad, ns } of calls) {
      // Small batches are repeated, so that the resolution of the clock does not matter.
      const times = Math.max(1, Math.round(2e6 / (rows * V)))
      const before = process.cpuUsage()
      withIsa(isa, () => {
        for (let i = 0; i < times; ++i) policyLoss(batch, objective, { grad })
      })
      const { user, system } = process.cpuUsage(before)
      ns.push(((user + system) * 1e3) / (times * rows * V))
    }
  }
  console.log(`\nnanoseconds of processor time a logit, float32, ${isa}, ${threads} threads`)
  console.log(`${'V'.padStart(8)}${rowCounts.map(rows => `N = ${rows}`.padStart(10)).join('')}`)
  const at = (rows: number, V: number) => median(calls.find(c => c.rows === rows && c.V === V)!.ns)
  for (const V of vocabularies) {
    console.log(`${V}`.padStart(8) + rowCounts.map(rows => at(rows, V).toFixed(3).padStart(10)).join(''))
  }

  const look = looks(rowCounts.map(() => false))
  const curves = rowCounts.map((rows, i) => ({
    look: look[i]!,
    points: vocabularies.map(V => ({ x: V, y: at(rows, V) })),
  }))
  const top = Math.max(...curves.flatMap(({ points }) => points.map(({ y }) => y)))
  const label = 'Nanoseconds of processor time a logit for value and gradient, against the vocabulary size V'
  const chart = lineChart({ label, xLabel: '', x: [1000, 262144], y: [0, top], isLog2: true }, curves)
  const legend = rowCounts.map(
    (rows, i) =>
      html`<g transform="translate(${50 + 90 * i} 222)">${swatch(look[i]!)}<text class="tick" x="32" y="10">N = ${rows}</text></g>`,
  )
  const captions = [
    'ns of processor time a logit against the vocabulary size V',
    `value and gradient of rapo(), float32, ${isa}, ${cpu}`,
  ].map((line, i) => html`<text class="tick" x="12" y="${252 + 16 * i}">${line}</text>`)
  const file = fileURLToPath(new URL('../docs/scaling.svg', import.meta.url))
  // An image file has no surrounding page that gives it a size.
  const sized = chart.text.replace('<svg ', '<svg width="340" height="200" ')
  const svg = `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 360 278"><style>${style}</style>${sized}${[...legend, ...captions].join('')}</svg>\n`
  writeFileSync(file, svg)
  console.log(`drawn into ${file}`)
}
