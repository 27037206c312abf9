/** The section `data`: problem files, their fields, and the template around a problem. */
import { z } from 'zod'
import { count } from './values.js'

const files = (help: string) =>
  z
    .union([z.string(), z.array(z.string().min(1)).min(1)])
    .default('')
    .meta({ range: 'a text or a list of texts', description: help })

const jsonObject = (
  text: string,
  context: z.core.$RefinementCtx<string>,
): Record<string, z.core.util.JSONType> => {
  try {
    const value = JSON.parse(text)
    if (typeof value === 'object' && value !== null && !Array.isArray(value)) return value
  } catch {}
  context.issues.push({ code: 'custom', input: text })
  return {}
}

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
  chatTemplateArguments: z
    .union([z.string().transform(jsonObject), z.record(z.string(), z.json())])
    .optional()
    .meta({
      range: 'an object, or its JSON text',
      description:
        'variables of the chat template, such as { enable_thinking: false } of Qwen3; with template chat',
    }),
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
    .describe(
      'leave out and list problems that are empty, duplicate or too long; otherwise they are an error',
    ),
  shards: count().default(1).describe('take every shards-th problem only'),
  shard: count(0).default(0).describe('which of the shards, from 0'),
})
