/** The section `data`: problem files, their fields, and the template around a problem. */
import { z } from 'zod'
import { count } from './values.js'

const files = (help: string) =>
  z
    .union([z.string(), z.array(z.string().min(1)).min(1)])
    .default('')
    .meta({ range: 'a text or a list of texts', description: help })

export const data = z.strictObject({
  train: files('problem files to train on: a file, a glob or a list of them (docs/files.md)'),
  eval: files('problem files that `rapo eval` measures'),
  template: z
    .string()
    .regex(/\{prompt\}|^(chat|qwen-boxed|abel)$/)
    .default('{prompt}')
    .meta({
      range: 'a text that contains {prompt}, or chat, qwen-boxed or abel',
      names: ['chat', 'qwen-boxed', 'abel'],
      description:
        "text around a problem, in which {prompt} stands for its prompt; or chat (the model's own template), qwen-boxed, abel",
    }),
  systemPrompt: z
    .string()
    .default('')
    .describe("the system's message before a problem that has none; with template chat"),
  problemField: z
    .string()
    .default('')
    .describe('column of the problem, such as prompt or extra.question (default: the usual names)'),
  answerField: z.string().default('').describe('column of the answer (default: the usual names)'),
  idField: z.string().default('').describe("column of a problem's name (default: id, else its line)"),
  difficultyField: z.string().default('').describe('column that splits the evaluation (default: difficulty)'),
  dropUnusable: z
    .boolean()
    .default(false)
    .describe('leave out, and list, problems that are empty, double or too long, instead of an error'),
  shards: count().default(1).describe('take every shards-th problem only'),
  shard: count(0).default(0).describe('which of the shards, from 0'),
})
