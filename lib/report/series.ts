/** Prepares series of numbers for drawing. A null is a gap and stays a gap. */
export interface Point {
  readonly x: number
  readonly y: number | null
}

/**
 * Mean over the points whose x is at most `reach` away; there are fewer such points at the ends and beside gaps. x ascends.
 * Each window is summed afresh, since a running sum keeps a residue when only zeros are left in the window.
 */
export function movingMean(points: readonly Point[], reach: number): Point[] {
  let from = 0
  let to = 0
  return points.map(({ x, y }) => {
    while (to < points.length && points[to]!.x <= x + reach) to++
    while (points[from]!.x < x - reach) from++
    if (y === null) return { x, y }
    let sum = 0
    let count = 0
    for (let i = from; i < to; i++) {
      const value = points[i]!.y
      if (value === null) continue
      sum += value
      count++
    }
    return { x, y: sum / count }
  })
}

/**
 * At most about 2 · bins points: the lowest and the highest point of each bin along x, in their order, so that no spike is
 * lost.
 */
export function decimate(points: readonly Point[], bins: number): Point[] {
  if (points.length <= 2 * bins) return [...points]
  const first = points[0]!.x
  const width = (points.at(-1)!.x - first) / bins || 1
  const kept: Point[] = []
  let start = 0
  while (start < points.length) {
    const bin = Math.floor((points[start]!.x - first) / width)
    let end = start
    let low = start
    let high = start
    let gap = -1
    for (; end < points.length && Math.floor((points[end]!.x - first) / width) === bin; end++) {
      const { y } = points[end]!
      if (y === null) gap = end
      else {
        if (points[low]!.y === null || y < points[low]!.y!) low = end
        if (points[high]!.y === null || y > points[high]!.y!) high = end
      }
    }
    const indices = new Set([low, high, ...(gap < 0 ? [] : [gap])])
    for (const index of [...indices].sort((a, b) => a - b)) kept.push(points[index]!)
    start = end
  }
  return kept
}

/** The range of the values without the given share at each end; undefined without values. */
export function innerRange(values: readonly number[], share: number): [number, number] | undefined {
  if (values.length === 0) return undefined
  const sorted = Float64Array.from(values).sort()
  const cut = Math.floor(share * (sorted.length - 1))
  return [sorted[cut]!, sorted[sorted.length - 1 - cut]!]
}
