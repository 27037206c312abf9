/** Units of measurement: which there are, and what they are in others. */

import { type Budget, Unreadable } from './budget.js'
import { multiplyRational, type Rational, rational } from './rational.js'

export interface Unit {
  /** Such as { length: 2 }; empty for counted things. */
  readonly dimensions: Readonly<Record<string, number>>
  readonly factor: Rational
  /** Words that are no unit, such as "apples". */
  readonly words: readonly string[]
}

/** dimension: [size in its own smallest measure, names …] */
const table: Readonly<Record<string, readonly (readonly [number, number, string])[]>> = {
  length: [
    [1, 1, 'm meter metre'],
    [1, 1000, 'mm millimeter millimetre'],
    [1, 100, 'cm centimeter centimetre'],
    [1000, 1, 'km kilometer kilometre'],
    [254, 10000, 'in inch inche'],
    [3048, 10000, 'ft foot feet'],
    [9144, 10000, 'yd yard'],
    [1609344, 1000, 'mi mile'],
  ],
  time: [
    [1, 1, 's sec second'],
    [60, 1, 'min minute'],
    [3600, 1, 'h hr hour'],
    [86400, 1, 'day'],
    [604800, 1, 'week'],
  ],
  mass: [
    [1, 1, 'g gram'],
    [1, 1000, 'mg milligram'],
    [1000, 1, 'kg kilogram'],
    [45359237, 100000, 'lb pound'],
    [45359237, 1600000, 'oz ounce'],
  ],
  volume: [
    [1, 1, 'L l liter litre'],
    [1, 1000, 'ml mL milliliter millilitre'],
  ],
  money: [
    [1, 1, 'dollar usd USD buck'],
    [1, 100, 'cent penny pennies'],
  ],
  euro: [[1, 1, 'eur euro']],
  month: [
    [1, 1, 'month'],
    [12, 1, 'yr year'],
  ],
  angle: [[1, 1, 'degree deg']],
  radian: [[1, 1, 'radian rad']],
  percent: [[1, 1, 'percent']],
  clock: [
    [1, 1, 'am'],
    [1, 1, 'pm'],
  ],
  square: [[1, 1, 'unit']],
}

const units = new Map<string, { dimension: string; factor: Rational }>()
for (const [dimension, sizes] of Object.entries(table)) {
  for (const [top, bottom, names] of sizes) {
    for (const name of names.split(' ')) {
      const own = dimension === 'clock' ? name : dimension === 'square' ? 'unit' : dimension
      units.set(name, { dimension: own, factor: rational(BigInt(top), BigInt(bottom)) })
    }
  }
}

function find(word: string) {
  const isLong = word.length > 2
  const key = isLong ? word.toLowerCase() : word
  return units.get(key) ?? (isLong && key.endsWith('s') ? units.get(key.slice(0, -1)) : undefined)
}

export function isUnitWord(word: string): boolean {
  return find(word) !== undefined || /^(sq|square|cubic|mph|kph|AM|PM)$/.test(word)
}

/** "square centimeters", "cm^2", "miles per hour", "a.m.", "right triangles". */
export function readUnit(text: string, budget: Budget): Unit {
  const plain = text
    .replaceAll(/\b([ap])\.\s?m\b\.?/gi, '$1m')
    .replaceAll(/\b([AP])m\b/gi, (_, letter: string) => `${letter.toLowerCase()}m`)
    .replaceAll(/\bmph\b/g, 'miles per hour')
    .replaceAll(/\bkph\b/g, 'km per hour')
    // Not in the table: 2gm may be a product.
    .replaceAll(/\bgms?\b/g, 'grams')
    .replaceAll(/[{}()\\.,]/g, ' ')
  // "5 \text{ maybe 6}" is not 5.
  const withoutExponents = plain.replaceAll(/\^\s*-?\d+|(?<=\b[a-z]{1,2})[23](?!\d)/gi, '')
  if (/\d/.test(withoutExponents)) throw new Unreadable('a number among the words of a unit')
  const dimensions: Record<string, number> = {}
  const words: string[] = []
  let factor = rational(1n)
  let sign = 1
  let power = 1
  for (const match of plain.matchAll(/[^\s/^*\d]+|[/^]|-?\d+/g)) {
    const word = match[0]
    if (word === '/' || word === 'per') sign = -1
    else if (/^(square|sq)$/i.test(word)) power = 2
    else if (/^(cubic|cu)$/i.test(word)) power = 3
    else if (word === '^' || /^-?\d/.test(word)) continue
    else {
      const unit = find(word)
      if (!unit) {
        if (!/^(of|the|a|an|in|each)$/.test(word)) words.push(word.toLowerCase().replace(/(?<=...)s$/, ''))
        continue
      }
      const after = /^\s*\^?\s*(-?\d)/.exec(plain.slice(match.index + word.length))
      const exponent = sign * (after ? Number(after[1]) : power)
      dimensions[unit.dimension] = (dimensions[unit.dimension] ?? 0) + exponent
      for (let i = Math.abs(exponent); i > 0; i--) {
        const { numerator, denominator } = unit.factor
        const step = exponent > 0 ? unit.factor : rational(denominator, numerator)
        factor = multiplyRational(factor, step, budget)
      }
      power = 1
    }
  }
  // Counted things: "square units" of any power.
  delete dimensions.unit
  return { dimensions, factor, words }
}

export function haveSameDimensions(a: Unit, b: Unit): boolean {
  const names = new Set([...Object.keys(a.dimensions), ...Object.keys(b.dimensions)])
  return [...names].every(name => a.dimensions[name] === b.dimensions[name])
}

export function isKnown(unit: Unit): boolean {
  return Object.keys(unit.dimensions).length > 0
}
