/** Completions of the models, right and wrong. */
import { number } from './format.js'
import { type Html, html, visibleText } from './html.js'
import { isRight, type Sample } from './load.js'
import { missing, runName, type ShownRun } from './parts.js'

export function samplesSection(shown: readonly ShownRun[]): Html {
  return html`<section id="samples">
    <h2>Samples</h2>
    <p class="note">What the models wrote: the prompt in grey, then the completion; an environment's answers in grey, too. Characters that would not show are named.</p>
    ${shown.map((entry, i) => samplesOf(entry, i === shown.length - 1))}
  </section>`
}

function samplesOf(entry: ShownRun, isOpen: boolean): Html {
  const { samples = [], evalSamples = [], name, isBase, evaluation } = entry.run
  if (samples.length === 0 && evalSamples.length === 0) {
    return missing(`${name} has no samples`, isBase || !evaluation ? 'rapo eval' : 'rapo train')
  }
  const difficulties = new Map(evaluation?.perProblem.map(({ id, difficulty }) => [id, difficulty]))
  const ofEvaluation = evalSamples.map(sample => card(sample, difficulties.get(sample.problemId)))
  const stages = samples.map(({ firstStep, lastStep, samples }) => {
    const range = firstStep === lastStep ? `step ${firstStep}` : `steps ${firstStep} to ${lastStep}`
    return html`<h3>Training, ${range}</h3><div class="${cards(samples)}">${samples.map(sample => card(sample, `step ${sample.step}`))}</div>`
  })
  return html`<details${isOpen && html` open`}><summary>${runName(entry)}</summary>
    ${ofEvaluation.length > 0 && html`<h3>Evaluation</h3><div class="${cards(evalSamples)}">${ofEvaluation}</div>`}
    ${stages}
  </details>`
}

/** Long texts need wider cards. */
const cards = (samples: readonly Sample[]) =>
  samples.some(({ prompt, ...sample }) => turnsOf(sample).flat().join('').length + prompt.length > 400)
    ? 'cards wide'
    : 'cards'

/** What the model wrote, and the environment's answer, turn by turn. A sample that is no episode has one turn. */
const turnsOf = ({ turns, completion }: Pick<Sample, 'turns' | 'completion'>) =>
  (turns ?? [{ completion, observation: '' }]).map(turn => [turn.completion, turn.observation ?? ''] as const)

function card(sample: Sample, label?: string): Html {
  const { problemId, prompt, reward, reason, finishReason, rewards } = sample
  const verdict = isRight(sample) ? '✓ right' : '✗ wrong'
  const place = html`problem ${visibleText(problemId)}${label !== undefined && `, ${label}`}${finishReason === 'length' && ', truncated'}`
  const text = turnsOf(sample).map(
    ([completion, observation]) =>
      html`${visibleText(completion)}${observation !== '' && html`<span class="prompt">${visibleText(observation)}</span>`}`,
  )
  return html`<article class="sample ${isRight(sample) ? 'right' : 'wrong'}">
    <header><span><b>${verdict}</b> · reward ${number(reward)}</span><span>${place}</span>
    ${rewards.length === 0 && reason !== '' && html`<span class="reason">${visibleText(reason, 300)}</span>`}
    ${rewards.map(part => html`<span class="reason">${partText(part)}</span>`)}</header>
    <pre dir="ltr"><span class="prompt">${visibleText(prompt)}</span>${text}</pre></article>`
}

/** format 1 × 0.2: in the format */
function partText({ name, weight, reward, reason }: Sample['rewards'][number]): Html {
  const factor = weight === 1 ? '' : ` × ${number(weight)}`
  return html`${visibleText(name)} ${number(reward)}${factor}${reason !== '' && html`: ${visibleText(reason, 300)}`}`
}
