/** Numbers and paths as the report prints them. */
import { homedir } from 'node:os'

const NONE = '–'

/** A probability in percent with one decimal. A value that is not exactly 0 or 1 is never printed as 0 or 100. */
export function percent(value: number | null | undefined): string {
  if (value == null) return NONE
  const text = (100 * value).toFixed(1)
  if (text === '0.0') return value > 0 ? '<0.1' : '0'
  if (text === '100.0') return value < 1 ? '>99.9' : '100'
  return text
}

/** An interval in percent, without the unit. */
export function percentRange(low: number | null, high: number | null): string | undefined {
  if (low === null || high === null) return undefined
  const [from, to] = [low, high].map(value => (100 * value).toFixed(1).replace(/^(0|100)\.0$/, '$1'))
  return from === to ? from : `${from}–${to}`
}

export const count = (value: number | undefined) =>
  value === undefined ? NONE : value.toLocaleString('en-US')

/** Three significant digits, without exponents between 0.001 and a million. */
export function number(value: number | null | undefined): string {
  if (value == null) return NONE
  if (value === 0) return '0'
  const size = Math.abs(value)
  if (size < 1e-3 || size >= 1e6) return value.toExponential(1).replace('.0e', 'e').replaceAll('-', '−')
  return value.toLocaleString('en-US', { maximumSignificantDigits: 3 }).replace('-', '−')
}

export function duration(seconds: number | undefined): string {
  if (seconds === undefined) return NONE
  if (seconds > 0 && seconds < 1e-3) return '<1 ms'
  if (seconds < 60) return `${number(seconds)} s`
  const whole = Math.round(seconds)
  const [hours, minutes] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60]
  return hours > 0 ? `${hours} h ${minutes} min` : `${minutes} min ${whole % 60} s`
}

/** A text with paths, without the home directory's name: a report is made to be shared. */
export function withoutHome(text: string): string {
  const home = homedir()
  return home.length > 1 ? text.replaceAll(home, '~') : text
}
