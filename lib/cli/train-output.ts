/** What rapo train prints beside its bar. */
import { plural } from '../base/text.js'
import type { StepEvaluation } from '../train/evaluation.js'
import { scoresByName } from '../train/evaluation.js'
import type { SampleLine } from '../train/samples.js'
import type { TrainOptions } from '../train/train.js'

type Phase = Parameters<NonNullable<TrainOptions['onPhase']>>[0]

/** What the bar says during phases that are no part of the count of steps. */
export function activityOf(phase: Phase, done?: number, total?: number): string | undefined {
  if (phase === 'save') return 'saving'
  if (phase !== 'eval') return undefined
  return total === undefined ? 'evaluating' : `evaluating ${done}/${total}`
}

/** `step 50: pass@1 0.420, pass@2 0.515 of 64 problems, 4 completions each`. */
export function describeEvaluation(evaluation: StepEvaluation): string {
  const scores = Object.entries(scoresByName(evaluation)).map(
    ([name, score]) => `${name} ${score.toFixed(3)}`,
  )
  const { step, groups, samplesPerProblem } = evaluation
  const size = `${plural(groups.all!.problems, 'problem')}, ${plural(samplesPerProblem, 'completion')} each`
  return `${step === 0 ? 'before training' : `step ${step}`}: ${scores.join(', ')} of ${size}`
}

/** Characters of a prompt's end and of a completion's two ends that are shown. */
const LONGEST = { prompt: 300, completion: 800 }

/** A completion as a few lines: what was asked, what came, what it was worth. */
export function formatSample({
  step,
  problemId,
  renderedPrompt,
  completion,
  reward,
  reason,
  finishReason,
}: SampleLine): string {
  const half = LONGEST.completion / 2
  const prompt =
    renderedPrompt.length > LONGEST.prompt ? `…${renderedPrompt.slice(-LONGEST.prompt)}` : renderedPrompt
  const text =
    completion.length > LONGEST.completion
      ? `${completion.slice(0, half)} … ${completion.slice(-half)}`
      : completion
  const cut = finishReason === 'length' ? ', cut off' : ''
  const verdict = `reward ${Number(reward.toPrecision(3))}${reason === '' ? '' : `: ${reason}`}`
  return [
    `── step ${step}, problem ${problemId}, ${verdict}${cut}`,
    ...indent('prompt', prompt),
    ...indent('completion', text),
  ].join('\n')
}

const indent = (name: string, text: string) =>
  text.split('\n').map((line, i) => `${(i === 0 ? name : '').padEnd(12)}${line}`)
