#!/usr/bin/env node
/** Declares every command of the command line. What a command does is in commands.ts, which is loaded when a command runs. */
import { realpathSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { Command, Help, InvalidArgumentError, Option } from 'commander'
import { RapoError } from '../base/errors.js'
import { packageVersion } from '../base/package.js'
import { afterOutput, plainText, printError } from '../base/text.js'
import { describePresets, type Field, fields } from '../config/help.js'
import { deviceRange, modelDTypes } from '../model/policy.js'
import { extractions } from '../reward/math/extract.js'
import type { Tolerance } from '../reward/math/judge.js'
import { figure2 } from '../theory/theory.js'
import { refuseRanks, reportFailure } from './ranks.js'

/** The fields of the section rollouts that count where nothing is trained. */
const serverFields = /^rollouts\.(?!maxStaleness$|maxMismatch$)/

/** The sections of the configuration that an evaluation reads, beside serverFields. */
const measuredFields =
  /^(model\.(dtype|device)|data\.(?!train$).*|task\..*|sampling\.(temperature|topP|topK|minP|maxNewTokens)|eval\..*|run\.threads|distributed\.timeoutSeconds)$/

/** Commands that several processes of a launcher may run: together, or on each machine for itself. */
const sharedCommands = ['train', 'eval', 'setup', 'doctor']

/** Columns of the help at most, and of its left column. */
const HELP_COLUMNS = 100
const TERM_COLUMNS = 34

const bestHelp = 'of a run: its best checkpoint, which run.keepBest keeps, in place of its newest'

/** The whole command line. Nothing runs before parseAsync. */
export function createCli(): Command {
  const cli = new Command('rapo')
    .description('Trains language models by reinforcement learning from verifiable rewards.')
    .version(packageVersion)
    .configureHelp({
      showGlobalOptions: false,
      helpWidth: Math.min(process.stdout.columns || HELP_COLUMNS, HELP_COLUMNS),
      padWidth: (command, helper) =>
        Math.min(TERM_COLUMNS, Help.prototype.padWidth.call(helper, command, helper)),
      // A long term has a line of its own.
      formatItem(term, width, description, helper) {
        const format = (text: string) =>
          Help.prototype.formatItem.call(helper, text, width, description, helper)
        return helper.displayWidth(term) <= width ? format(term) : `  ${term}\n${format('')}`
      },
    })
    .configureOutput({ writeErr: text => printError(text.trimEnd()) })
    .showSuggestionAfterError()
    .hook('preAction', (_, command) => {
      if (!sharedCommands.includes(command.name())) refuseRanks(`rapo ${command.name()}`)
    })

  cli
    .command('init')
    .description('write a configuration, a verifier in TypeScript and five problems, which train at once')
    .argument('[dir]', 'where; made if it is missing', '.')
    .action(async dir => (await import('./commands.js')).runInit(dir))

  const train = cli
    .command('train')
    .description('train a model in a run directory; Ctrl-C stops, saves, and says how to go on')
    .option('-c, --config <file>', 'YAML or JSON file with the fields below')
    .option('--resume <run>', 'go on with this run directory from its newest checkpoint')
    .option('--overwrite', 'replace the run that is in the run directory')
    .option(
      '--processes <count>',
      'train in so many processes on this machine, which share every batch (docs/scale.md)',
      wholeNumber(1),
    )
    .option(
      '--dry-run',
      'check everything, sample and judge one group, show prompt, completions, rewards, memory and disk; write nothing',
    )
    .addHelpText('after', () => `\n${barHelp}\n\nPresets of objective.preset:\n${describePresets()}`)
    .action(async values => (await import('./commands.js')).runTrain(values))
  addFields(train, fields, 'data.train')

  const evaluate = cli
    .command('eval')
    .description(
      'measure pass@k of a model or a run on a problem file; writes eval.json and eval-samples.jsonl',
    )
    .requiredOption('-m, --model <dir>', 'model directory, or a run directory: then its newest checkpoint')
    .option('--best', bestHelp)
    .option('-c, --config <file>', "YAML or JSON file with the fields below (default: a run's own)")
    .option('-n, --n <count>', 'short for --eval.samples')
    .option('--name <label>', 'what tables and reports call it (default: the directory name)')
    .option('--output <dir>', 'where the files go (default: the run directory, or runs/ and the name)')
    .option('--restart', 'do not go on with the interrupted measurement that is there')
    .option(
      '--processes <count>',
      'measure in so many processes on this machine, which share the problems (docs/scale.md)',
      wholeNumber(1),
    )
    .action(async values => (await import('./commands.js')).runEval(values))
  addFields(
    evaluate,
    fields.filter(({ path }) => measuredFields.test(path) || serverFields.test(path)),
    'data.eval',
  )

  const generate = cli
    .command('generate')
    .description(
      'complete prompts: rows { promptIds } or { prompt } get { completions }; rapo grade judges what comes out',
    )
    .option('--n <count>', 'completions a prompt', wholeNumber(1), 1)
    .option('--max-new-tokens <count>', 'longest completion (64)')
    .option('--temperature <number>', '0 is greedy (1)')
    .option('--top-p <number>', 'sample from the likeliest tokens with this mass (1, off)')
    .option('--top-k <count>', 'sample from this many likeliest tokens (0, off)')
    .option('--min-p <number>', 'drop tokens less likely than this times the likeliest (0, off)')
    .option('--seed <number>', 'same seed, same bits', wholeNumber(0), 1)
    .action(async values => (await import('./commands.js')).runGenerate(values))
  addModelOptions(generate)
  addFields(
    generate,
    fields.filter(({ path }) => serverFields.test(path)),
  )

  const logprobs = cli
    .command('logprobs')
    .description(
      'score completions: rows { promptIds, completionIds } or { prompt, completion } get { logprobs, entropy }',
    )
    .option('--temperature <number>', 'the logits are divided by it (1)')
    .action(async values => (await import('./commands.js')).runLogprobs(values))
  addModelOptions(logprobs)

  cli
    .command('merge')
    .description('write an adapter of low rank (LoRA) and its model as one model (docs/lora.md)')
    .requiredOption('-m, --model <dir>', "run directory: then its newest checkpoint; or an adapter of PEFT's")
    .option('--best', bestHelp)
    .requiredOption('-o, --output <dir>', 'where the model goes; must not hold anything yet')
    .addOption(new Option('--dtype <name>', "of the weights (default: the model's own)").choices(modelDTypes))
    .action(async values => (await import('./commands.js')).runMerge(values))

  cli
    .command('grade')
    .description(
      'judge answers: rows { completion | answer, reference } get { correct, reason }; also what rapo generate writes',
    )
    .option('--task <verifier>', 'math, countdown, exact, or the path of a module', 'math')
    .addOption(
      new Option('--extract <where>', "math: where a completion's answer is: last box; else stated; else any")
        .choices(extractions)
        .default('boxed'),
    )
    .option(
      '--tolerance <share>',
      'math: how far a decimal may be off, in (0, 1), or digits (default: exact)',
      tolerance,
    )
    .option(
      '-i, --input <file>',
      'a file in any format of a problem file; or its name on the hub (default: JSON Lines from standard input)',
    )
    .option(
      '--completion-field <column>',
      'what the model wrote: a text or a list (default: completion, completions)',
    )
    .option('--answer-field <column>', 'a final answer that is judged alone (default: answer)')
    .option(
      '--reference-field <column>',
      'the right answer (default: reference; beside a completion also answer, and what problem files call it)',
    )
    .option('-o, --output <file>', 'JSON Lines (default: standard output)')
    .action(async values => (await import('./commands.js')).runGrade(values))

  cli
    .command('report')
    .description('write one HTML file on some runs: pass@k, training curves, samples')
    .argument('<run...>', 'run directories')
    .option('--base <dir>', 'directory with the eval.json of the base model')
    .option('--baseline <name>', 'what differences are taken to (default: the first trained run)')
    .option('--by-run', 'show each run by itself, also those that differ by their seed alone')
    .option('-o, --output <file>', 'the HTML file', 'runs/report.html')
    .action(async (runs, values) => (await import('./commands.js')).runReport(runs, values))

  cli
    .command('study')
    .description(
      'train and measure variants of a configuration with several seeds, and compare them (docs/studies.md); goes on where it was stopped',
    )
    .requiredOption('-c, --config <file>', 'YAML file with the variants and seeds')
    .option('--quick', "the file's small version")
    .option('--output <dir>', "where the runs and the report go (default: the file's, or runs/ and its name)")
    .option('--processes <count>', 'runs at the same time (default: one a core)', wholeNumber(1))
    .action(async values => (await import('./study.js')).study(values))

  cli
    .command('theory')
    .description("solve the paper's Figure 2 in closed form and by gradient ascent (docs/theory.md)")
    .option('--kl-coef <number>', 'α in [1e-6, 1e6]', Number, figure2.klCoef)
    .option('--entropy-coef <number>', 'β in [1e-6, 1e6]', Number, figure2.entropyCoef)
    .option('-o, --output <file>', 'also write the figure, as SVG')
    .action(async values => (await import('./commands.js')).runTheory(values))

  cli
    .command('setup')
    .description('find or install libtorch and build the engine; does nothing that is done already')
    .option('--force', 'build anew')
    .action(async values => (await import('./commands.js')).runSetup(values))

  cli
    .command('doctor')
    .description('show what rapo found on this machine, and why not what it did not')
    .option('--json', 'as one JSON object')
    .option('-c, --config <file>', 'of a run: predict its memory and disk too, and ask its servers')
    .option('--processes <count>', 'with --config: the memory of each of so many processes', wholeNumber(1))
    .action(async values => (await import('./commands.js')).runDoctor(values))

  cli
    .command('bench')
    .description('time value and gradient of the objective on this machine, against torch where it is there')
    .addOption(
      new Option('--dtype <names>', 'of the logits: float32, bfloat16, or both')
        .choices(['float32', 'bfloat16', 'float32,bfloat16'])
        .default('float32,bfloat16'),
    )
    .option('--rows <counts>', 'tokens of a batch, such as 128,512', wholeNumbers(1), [128])
    .option('--vocab <count>', 'words of the vocabulary', wholeNumber(2), 151936)
    .option('--rounds <count>', 'calls of each', wholeNumber(6), 15)
    .option('--threads <count>', 'of rapo and of torch; 0: one a core', wholeNumber(0), 0)
    .option('--json <file>', 'write the results')
    .option('--svg <file>', 'write a chart')
    .option(
      '--compare <a.json b.json...>',
      'measure nothing: show what differs between two such files beyond noise',
    )
    .action(async values => (await import('./commands.js')).runBench(values))

  cli
    .command('demo')
    .description(
      'train the bundled model with GRPO and with RAPO, measure both, write the report (npm start)',
    )
    .option('--output <dir>', 'where the runs and the report go', 'runs')
    .option('--steps <count>', 'training steps (default: as configured)', wholeNumber(1))
    .option('--n <count>', 'samples a problem (default: as configured)', wholeNumber(2))
    .option('--reuse', 'keep finished runs and measurements that are there already')
    .action(async values => (await import('./demo.js')).demo(values))
  for (const command of cli.commands) suggestOption(command)
  return cli
}

/** The options that files and directories are given by, for those who leave the option's name out. */
const optionsOfOperands: Readonly<Record<string, { readonly file?: string; readonly dir?: string }>> = {
  train: { file: '--config', dir: '--resume' },
  eval: { file: '--config', dir: '--model' },
  generate: { file: '--input', dir: '--model' },
  logprobs: { file: '--input', dir: '--model' },
  merge: { dir: '--model' },
  grade: { file: '--input' },
  study: { file: '--config' },
  doctor: { file: '--config' },
}

/** Lets a fault of the command line name the option that a stray operand may be the value of. */
function suggestOption(command: Command): void {
  const { file, dir } = optionsOfOperands[command.name()] ?? {}
  command.configureOutput({
    outputError(text, write) {
      const [operand] = command.args
      const isMeant = operand && !operand.startsWith('-') && /too many arguments|required option/.test(text)
      const isFile = isMeant && (/\.(ya?ml|jsonl?|[ct]sv|parquet)(\.\w+)?$/.test(operand) || !dir)
      const option = isFile ? file : dir
      write(isMeant && option ? `${text.trimEnd()}\n(Did you mean ${option} ${operand}?)\n` : text)
    },
  })
}

/** What the bar of a training shows. */
const barHelp = `On the bar, beside the steps done, the time taken and the time left:
  reward   the mean over the last 10 steps
  kl       of the last step, as the objective's penalty estimates it, in nats a token
  entropy  of the last step, in nats a token
  length   of the last step's completions, their mean in tokens
A narrow terminal shows fewer of them; metrics.jsonl has all, each explained in docs/metrics.md.`

/**
 * One option per field of the configuration. Values stay text here; lib/config checks them, wherever they come from.
 * @param needed the problem file that the command needs
 */
function addFields(command: Command, shown: readonly Field[], needed?: string): void {
  for (const field of shown) {
    const initial = field.default === undefined || field.default === '' ? '' : `; default ${field.default}`
    const mark = field.isRequired || field.path === needed ? 'required; ' : ''
    const option = new Option(
      `${field.option} <${field.type}>`,
      `${field.help} (${mark}${field.range}${initial})`,
    )
    command.addOption(option.helpGroup(`Fields of ${field.path.split('.')[0]}:`))
  }
}

function addModelOptions(command: Command): void {
  command
    .requiredOption('-m, --model <dir>', 'model directory, or a run directory: then its newest checkpoint')
    .option('--best', bestHelp)
    .option(
      '-c, --config <file>',
      'YAML or JSON file that gives the options below their values (default: a run’s own, else what stands in brackets)',
    )
    .option(
      '-i, --input <file>',
      'a file in any format of a problem file (default: JSON Lines from standard input)',
    )
    .option('-o, --output <file>', 'JSON Lines (default: standard output)')
    .option(
      '--template <text>',
      'text around a prompt, with {prompt}; or chat, qwen-boxed, abel ({prompt}; of conversations chat)',
    )
    .option('--system-prompt <text>', "the system's message; with template chat (none)")
    .option('--problem-field <column>', 'column of the prompt (the usual names of problem files)')
    .option('--device <name>', `where the model lives: ${deviceRange} (cpu)`)
    .option('--dtype <name>', `of weights and activations: ${modelDTypes.join(' or ')} (float32)`)
    .option('--threads <count>', "CPU threads; 0 is libtorch's choice (0)")
}

function wholeNumber(min: number) {
  return (text: string) => {
    const value = Number(text)
    if (text.trim() !== '' && Number.isSafeInteger(value) && value >= min) return value
    throw new InvalidArgumentError(`It must be a whole number ≥ ${min}.`)
  }
}

function wholeNumbers(min: number) {
  return (text: string) => text.split(',').map(wholeNumber(min))
}

/** A parser for a share, or for digits. */
function tolerance(text: string): Tolerance {
  return text === 'digits' ? text : decimal('> 0 and < 1, or digits', value => value > 0 && value < 1)(text)
}

function decimal(range: string, isInRange: (value: number) => boolean) {
  return (text: string) => {
    const value = Number(text)
    if (text.trim() !== '' && Number.isFinite(value) && isInRange(value)) return value
    throw new InvalidArgumentError(`It must be a number ${range}.`)
  }
}

/** The text of an error for users: one clear message. The stack is shown only with RAPO_DEBUG=1, and for bugs of rapo. */
export function describeError(error: unknown, env: NodeJS.ProcessEnv = process.env): string {
  const isExpected = error instanceof RapoError && env.RAPO_DEBUG !== '1'
  if (isExpected) return plainText(`rapo: ${error.message}`)
  return plainText(error instanceof Error ? (error.stack ?? error.message) : String(error))
}

/** Runs the command line of this process and then ends the process. */
export async function main(): Promise<void> {
  // A reader that closes the pipe early, such as head, is not an error.
  process.stdout.on('error', error => {
    if ((error as NodeJS.ErrnoException).code !== 'EPIPE') throw error
  })
  let isEmptyAgain = false
  /** Without this check, a command that waits for an event that can no longer come would end the process with success. */
  const onEmpty = () => {
    if (isEmptyAgain) {
      printError('rapo: the command cannot end: what it waits for will never come')
      process.exitCode = 1
      return
    }
    // Whoever else notices says more.
    isEmptyAgain = true
    setImmediate(() => {})
  }
  process.on('beforeExit', onEmpty)
  try {
    await createCli().parseAsync()
  } catch (error) {
    await reportFailure(error, describeError(error))
    process.exitCode ||= 1
  } finally {
    process.off('beforeExit', onEmpty)
    // A connection or timer that a verifier or hook left open does not delay the exit; output that is not written yet does.
    setTimeout(() => afterOutput(() => process.exit()), 500).unref()
  }
}

const isMain =
  process.argv[1] !== undefined && realpathSync(process.argv[1]) === fileURLToPath(import.meta.url)
// Not awaited: the package is built as CommonJS, which has no top-level await.
if (isMain) void main()
