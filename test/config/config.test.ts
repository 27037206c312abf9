import { writeFileSync } from 'node:fs'
import path from 'node:path'
import { test } from 'uvu'
import * as assert from 'uvu/assert'
import { RapoError } from '../../lib/base/errors.js'
import { fields } from '../../lib/config/help.js'
import { loadConfig, parseConfig, stringifyConfig } from '../../lib/config/load.js'
import { kernelObjective } from '../../lib/config/objective.js'
import { dapo, drGrpo, grpo, rapo } from '../../lib/loss/objective.js'
import { makeTempDir } from '../helpers/fake-policy.js'

const dir = makeTempDir()
const minimal = { model: { dir: 'm' }, task: { verifier: 'countdown' } }

function write(name: string, text: string): string {
  const file = path.join(dir, name)
  writeFileSync(file, text)
  return file
}

/** The message of the configuration error that body throws. */
function messageOf(body: () => unknown): string {
  try {
    body()
  } catch (error) {
    assert.instance(error, RapoError)
    assert.is((error as RapoError).code, 'ERR_RAPO_CONFIG')
    return (error as RapoError).message
  }
  return assert.unreachable('nothing was thrown') as never
}

test('defaults, file and overrides, each above the one before', () => {
  const file = write(
    'a.yaml',
    'model: {dir: m}\ntask: {verifier: exact}\nobjective:\n  klCoef: 0.1\nrun: {steps: 7}\n',
  )
  const config = loadConfig(file, {
    'run.steps': '9',
    'objective.entropyCoef': '1e-3',
    'objective.advantageScale': 'none',
  })
  assert.is(config.objective.klCoef, 0.1)
  assert.is(config.run.steps, 9)
  assert.is(config.objective.entropyCoef, 0.001)
  assert.is(config.objective.advantageScale, 'none')
  assert.is(config.sampling.groupSize, 8)
  assert.is(config.task.verifier, 'exact')
})

test('a JSON file says the same as a YAML file', () => {
  const yaml = write('b.yaml', 'model: {dir: m}\ntask: {verifier: exact}\nsampling: {topK: 5}\n')
  const json = write(
    'b.json',
    JSON.stringify({ model: { dir: 'm' }, task: { verifier: 'exact' }, sampling: { topK: 5 } }),
  )
  assert.equal(loadConfig(json), loadConfig(yaml))
})

test('a preset gives the objective that objective.ts defines, and single fields change it', () => {
  const presets = { rapo: rapo(), grpo: grpo(), dapo: dapo(), 'dr-grpo': drGrpo() }
  for (const [preset, expected] of Object.entries(presets)) {
    const { objective } = parseConfig({ ...minimal, objective: { preset } })
    for (const name of ['penalty', 'klCoef', 'entropyCoef', 'clipLow', 'clipHigh', 'maxLogRatio'] as const) {
      assert.is(objective[name], expected[name], `${preset}.${name}`)
    }
  }
  const dr = parseConfig({ ...minimal, objective: { preset: 'dr-grpo', clipHigh: 0.5 } }).objective
  assert.is(dr.aggregation, 'constant')
  assert.is(dr.advantageScale, 'none')
  assert.is(dr.clipHigh, 0.5)
  assert.is(parseConfig({ ...minimal, objective: { preset: 'dapo' } }).objective.aggregation, 'token-mean')
  // Without a penalty there is nothing for the preset's klCoef to weigh.
  assert.is(parseConfig({ ...minimal, objective: { penalty: 'none' } }).objective.klCoef, 0)
})

test('what is written reads back the same', () => {
  const config = parseConfig({
    ...minimal,
    objective: { preset: 'rapo', phiMin: 0.3 },
    run: { output: 'runs/x: y' },
  })
  assert.equal(loadConfig(write('c.yaml', stringifyConfig(config))), config)
})

test('an unknown field or group: named, with its line and the nearest that there is', () => {
  const swapped = messageOf(() => loadConfig(write('swapped.yaml', 'modle:\n  dir: m\n')))
  assert.match(swapped, 'there is no field "modle": did you mean "model"?')
  const file = write(
    'd.yaml',
    'model:\n  dir: m\ntask: { verifier: exact }\nobjective:\n  kl_coef: 0.1\nsamplng:\n  groupSize: 4\ntemperature: 1\nquux: 1\n',
  )
  const message = messageOf(() => loadConfig(file))
  assert.match(message, `${file}:5: there is no field "objective.kl_coef": did you mean "objective.klCoef"?`)
  assert.match(message, `${file}:7: there is no field "samplng": did you mean "sampling"?`)
  assert.match(message, `${file}:8: there is no field "temperature": did you mean "sampling.temperature"?`)
  assert.match(message, `${file}:9: there is no field "quux"\n`.trim())
  assert.not.match(message, /quux": did you mean/)
  assert.match(
    messageOf(() => loadConfig(undefined, { 'objective.klCoeff': '1' })),
    'there is no field "objective.klCoeff": did you mean "objective.klCoef"?',
  )
})

test('a value out of range: field, value, range, line', () => {
  const file = write(
    'e.yaml',
    'model: {dir: m}\ntask: {verifier: exact}\nsampling:\n  groupSize: 1\n  topP: 1.5\n  temperature: hot\nobjective: {penalty: forwrd}\n',
  )
  const message = messageOf(() => loadConfig(file, { 'run.steps': '0', 'run.seed': '1.5' }))
  const lines = [
    `${file}:4: sampling.groupSize is 1; it must be a whole number ≥ 2 and ≤ 65536`,
    `${file}:5: sampling.topP is 1.5; it must be a number > 0 and ≤ 1`,
    `${file}:6: sampling.temperature is "hot"; it must be 0, or a number ≥ 0.000001 and ≤ 100`,
    `${file}:7: objective.penalty is "forwrd"; it must be one of none, forward,`,
    'run.steps is 0; it must be a whole number ≥ 1',
    'run.seed is 1.5; it must be a whole number ≥ 0',
  ]
  for (const line of lines) assert.match(message, line)
  // What came from the command line has no line in the file.
  assert.not.match(message, /yaml:\d+: run/)
  const overridden = messageOf(() => loadConfig(file, { 'sampling.groupSize': '0' }))
  assert.match(overridden, 'sampling.groupSize is 0')
  assert.not.match(overridden, /yaml:\d+: sampling.groupSize/)
})

test('numbers that are none: empty, NaN, infinite, a null from an empty YAML value', () => {
  const bad = (path: string, value: unknown) =>
    messageOf(() => loadConfig(write('f.yaml', stringifyConfig(parseConfig(minimal))), { [path]: value }))
  for (const text of ['', ' ', 'NaN', 'Infinity', '1e999', '0x', '1,5']) {
    assert.match(bad('objective.klCoef', text), 'objective.klCoef is ')
  }
  assert.match(bad('objective.advantageScale', 'yes'), 'it must be one of sample-std, population-std, none')
  const file = write('g.yaml', 'model: {dir: m}\ntask: {verifier: exact}\nrun:\n  steps:\n')
  assert.match(
    messageOf(() => loadConfig(file)),
    `${file}:4: run.steps is null`,
  )
})

test('a surrogate other than the preset’s brings its own bounds', () => {
  const resolved = (objective: object) => parseConfig({ ...minimal, objective }).objective
  assert.is(resolved({ surrogate: 'gspo' }).clipLow, 3e-4)
  assert.is(resolved({ surrogate: 'gspo', clipLow: 0.1 }).clipLow, 0.1)
  assert.is(resolved({ preset: 'gspo', surrogate: 'clip' }).clipHigh, 0.2)
  assert.is(resolved({ surrogate: 'sapo' }).clipHigh, undefined)
  const config = parseConfig({ ...minimal, objective: { preset: 'sapo', sapoTauPositive: 2 } })
  const { clipLow, clipHigh, sapoTauPositive } = kernelObjective(config, 0.5)
  assert.equal([clipLow, clipHigh, sapoTauPositive], [1, Infinity, 2])
  for (const preset of ['rapo', 'grpo', 'dapo', 'dr-grpo', 'gspo', 'cispo', 'sapo']) {
    const whole = parseConfig({ ...minimal, objective: { preset, entropyTarget: 1 } })
    assert.equal(loadConfig(write('again.yaml', stringifyConfig(whole))), whole)
    assert.is(kernelObjective(whole, 0.5).entropyCoef, 0.5)
  }
  const corrected = parseConfig({ ...minimal, correction: { level: 'sequence' } })
  assert.equal(corrected.correction, { outside: 'truncate', low: 0, high: 2, level: 'sequence' })
  assert.equal(loadConfig(write('again.yaml', stringifyConfig(corrected))), corrected)
})

test('an option that nothing would read is an error', () => {
  const bad = (values: object) => messageOf(() => parseConfig({ ...minimal, ...values }))
  const objective = (fields: object) => bad({ objective: fields })
  assert.match(
    objective({ preset: 'grpo', phiMin: 0.5 }),
    'objective.phiMin is 0.5; it must be 1 with penalty',
  )
  assert.match(objective({ phi: 'step', rMin: 0 }), 'objective.rMin is 0; a step has objective.rMax alone')
  assert.match(
    objective({ entropyStep: 0.1 }),
    'objective.entropyStep is 0.1; it needs objective.entropyTarget',
  )
  assert.match(objective({ preset: 'sapo', clipHigh: 0.2 }), 'sapo does not clip')
  assert.match(objective({ preset: 'cispo', ratioCap: 9 }), 'the surrogate cispo does not read it')
  assert.match(objective({ ratioCap: 1.1 }), 'ratioCap is 1.1, expected a number ≥ 1 + clipHigh = 1.2')
  assert.match(objective({ preset: 'gspo', topEntropyFraction: 0.2 }), 'it must be 1 with surrogate gspo')
  assert.match(bad({ correction: { high: 3 } }), 'correction.high is 3; it needs correction.level')
  assert.match(
    bad({ objective: { preset: 'gspo' }, correction: { level: 'token' } }),
    'correction.level is token; it must be off or sequence with surrogate gspo',
  )
})

test('fields that must fit each other', () => {
  const bad = (values: object) => messageOf(() => parseConfig({ ...minimal, ...values }))
  assert.match(
    bad({ objective: { phiMin: 0.9, phiMax: 0.5 } }),
    'objective.phiMin is 0.9; it must be ≤ objective.phiMax, 0.5',
  )
  assert.match(
    bad({ objective: { rMin: 1, rMax: 1 } }),
    'objective.rMin is 1; it must be < objective.rMax, 1',
  )
  assert.match(bad({ objective: { penalty: 'none', klCoef: 0.1 } }), 'objective.klCoef is 0.1; it must be 0')
  assert.match(
    bad({ optimizer: { stepsPerBatch: 17 } }),
    'optimizer.stepsPerBatch is 17; it must be ≤ sampling.promptsPerStep, 16',
  )
})

test('variables of the chat template: an object, or its JSON text', () => {
  const args = { enable_thinking: false, depth: 2 }
  const of = (data: object) => parseConfig({ ...minimal, data }).data
  for (const chatTemplateArguments of [args, JSON.stringify(args)]) {
    assert.equal(of({ template: 'chat', chatTemplateArguments }).chatTemplateArguments, args)
  }
  for (const chatTemplateArguments of ['{', '[1]', 3]) {
    assert.match(
      messageOf(() => of({ template: 'chat', chatTemplateArguments })),
      /data\.chatTemplateArguments .*an object, or its JSON text/,
    )
  }
  assert.match(
    messageOf(() => of({ chatTemplateArguments: args })),
    'data.chatTemplateArguments is given; it needs data.template chat',
  )
  assert.match(
    messageOf(() => of({ template: 'chat', chatTemplateArguments: { messages: [] } })),
    'data.chatTemplateArguments sets messages, which rapo sets',
  )
})

test('missing fields say what they are for', () => {
  const message = messageOf(() => parseConfig({}))
  assert.match(message, 'model.dir is missing: Hugging Face directory')
  assert.match(message, 'task.verifier is missing: what rewards')
  assert.match(
    messageOf(() => parseConfig({ ...minimal, model: {} })),
    'model.dir is missing',
  )
})

test('files that are no configuration', () => {
  assert.is(
    messageOf(() => loadConfig('none.yaml')),
    `cannot read none.yaml (${path.resolve('none.yaml')}): no such file or directory`,
  )
  assert.is(
    messageOf(() => loadConfig(dir)),
    `cannot read ${dir}: it is a directory`,
  )
  const lines = write('problems.jsonl', '{"prompt":"1+1"}\n{"prompt":"2+2"}\n')
  assert.is(
    messageOf(() => loadConfig(lines)),
    `${lines}: this is JSON Lines, such as a problem file, and no configuration`,
  )
  for (const text of ['- 1\n', 'hello\n']) {
    assert.match(
      messageOf(() => loadConfig(write('j.yaml', text))),
      'must hold groups of fields',
    )
  }
  assert.match(
    messageOf(() => loadConfig(write('k.yaml', 'run: 3\nmodel: {dir: m}\n'))),
    'run is 3; it must be a group',
  )
  assert.match(
    messageOf(() => loadConfig(write('l.yaml', ''))),
    'model.dir is missing',
  )
})

test('a file that is no YAML: line, fault and remedy in plain words', () => {
  const cases: [text: string, line: number, why: string][] = [
    ['run:\n  steps: 1\n  steps: 2\n', 3, 'the field stands here a second time\n  steps: 2'],
    ['run:\n  steps: [1\n', 3, 'the closing ] is missing, on this line or before it'],
    ['run: { steps: 1\nmodel: { dir: m }\n', 2, 'the closing } is missing, on this line or before it'],
    ['model: { dir: "m }\n', 2, 'the closing " is missing'],
    ['run:\n\tsteps: 1\n', 2, 'the line begins with a tab; YAML is indented with spaces'],
    [
      'run:\n  steps: 1\n seed: 2\n',
      3,
      'the line is indented otherwise than the fields before it\n  seed: 2',
    ],
    ['run:\n  steps 1\n  seed: 2\n', 2, 'a line must be `field: value`'],
    ['run\n', 0, 'must hold groups of fields'],
    ['data: { template: @x }\n', 1, 'a text that begins with @, % or ` must stand in quotes'],
    ['data: { template: !x {prompt} }\n', 1, 'a text that begins with ! must stand in quotes'],
    ['data:\n  train: *.jsonl\n', 2, 'a text that begins with * must stand in quotes: "*.jsonl"'],
    ['data:\n  template: Q: {prompt}\n', 2, 'a text with a colon and a space must stand in quotes'],
    ['{"run": {"steps": 1 "seed": 2}}\n', 1, 'the comma between two fields is missing'],
    [
      'data: { template: "\\boxed" , answerField: "\\q" }\n',
      1,
      'a backslash in double quotes must be doubled',
    ],
    ['run: {}\n---\nrun: {}\n', 2, 'the file must hold one document: remove the line ---'],
  ]
  for (const [text, line, why] of cases) {
    const file = write('broken.yaml', text)
    const message = messageOf(() => loadConfig(file))
    assert.ok(message.includes(why), `${JSON.stringify(text)}: ${message}`)
    assert.ok(message.startsWith(line > 0 ? `${file}:${line}: ` : file), message)
    assert.not.match(message, /implicit|flow|scalar|mapping|node|collection/i)
  }
})

test('a value that is no name of a field: the nearest one, whatever its case and dashes', () => {
  const meant = (values: object) =>
    /did you mean "([^"]*)"\?/.exec(messageOf(() => parseConfig({ ...minimal, ...values })))?.[1]
  assert.is(meant({ objective: { preset: 'drGrpo' } }), 'dr-grpo')
  assert.is(meant({ objective: { preset: 'DR_GRPO' } }), 'dr-grpo')
  assert.is(meant({ objective: { penalty: 'forwrd' } }), 'forward')
  assert.is(meant({ objective: { advantageScale: 'samplestd' } }), 'sample-std')
  assert.is(meant({ model: { dir: 'm', dtype: 'BFloat-16' } }), 'bfloat16')
  assert.is(meant({ data: { template: 'qwen_boxed' } }), 'qwen-boxed')
  assert.is(meant({ optimizer: { schedule: 'warmup' } }), undefined)
})

test('an unknown field comes before what may be missing because of it', () => {
  const lines = messageOf(() => parseConfig({ model: { dir: 'm' }, tsak: { verifier: 'exact' } })).split('\n')
  assert.is(lines[0], 'there is no field "tsak": did you mean "task"?')
  assert.match(lines[1]!, 'task.verifier is missing')
})

test('every field has a help line, a range and an option of its own', () => {
  assert.ok(fields.length > 40)
  assert.is(new Set(fields.map(field => field.option)).size, fields.length)
  for (const field of fields) {
    assert.ok(field.help.length > 3, field.path)
    assert.ok(field.range.length > 3, field.path)
    assert.match(field.option, /^--[a-z]+\.[a-z0-9-]+$/)
  }
  assert.is(fields.find(field => field.path === 'objective.klCoef')?.option, '--objective.kl-coef')
})

test("a fault of an override is not blamed on the file's line", () => {
  const file = path.join(makeTempDir(), 'c.yaml')
  writeFileSync(file, 'model: { dir: m }\ntask: { verifier: exact }\nsampling: { groupSize: 4 }\n')
  const messageOf = (overrides: Record<string, unknown>) => {
    try {
      loadConfig(file, overrides)
    } catch (error) {
      return (error as Error).message
    }
    return assert.unreachable() as never
  }
  assert.match(messageOf({ 'sampling.groupSize': '1' }), /^sampling\.groupSize is 1; it must be /)
  writeFileSync(file, 'model: { dir: m }\ntask: { verifier: exact }\nsampling: { groupSize: 1 }\n')
  assert.match(messageOf({}), /c\.yaml:3: sampling\.groupSize is 1; it must be /)
})

test.run()
