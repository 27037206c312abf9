/** The reward function `format`: 1 where a completion has the form that the prompt asks for, else 0. */
import { extractBoxed } from './math/extract.js'
import type { Verdict } from './verifier.js'

export const formats = ['think-answer', 'think', 'boxed'] as const
/**
 * think-answer: `<think>…</think> <answer>…</answer>` and nothing else. think: `<think>…</think>` and then an answer.
 * boxed: a `\boxed{…}` with something in it. The opening `<think>` may be missing, since many templates end a prompt with it.
 */
export type Format = (typeof formats)[number]

/** Reward 1 or 0, with what is wrong as the reason. Never throws, whatever the text. */
export function verifyFormat(completion: string, format: Format = 'think-answer'): Verdict {
  const fault = format === 'boxed' ? boxFault(completion) : tagFault(completion, format === 'think-answer')
  return fault === undefined ? { reward: 1, reason: 'in the format' } : { reward: 0, reason: fault }
}

function boxFault(completion: string): string | undefined {
  return extractBoxed(completion)?.trim() ? undefined : 'no box with something in it'
}

const tag = /<\/?(?:think|answer)>/g

function tagFault(completion: string, hasAnswerTags: boolean): string | undefined {
  const found = completion.match(tag) ?? []
  const wanted = ['<think>', '</think>', ...(hasAnswerTags ? ['<answer>', '</answer>'] : [])]
  const given = found[0] === '<think>' ? found : ['<think>', ...found]
  if (given.join() !== wanted.join())
    return `the tags are ${found.join(' ') || 'missing'}, not ${wanted.join(' ')}`
  // The texts before, between and behind the tags, the first being the one before <think>.
  const texts = completion.split(tag).map(text => text.trim())
  const [before, thought, ...rest] = found[0] === '<think>' ? texts : ['', ...texts]
  if (before) return 'text before <think>'
  if (!thought) return 'nothing is thought'
  if (!hasAnswerTags) return rest[0] ? undefined : 'nothing follows </think>'
  const [between, answer, behind] = rest
  if (between) return 'text between </think> and <answer>'
  if (!answer) return 'the answer is empty'
  return behind ? 'text behind </answer>' : undefined
}
