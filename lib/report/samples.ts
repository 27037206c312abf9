/** Completions of the models, right and wrong. */
import { number } from './format.js'
import { type Html, html, visibleText } from './html.js'
import { isRight, type Sample, type Stage } from './load.js'
import { missing, runName, type ShownRun } from './parts.js'

export function samplesSection(shown: readonly ShownRun[]): Html {
  return html`<section id="samples">
    <h2>Samples</h2>
    <p class="note">What the models wrote: the prompt as the model got it, in grey, then the completion. Characters that would not show are named.</p>
    ${shown.map((entry, i) => samplesOf(entry, i === shown.length - 1))}
  </section>`
}

function samplesOf(entry: ShownRun, isOpen: boolean): Html {
  const { samples = [], evalStages = [], evalSamples = [], name, isBase, evaluation } = entry.run
  if (samples.length === 0 && evalStages.length === 0 && evalSamples.length === 0) {
    return missing(`${name} has no samples`, isBase || !evaluation ? 'rapo eval' : 'rapo train')
  }
  const difficulties = new Map(evaluation?.perProblem.map(({ id, difficulty }) => [id, difficulty]))
  const ofEvaluation = evalSamples.map(sample => card(sample, difficulties.get(sample.problemId)))
  const draw = (title: string) => (stage: Stage) => {
    const { firstStep, lastStep, samples } = stage
    const range = firstStep === lastStep ? `step ${firstStep}` : `steps ${firstStep} to ${lastStep}`
    return html`<h3>${title}, ${range}</h3><div class="${cards(samples)}">${samples.map(sample => card(sample, `step ${sample.step}`))}</div>`
  }
  return html`<details${isOpen && html` open`}><summary>${runName(entry)}</summary>
    ${ofEvaluation.length > 0 && html`<h3>Evaluation</h3><div class="${cards(evalSamples)}">${ofEvaluation}</div>`}
    ${samples.map(draw('Training'))}
    ${evalStages.map(draw('Evaluation during training'))}
  </details>`
}

/** Long texts need wider cards. */
const cards = (samples: readonly Sample[]) =>
  samples.some(({ prompt, completion }) => prompt.length + completion.length > 400) ? 'cards wide' : 'cards'

function card(sample: Sample, label?: string): Html {
  const { problemId, prompt, renderedPrompt, completion, reward, reason, finishReason, rewards } = sample
  const verdict = verdictOf(sample)
  const place = html`problem ${visibleText(problemId)}${label !== undefined && `, ${label}`}${finishReason === 'length' && ', truncated'}`
  return html`<article class="sample ${verdict}">
    <header><span><b>${VERDICTS[verdict]}</b> · reward ${number(reward)}</span><span>${place}</span>
    ${rewards.length === 0 && reason !== '' && html`<span class="reason">${visibleText(reason, 300)}</span>`}
    ${rewards.map(part => html`<span class="reason">${partText(part)}</span>`)}</header>
    <pre dir="ltr"><span class="prompt">${visibleText(renderedPrompt ?? prompt)}</span>${visibleText(completion)}</pre></article>`
}

const VERDICTS = { right: '✓ right', partly: '◐ partly right', wrong: '✗ wrong' } as const

/** By the verifier's own reward. */
function verdictOf(sample: Sample): keyof typeof VERDICTS {
  if (isRight(sample)) return 'right'
  return (sample.rewards[0]?.reward ?? sample.reward) > 0 ? 'partly' : 'wrong'
}

/** format 1 × 0.2: in the format */
function partText({ name, weight, reward, reason }: Sample['rewards'][number]): Html {
  const factor = weight === 1 ? '' : ` × ${number(weight)}`
  return html`${visibleText(name)} ${number(reward)}${factor}${reason !== '' && html`: ${visibleText(reason, 300)}`}`
}
