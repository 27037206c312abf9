/** Names that people may have meant. */
import { distance } from 'fastest-levenshtein'

/** Upper and lower case, dashes and underscores decide nothing. */
const bare = (name: string) => name.toLowerCase().replace(/[-_\s]/g, '')

/**
 * The known name that is most like the given one; undefined where none is like it. `partOf` gives the part of a name that
 * is compared, the rest deciding between equals.
 */
export function nearest(
  given: string,
  known: readonly string[],
  partOf: (name: string) => string = name => name,
): string | undefined {
  const wanted = bare(partOf(given))
  const edits = (name: string) => distance(wanted, bare(partOf(name)))
  // Without a rest of its own the given name has nothing to compare with the rests of the others: the first one is taken.
  const isPart = partOf(given) === given
  const apart = (name: string) => distance(given, isPart ? partOf(name) : name)
  const [best] = known.toSorted((a, b) => edits(a) - edits(b) || apart(a) - apart(b))
  // One edit makes any name of two letters into any other.
  const most = wanted.length < 3 ? 0 : Math.ceil(wanted.length / 3)
  return best !== undefined && edits(best) <= most ? best : undefined
}

/** The end of a message about an unknown name: `: did you mean "dr-grpo"?`, or nothing. */
export function didYouMean(...names: Parameters<typeof nearest>): string {
  const found = nearest(...names)
  return found === undefined ? '' : `: did you mean "${found}"?`
}
