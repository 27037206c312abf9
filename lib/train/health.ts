/** What in a run's metrics says that the run learns nothing, with the likely cause and the field to change. */
import { moments } from '../base/stats.js'

/** What is read of a line of metrics.jsonl. Numbers that a line lacks say nothing. */
export interface Vitals {
  readonly step: number
  readonly rewardMean?: unknown
  readonly rewardStd?: unknown
  readonly zeroAdvantageFraction?: unknown
  readonly truncatedFraction?: unknown
  readonly entropy?: unknown
}

/** What is read of the configuration. */
export interface HealthConfig {
  readonly maxNewTokens?: number | undefined
  readonly groupSize?: number | undefined
}

export type SymptomName = 'cut-off' | 'equal-rewards' | 'no-signal' | 'no-entropy'

/** Something that has been so in every one of some steps. */
export interface Symptom {
  readonly name: SymptomName
  readonly firstStep: number
  readonly lastStep: number
  /** What is seen, what it likely comes from, and which field to change: sentences for people. */
  readonly text: string
}

/** Steps in a row from which on a symptom is told. */
export const HEALTH_STEPS = 10
/** A run of fewer than HEALTH_STEPS steps is judged at its end, by all its steps, unless they are fewer than this. */
const FEWEST_STEPS = 3
/** From this share on, completions that are cut off are the rule. */
const MOST = 0.9
/** In nats a token: below, the likeliest token has more than 99.9 % on average. */
const NO_ENTROPY = 0.01

/** For each symptom: whether a step has it. */
const signs: Readonly<Record<SymptomName, (step: Vitals) => boolean>> = {
  'cut-off': ({ truncatedFraction }) => isNumber(truncatedFraction) && truncatedFraction >= MOST,
  'equal-rewards': ({ rewardStd }) => rewardStd === 0,
  'no-signal': ({ zeroAdvantageFraction, rewardStd }) => zeroAdvantageFraction === 1 && rewardStd !== 0,
  'no-entropy': ({ entropy }) => isNumber(entropy) && entropy < NO_ENTROPY,
}

/** Every symptom that lasted HEALTH_STEPS steps, or all steps of a shorter run, in the order in which they began. */
export function symptomsOf(steps: readonly Vitals[], config: HealthConfig): Symptom[] {
  const shortest = Math.max(FEWEST_STEPS, Math.min(HEALTH_STEPS, steps.length))
  const found = (Object.keys(signs) as SymptomName[]).flatMap(name => {
    const symptoms: Symptom[] = []
    let start = 0
    for (let end = 0; end <= steps.length; end++) {
      if (end < steps.length && signs[name](steps[end]!)) continue
      if (end > start && end - start >= shortest)
        symptoms.push(describe(name, steps.slice(start, end), config))
      start = end + 1
    }
    return symptoms
  })
  const cutOff = found.filter(({ name }) => name === 'cut-off')
  // Completions that are cut off explain why none is rewarded.
  const isExplained = ({ name, firstStep, lastStep }: Symptom) =>
    name !== 'cut-off' &&
    name !== 'no-entropy' &&
    cutOff.some(cause => cause.firstStep <= firstStep && cause.lastStep >= lastStep)
  return found.filter(symptom => !isExplained(symptom)).sort((a, b) => a.firstStep - b.firstStep)
}

/** Follows a run, and tells each symptom once each time that it comes. */
export interface HealthWatch {
  /** The symptoms that this step completes. */
  add(step: Vitals): Symptom[]
  /** At the end of the run: those of a run that was too short for `add` to tell. */
  end(): Symptom[]
}

export function watchHealth(config: HealthConfig): HealthWatch {
  let steps: Vitals[] = []
  let count = 0
  let present = new Set<SymptomName>()
  return {
    add(step) {
      count++
      steps = [...steps, step].slice(-HEALTH_STEPS)
      if (steps.length < HEALTH_STEPS) return []
      const lasting = symptomsOf(steps, config)
      const fresh = lasting.filter(({ name }) => !present.has(name))
      present = new Set(lasting.map(({ name }) => name))
      return fresh
    },
    end: () => (count < HEALTH_STEPS ? symptomsOf(steps, config) : []),
  }
}

const isNumber = (value: unknown): value is number => typeof value === 'number'

function describe(name: SymptomName, steps: readonly Vitals[], config: HealthConfig): Symptom {
  const [firstStep, lastStep] = [steps[0]!.step, steps.at(-1)!.step]
  const place = firstStep === lastStep ? `Step ${firstStep}` : `Steps ${firstStep} to ${lastStep}`
  return { name, firstStep, lastStep, text: `${place}: ${texts[name](steps, config)}` }
}

const texts: Readonly<Record<SymptomName, (steps: readonly Vitals[], config: HealthConfig) => string>> = {
  'cut-off': (steps, { maxNewTokens }) =>
    `${percent(mean(steps, 'truncatedFraction'))} of the completions were cut off at sampling.maxNewTokens${maxNewTokens === undefined ? '' : `, ${maxNewTokens},`} ` +
    'before they ended. An answer that is cut off is judged wrong. Allow more tokens with sampling.maxNewTokens; if the ' +
    'completions go on after their answer, the model does not know where to stop: change data.template, for example to chat.',
  'equal-rewards': steps => {
    const reward = mean(steps, 'rewardMean')
    const seen = `every completion got the reward ${Number(reward.toPrecision(3))}, so that nothing is learnt. `
    return reward > 0
      ? `${seen}Either the problems are too easy, so that others are needed in data.train, or task.verifier does not tell right from wrong: look at the reasons in samples.jsonl.`
      : `${seen}Either the problems are too hard for the model, so that easier ones are needed in data.train, or the answers are not found: compare a completion in samples.jsonl with what task.verifier (with math: task.extract) looks for and with what data.template asks for.`
  },
  'no-signal': (_, { groupSize }) =>
    'within each group all rewards were equal, so that every advantage is 0 and nothing is learnt. Each problem is either always ' +
    `or never solved: use more completions a prompt than sampling.groupSize${groupSize === undefined ? '' : ` ${groupSize}`}, problems of medium difficulty in data.train, ` +
    'or sampling.filterGroups, which samples other prompts instead.',
  'no-entropy': steps =>
    `the entropy is ${mean(steps, 'entropy').toPrecision(2)} nats a token: the model writes the same completion every time, and nothing new is tried. ` +
    'Keep the entropy up with objective.entropyCoef or objective.entropyTarget, learn more slowly with optimizer.learningRate, or raise sampling.temperature.',
}

const mean = (steps: readonly Vitals[], field: keyof Vitals) =>
  moments(steps.map(step => Number(step[field]))).mean
const percent = (share: number) => `${Math.floor(100 * share)} %`
