/** The section `data`: problem files, their fields, and the template around a problem. */
import { z } from 'zod'
import { count } from './values.js'

export const data = z.strictObject({
  train: z
    .string()
    .default('')
    .describe('problem file to train on: JSON Lines, .csv or .parquet (docs/files.md)'),
  eval: z.string().default('').describe('problem file that `rapo eval` measures'),
  template: z
    .string()
    .regex(/\{prompt\}|^(chat|qwen-boxed|abel)$/)
    .default('{prompt}')
    .meta({
      range: 'a text that contains {prompt}, or chat, qwen-boxed or abel',
      description:
        "text around a problem, in which {prompt} stands for its prompt; or chat (the model's own template), qwen-boxed, abel",
    }),
  problemField: z.string().default('').describe('field with the problem (default: prompt, else problem)'),
  answerField: z.string().default('').describe('field with the answer (default: answer)'),
  idField: z.string().default('').describe("field with a problem's name (default: id, else its line)"),
  difficultyField: z.string().default('').describe('field that splits the evaluation (default: difficulty)'),
  dropUnusable: z
    .boolean()
    .default(false)
    .describe('leave out, and list, problems that are empty, double or too long, instead of an error'),
  shards: count().default(1).describe('take every shards-th problem only'),
  shard: count(0).default(0).describe('which of the shards, from 0'),
})
