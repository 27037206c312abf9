/**
 * The words that may stand behind a number without changing its value: nouns and their attributes. Any other word may deny the
 * number ("31 is wrong"), hedge it ("31 maybe") or compare it ("31 less"), so that the answer cannot be read.
 */

const list = (words: string) => new Set(words.trim().split(/\s+/))

/** Words that may stand between nouns and in front of them. */
const around = list(`
  a an the of in on at to per each every for with by and from as this that these its his her their our
  total different distinct possible real positive negative whole complete full ordered unordered unique exact
  right equilateral isosceles acute obtuse regular congruent similar equal parallel prime even odd consecutive
  red blue green yellow black white brown pink purple orange grey gray silver golden
  more big small large little long short tall wide high deep old young new fresh hot cold free extra additional remaining
  integer rational irrational natural complex binary single double triple favorable valid such altogether
  left round straight empty heavy light male female adult square cubic linear unit human working school boxed
  the der die das le la les un une des de du d los las el
`)

/** The ones among these that may stand last. */
const last = list('total altogether each remaining left extra additional old tall long wide high deep')

/** Nouns whose plural does not end in s, and nouns that stay singular behind any number. */
const nouns = list(`
  people men women children kids feet mice geese teeth fish sheep deer dice oxen salmon shrimp aircraft series species
  money water milk sugar flour rice paper fruit bread juice coffee tea sand gold corn
  person man woman child student teacher boy girl friend player worker member guest customer
  way time day week month year hour minute second point mark page book problem question answer number digit integer
  value solution root pair set group team class team row column line side edge vertex vertices axis face corner diagonal
  triangle rectangle circle polygon angle segment area volume perimeter
  apple egg box bag ball card coin marble cookie cake candy cup bottle piece slice item unit step game ticket
  car bus train house room chair table tree flower plant dog cat bird cow horse chicken duck
  mile inch foot yard dollar cent degree percent
  element subset permutation combination arrangement outcome path route term factor multiple divisor zero zeros
  matrices indices data bacteria criteria radii foci hypotenuse
  matches points heads tails oclock
  stück stueck personen leute kinder schüler äpfel tage wochen monate jahre jahr tag woche monat mann frau uhr eier
  personnes personne enfants enfant élèves élève jours jour semaines semaine mois ans années fois pommes œufs
  personas niños días semanas meses años veces manzanas huevos
  人 个 個 只 隻 本 张 張 支 枝 条 條 件 次 名 位 辆 輛 棵 块 塊 头 頭 匹 岁 歲 页 頁 题 題 种 種 组 組 对 對 双 雙 倍
  箱 袋 瓶 杯 盒 朵 颗 顆 粒 步 排 列 行 面 间 間 台 架 套 份 单位 平方单位 个单位
`)

/** Words that end in s without being the plural of a noun. */
const notPlural = list(`
  is was has does goes less unless plus minus perhaps always sometimes sums equals exceeds means guess yes us as thus
  this his hers ours theirs times fails lacks differs sums halves thirds fourths fifths sixths sevenths eighths ninths
  tenths hundredths thousandths dozens scores hundreds thousands millions billions trillions squares cubes besides
  nowhere towards afterwards otherwise hopefully regardless nonetheless nevertheless needless pointless worthless bogus
  false lies says seems looks appears isnt wasnt doesnt cross minuses odds guesses errors mistakes doubts wrongs others
`)

/**
 * Whether the words behind a number leave its value unchanged. They must end with a noun, or with a phrase such as "in total".
 */
export function areIdle(words: readonly string[], isUnit: (word: string) => boolean): boolean {
  return words.every((word, i) => {
    if (isUnit(word) || isNoun(word)) return true
    if (!around.has(word.toLowerCase())) return false
    return i < words.length - 1 || last.has(word.toLowerCase())
  })
}

function isNoun(word: string): boolean {
  const lower = word.toLowerCase().replaceAll(/["'’`]/g, '')
  if (nouns.has(lower)) return true
  return /^[a-z]{2,}[^siu]s$/.test(lower) && !notPlural.has(lower)
}

/** The words behind a number in a sentence that belong to it; all of them if the next one may change its value. */
export function wordsOfAmount(text: string): string {
  const words = text.trim().split(/\s+/)
  const isIdle = (word: string) => isNoun(word) || around.has(word.toLowerCase())
  const end = words.findIndex(word => !isIdle(word))
  if (end < 0 || changers.has(words[end]!.toLowerCase())) return text
  const own = words.slice(0, end)
  while (own.length > 0 && !isNoun(own.at(-1)!) && !last.has(own.at(-1)!.toLowerCase())) own.pop()
  return own.join(' ')
}

const changers = list(`
  times squared cubed plus minus percent pct percentage dozen hundred thousand million billion trillion thirds halves
  quarters fourths fifths sixths sevenths eighths ninths tenths hundredths thousandths less fewer larger smaller
  greater bigger longer shorter higher lower than as per and or to factorial degrees radians divided multiplied over
  in of short off
`)

/** Whether the words of a sentence deny, hedge or compare the number that they are about. */
export function isDoubtful(words: string): boolean {
  return doubts.test(words)
}

/** The same for denials only. */
export function isDenied(words: string): boolean {
  return denial.test(words)
}

const denial =
  /n['’]t\b|\b(?:not|never|no|none|nothing|nobody|cannot|neither|nor|wrong|wrongly|incorrect|false|invalid|mistaken|impossible|contradict\w*|rather than|instead of|unless|less than|more than|at (?:least|most)|maybe|perhaps|possibly|probably|guess\w*|bound|upper|lower)\b|不|错/i

const doubts = new RegExp(
  `n['’]t\\b|\\b(?:${`
  not never no nor neither cannot wrong incorrect false untrue invalid mistaken mistake error maybe perhaps possibly
  probably presumably likely unlikely might could guess unsure uncertain unknown unclear doubt roughly approximately
  approx about around nearly almost close somewhere least most than under over above below between except unless without
  but instead rather impossible ruled rejected reject contradiction contradicts otherwise anything unless bogus opposite
  `
    .trim()
    .split(/\s+/)
    .join('|')})\\b|不|错|非|大约|可能`,
  'i',
)
