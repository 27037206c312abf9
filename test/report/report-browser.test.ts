/** The report in a real browser. Skipped where there is none: RAPO_CHROMIUM, or chromium or chrome on the PATH. */
import { rmSync } from 'node:fs'
import path from 'node:path'
import { pathToFileURL } from 'node:url'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { writeReport } from '../../lib/report/page.js'
import { type Browser, findChromium, launchChromium } from '../helpers/chromium.js'
import {
  evaluationOf,
  metricsOf,
  sampleOf,
  temporaryDir,
  writeRun,
  writeThreeRuns,
} from '../helpers/report-fixture.js'

const executable = findChromium()
if (!executable) console.log('skipped: no Chromium found (install chromium, or set RAPO_CHROMIUM)')
const check = executable ? test : test.skip

const dir = temporaryDir()
const output = path.join(dir, 'report.html')
const url = pathToFileURL(output).href
let browser: Browser

test.before(async () => {
  if (!executable) return
  const { base, grpo, rapo } = writeThreeRuns(dir)
  await writeReport({ runs: [grpo, rapo], base, output })
  browser = await launchChromium(executable)
})

test.after(async () => {
  await browser?.close()
  rmSync(dir, { recursive: true, force: true })
})

/** Runs in the page: what is wider than the window without scrolling by itself. */
const overflowing = `(() => {
  const wide = [...document.querySelectorAll('body *')].filter(element =>
    element.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5 && !element.closest('.scroll, pre'))
  return wide.map(element => element.outerHTML.slice(0, 80))
})()`

/** Runs in the page: pairs of labels of one chart that touch, and labels that leave their chart's column. */
const badLabels = `[...document.querySelectorAll('svg.chart')].flatMap(svg => {
  const frame = svg.getBoundingClientRect()
  const labels = [...svg.querySelectorAll('text')].map(text => ({ text: text.textContent, box: text.getBoundingClientRect() }))
  const touching = labels.flatMap((a, i) => labels.slice(i + 1)
    .filter(b => a.box.left < b.box.right && b.box.left < a.box.right && a.box.top + 2 < b.box.bottom && b.box.top + 2 < a.box.bottom)
    .map(b => a.text + ' | ' + b.text))
  const outside = labels.filter(({ box }) => box.left < frame.left - 1 || box.right > frame.right + 8 || box.bottom > frame.bottom + 4)
  return [...touching, ...outside.map(({ text }) => text + ' outside')].map(what => svg.getAttribute('aria-label') + ': ' + what)
})`

/** Runs in the page: the lines and bands that are drawn with nothing in them, or in no colour. */
const emptyPaths = `[...document.querySelectorAll('svg.chart path')].filter(path => {
  const { width, height } = path.getBBox()
  const style = getComputedStyle(path)
  return !(width + height > 0) || [style.fill, style.stroke].every(color => color === 'none')
}).map(path => path.outerHTML)`

for (const [width, height] of [
  [375, 812],
  [1440, 900],
] as const) {
  for (const isDark of [false, true]) {
    check(
      `at ${width} pixels, ${isDark ? 'dark' : 'light'}: all charts, no errors, nothing cut off`,
      async () => {
        const page = await browser.open(url, { width, height, isDark })
        assert.equal(await page.evaluate(overflowing), [])
        const clientWidth = await page.evaluate<number>('document.documentElement.clientWidth')
        assert.is(await page.evaluate('document.documentElement.scrollWidth'), clientWidth)
        assert.is(await page.evaluate(`document.querySelectorAll('.pass-at-k svg.chart').length`), 3)
        assert.is(await page.evaluate(`document.querySelectorAll('.training svg.chart').length`), 11)
        const lastCell = `document.querySelector('.headline tbody tr:last-child td:last-child')`
        const right = await page.evaluate<number>(`${lastCell}.getBoundingClientRect().right`)
        assert.ok(right <= clientWidth, 'the headline table must fit without scrolling')
        assert.equal(await page.evaluate(badLabels), [])
        assert.equal(await page.evaluate(emptyPaths), [])
        const background = await page.evaluate<string>('getComputedStyle(document.body).backgroundColor')
        assert.is(background, isDark ? 'rgb(20, 22, 26)' : 'rgb(255, 255, 255)')
        assert.equal(page.problems, [])
      },
    )
  }
}

check('what a model wrote is text: no markup, no script, no escape sequence', async () => {
  const markup = `</pre><script>document.title = 'owned'</script><img src=x onerror="document.title = 'owned'"><b>bold</b>`
  const completion = `${markup}\u001b[31mred\u009b0m\u202egnp.exe`
  const sample = sampleOf({ completion, prompt: completion, problemId: completion, reason: completion })
  const run = writeRun(path.join(dir, 'hostile'), {
    config: `name: ${JSON.stringify(markup)}\nmodel: { dir: ${JSON.stringify(markup)} }\n`,
    metrics: metricsOf(3),
    samples: [{ ...sample, step: 1 }],
    evaluation: evaluationOf({ all: [0.1, 0.2, 0.3], [markup]: [0.1, 0.2, 0.3] }, { name: markup }),
    evalSamples: [sample],
  })
  const file = path.join(dir, 'hostile.html')
  await writeReport({ runs: [run], output: file })
  const page = await browser.open(pathToFileURL(file).href, { width: 1440, height: 900 })
  assert.equal(page.problems, [])
  assert.is(await page.evaluate(`document.querySelectorAll('script, img, iframe, .sample b b').length`), 0)
  assert.match(await page.evaluate<string>('document.title'), 'rapo report')
  await page.evaluate(`document.querySelectorAll('details').forEach(details => { details.open = true })`)
  const text = await page.evaluate<string>('document.body.innerText')
  assert.match(text, markup)
  assert.match(text, 'U+001B[31mredU+009B0mU+202Egnp.exe')
  assert.not.match(text.replaceAll(/[^\P{C}\n\t]/gu, '\0'), '\0')
})

check('every text has a contrast of at least 4.5 to the page, in light and dark', async () => {
  for (const isDark of [false, true]) {
    const page = await browser.open(url, { width: 1440, height: 900, isDark })
    const colors = await page.evaluate<string[]>(`(() => {
      document.querySelectorAll('details').forEach(details => { details.open = true })
      const canvas = document.createElement('canvas').getContext('2d', { willReadFrequently: true })
      const rgb = color => { canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1); return [...canvas.getImageData(0, 0, 1, 1).data].slice(0, 3) }
      const backgroundOf = element => {
        const color = getComputedStyle(element).backgroundColor
        return color === 'rgba(0, 0, 0, 0)' ? backgroundOf(element.parentElement) : color
      }
      const luminance = color => rgb(color).map(c => c / 255).map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
        .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0)
      const contrast = (a, b) => { const [x, y] = [luminance(a), luminance(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05) }
      const texts = [...document.querySelectorAll('body *')].filter(element =>
        [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim()) && element.tagName !== 'title')
      return texts.flatMap(element => {
        const style = getComputedStyle(element)
        const color = element.tagName === 'text' ? style.fill : style.color
        const value = contrast(color, backgroundOf(element))
        return value < 4.5 ? [element.tagName + '.' + element.className + ' ' + element.textContent.slice(0, 20) + ' ' + value] : []
      })
    })()`)
    assert.equal([...new Set(colors)], [])
  }
})

test.run()
