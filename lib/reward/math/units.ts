/** Units of measurement and their sizes. */
import { type Budget, Unreadable } from './budget.js'
import { multiplyRational, type Rational, rational } from './rational.js'
import { areIdle } from './words.js'

export interface Unit {
  /** Powers of dimensions, such as { length: 2 }; empty for counted things. */
  readonly dimensions: Readonly<Record<string, number>>
  readonly factor: Rational
  /** Words that are not units, such as "apples". */
  readonly words: readonly string[]
}

/** dimension, with its power if it has one: [size in the dimension's own measure, numerator and denominator, names …] */
const table: Readonly<Record<string, readonly (readonly [number, number, string])[]>> = {
  length: [
    [1, 1, 'm meter metre mètre 米 公尺'],
    [1, 1000, 'mm millimeter millimetre 毫米'],
    [1, 100, 'cm centimeter centimetre zentimeter centimètre 厘米 公分'],
    [1, 10, 'dm decimeter decimetre 分米'],
    [1000, 1, 'km kilometer kilometre kilomètre 千米 公里'],
    [254, 10000, 'in inch inche zoll 英寸'],
    [3048, 10000, 'ft foot feet 英尺'],
    [9144, 10000, 'yd yard'],
    [1609344, 1000, 'mi mile 英里'],
  ],
  'length 2': [
    [316160658, 78125, 'acre'],
    [10000, 1, 'ha hectare 公顷'],
    [1, 1, '平方米'],
    [1, 10000, '平方厘米'],
    [1000000, 1, '平方千米 平方公里'],
  ],
  'length 3': [
    [1, 1000, 'L l liter litre 升'],
    [1, 1000000, 'ml mL milliliter millilitre 毫升 cc'],
    [473176473, 125000000000, 'gal gallon'],
    [473176473, 500000000000, 'qt quart'],
    [473176473, 1000000000000, 'pt pint'],
    [1, 1, '立方米'],
    [1, 1000000, '立方厘米'],
  ],
  time: [
    [1, 1, 's sec second sekunde seconde 秒'],
    [1, 1000, 'ms millisecond'],
    [60, 1, 'min minute minuten 分钟'],
    [3600, 1, 'h hr hour stunde stunden heure 小时'],
    [86400, 1, 'day tag tage tagen jour 天 日'],
    [604800, 1, 'week woche wochen semaine 周 星期'],
  ],
  mass: [
    [1, 1, 'g gram gramm gramme 克'],
    [1, 1000, 'mg milligram'],
    [1000, 1, 'kg kilogram kilo kilogramm kilogramme 千克 公斤'],
    [1000000, 1, 't ton tonne 吨'],
    [45359237, 100000, 'lb pound'],
    [45359237, 1600000, 'oz ounce'],
  ],
  dollar: [
    [1, 1, 'dollar usd USD buck 美元'],
    [1, 100, 'cent penny pennies'],
  ],
  euro: [[1, 1, 'eur EUR euro 欧元']],
  yuan: [[1, 1, 'yuan cny CNY rmb RMB 元 块钱 人民币']],
  rupee: [[1, 1, 'rupee rs Rs INR']],
  month: [
    [1, 1, 'month monat monate mois 月 个月'],
    [12, 1, 'yr year jahr jahre jahren ans 年'],
  ],
  angle: [[1, 1, 'degree deg grad degré 度']],
  radian: [[1, 1, 'radian rad 弧度']],
  celsius: [[1, 1, 'celsius °C 摄氏度']],
  fahrenheit: [[1, 1, 'fahrenheit 华氏度']],
  kelvin: [[1, 1, 'kelvin K']],
  percent: [[1, 1, 'percent pct prozent']],
  newton: [[1, 1, 'newton N']],
  joule: [
    [1, 1, 'joule J'],
    [1000, 1, 'kJ kilojoule'],
  ],
  watt: [
    [1, 1, 'watt W'],
    [1000, 1, 'kW kilowatt'],
  ],
  am: [[1, 1, 'am']],
  pm: [[1, 1, 'pm']],
  unit: [[1, 1, 'unit 单位']],
}

/** Written as one word. */
const speeds: Readonly<Record<string, string>> = {
  mph: 'miles per hour',
  kph: 'km per hour',
  kmh: 'km per hour',
}

interface Entry {
  readonly dimension: string
  readonly power: number
  readonly factor: Rational
}

const units = new Map<string, Entry>()
for (const [key, sizes] of Object.entries(table)) {
  const [dimension, power = '1'] = key.split(' ') as [string, string?]
  for (const [top, bottom, names] of sizes) {
    const factor = rational(BigInt(top), BigInt(bottom))
    for (const name of names.split(' ')) units.set(name, { dimension, power: Number(power), factor })
  }
}

function find(word: string): Entry | undefined {
  const isLong = word.length > 2
  const key = isLong ? word.toLowerCase() : word
  const plural = isLong ? /^(.+?)s$/.exec(key)?.[1] : undefined
  return units.get(word) ?? units.get(key) ?? (plural ? units.get(plural) : undefined)
}

export function isUnitWord(word: string): boolean {
  return find(word) !== undefined || /^(sq|square|cubic|mph|kph|AM|PM)$/.test(word)
}

/**
 * Reads "square centimeters", "cm^2", "miles per hour", "a.m.", "right triangles". Throws Unreadable if a word may change the
 * value before it. Trusted words are accepted; all words of a reference are trusted.
 */
export function readUnit(text: string, budget: Budget, trusted: 'all' | readonly string[] = 'all'): Unit {
  const plain = text
    .replaceAll(/\b([ap])\.\s?m\b\.?/gi, '$1m')
    .replaceAll(/\b([AP])m\b/gi, (_, letter: string) => `${letter.toLowerCase()}m`)
    .replaceAll(/\b[mk]ph\b|\bkmh\b/g, word => speeds[word]!)
    // Not in the table, since 2gm may be a product.
    .replaceAll(/\bgms?\b/g, 'grams')
    .replaceAll(/per cent|pour cent/gi, 'percent')
    .replaceAll(/quadrat(?=(?:zenti|kilo)?meter)/gi, 'square ')
    .replaceAll(/[{}()\\.,]/g, ' ')
  // "5 \text{ maybe 6}" is not 5.
  const withoutExponents = plain.replaceAll(/\^\s*-?\d+|(?<=\b[a-z]{1,2})[23](?!\d)/gi, '')
  if (/\d/.test(withoutExponents)) throw new Unreadable('a number among the words of a unit')
  const dimensions: Record<string, number> = {}
  const words: string[] = []
  const seen: string[] = []
  let factor = rational(1n)
  let sign = 1
  let power = 1
  for (const match of plain.matchAll(/[^\s/^*\d-]+|[/^]|-?\d+/g)) {
    const word = match[0]
    if (word === '/' || /^(?:per|pro|par)$/i.test(word)) sign = -1
    else if (/^(square|sq)$/i.test(word)) power = 2
    else if (/^(cubic|cu)$/i.test(word)) power = 3
    else if (word === '^' || /^-?\d/.test(word)) continue
    else {
      seen.push(word)
      const unit = find(word)
      if (!unit) {
        // In Chinese, the counter of counted things is ignored.
        if (!/^(of|the|a|an|in|each)$/i.test(word) && /[a-z]/i.test(word)) words.push(singular(word))
        continue
      }
      const after = /^\s*\^?\s*(-?\d)/.exec(plain.slice(match.index + word.length))
      const exponent = sign * (after ? Number(after[1]) : power)
      dimensions[unit.dimension] = (dimensions[unit.dimension] ?? 0) + exponent * unit.power
      for (let i = Math.abs(exponent); i > 0; i--) {
        const { numerator, denominator } = unit.factor
        const step = exponent > 0 ? unit.factor : rational(denominator, numerator)
        factor = multiplyRational(factor, step, budget)
      }
      power = 1
    }
  }
  const isTrusted = (word: string) => trusted !== 'all' && trusted.includes(singular(word))
  if (trusted !== 'all' && !areIdle(seen, word => isUnitWord(word) || isTrusted(word)))
    throw new Unreadable(`"${seen.join(' ').slice(0, 60)}" behind a number`)
  // Counted things may have any power, such as "square units".
  delete dimensions.unit
  return { dimensions, factor, words }
}

function singular(word: string): string {
  return word.toLowerCase().replace(/(?<=...)s$/, '')
}

export function haveSameDimensions(a: Unit, b: Unit): boolean {
  const names = new Set([...Object.keys(a.dimensions), ...Object.keys(b.dimensions)])
  return [...names].every(name => a.dimensions[name] === b.dimensions[name])
}

export function isKnown(unit: Unit): boolean {
  return Object.keys(unit.dimensions).length > 0
}
