/** `rapo init`: a project that trains at once, to be changed into one's own. */
import { existsSync, writeFileSync } from 'node:fs'
import path from 'node:path'
import { RapoError } from '../base/errors.js'
import { ioGuard, makeDirectories } from '../base/files.js'
import { packageRoot } from '../base/package.js'

const configuration = (
  modelDir: string,
) => `# npx rapo train --config rapo.yaml        npx rapo train --help explains every field
# Paths are relative to the directory in which rapo is called.
model:
  # A toy of 0.2 million weights, to begin with. Your own: a Hugging Face directory, or a name on the hub such as
  # Qwen/Qwen2.5-0.5B-Instruct, with dtype: bfloat16 and, under data, template: chat.
  dir: ${JSON.stringify(modelDir)}
data:
  train: problems.jsonl
  eval: problems.jsonl # other problems than those of train, once you have some
task:
  verifier: ./verifier.ts
sampling:
  promptsPerStep: 5
  groupSize: 32
  maxNewTokens: 16
objective:
  preset: rapo
optimizer:
  learningRate: 0.0003 # for a real model about 1.0e-6
run:
  steps: 20
  saveEvery: 10
eval:
  samples: 64
`

const verifier =
  `/** Judges one completion. rapo calls this function for each; the reward 1 is a right answer. */
interface Answer {
  numbers: number[]
  target: number
}

export default (completion: string, { numbers, target }: Answer) => {
  const wrong = (reason: string) => ({ reward: 0, reason })
  const used = (completion.match(/\\d+/g) ?? []).map(Number)
  const sorted = (list: number[]) => [...list].sort((a, b) => a - b).join()
  if (sorted(used) !== sorted(numbers)) return wrong('every number must be used once')
  // Numbers, single operators and brackets only: what is evaluated below can be nothing else.
  if (!/^[(\\d][\\d()]*([-+*/][(\\d][\\d()]*)*$/.test(completion)) return wrong('this is no sum')
  try {
    const value: number = Function(\`return \${completion}\`)()
    return value === target ? { reward: 1, reason: 'correct' } : wrong(\`equals \${value}\`)
  } catch {
    return wrong('the brackets do not fit')
  }
}
`.replaceAll('\\\\', '\\')

const problems = [
  [[2, 4, 7], 1],
  [[3, 5, 9], 11],
  [[1, 6, 14], 19],
  [[2, 8, 12], 18],
  [[3, 4, 9], 8],
].map(([numbers, target], i) => ({
  id: `sum-${i + 1}`,
  prompt: `${(numbers as number[]).join(' ')}=${target}:`,
  answer: { numbers, target },
}))

/**
 * Writes rapo.yaml, verifier.ts and problems.jsonl into the directory, which is made where it is missing. Returns their
 * names. Throws ERR_RAPO_CONFIG, before anything is written, where one of them is there already.
 */
export function writeProject(dir: string): string[] {
  const model = path.relative(path.resolve(dir), path.join(packageRoot, 'models', 'countdown-base'))
  const files = {
    'rapo.yaml': configuration(model.replaceAll('\\', '/')),
    'verifier.ts': verifier,
    'problems.jsonl': problems.map(problem => `${JSON.stringify(problem)}\n`).join(''),
  }
  const taken = Object.keys(files).filter(name => existsSync(path.join(dir, name)))
  if (taken.length > 0) {
    throw new RapoError(
      'ERR_RAPO_CONFIG',
      `${path.resolve(dir)} has ${taken.join(' and ')} already: name another directory, as in rapo init my-project`,
    )
  }
  ioGuard(`cannot write to ${path.resolve(dir)}`, () => {
    makeDirectories(dir)
    for (const [name, text] of Object.entries(files)) {
      writeFileSync(path.join(dir, name), text, { flag: 'wx' })
    }
  })
  return Object.keys(files)
}
