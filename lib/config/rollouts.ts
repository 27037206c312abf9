/** The section `rollouts`: what samples the completions (docs/servers.md). */
import { z } from 'zod'
import { count, list } from './values.js'

export const rolloutEngines = ['local', 'vllm', 'sglang'] as const

/** How new weights reach servers. */
export const syncs = ['disk', 'nccl', 'gloo', 'adapter'] as const
export type Sync = (typeof syncs)[number]

const url = z.string().regex(/^https?:\/\/[^\s/]+/)

export const rollouts = z.strictObject({
  engine: z
    .enum(rolloutEngines)
    .default('local')
    .describe('what samples: the policy itself, or the servers of rollouts.urls (docs/servers.md)'),
  urls: z
    .union([z.string().transform(list).pipe(z.array(url)), z.array(url)])
    .default([])
    .meta({
      range: 'a list of addresses such as http://localhost:8000, or one text with commas',
      description: 'servers of vLLM or SGLang',
    }),
  sync: z
    .enum(syncs)
    .default('disk')
    .describe(
      'how new weights reach servers: as files in syncDir; broadcast from GPU to GPU (nccl), or over the network to SGLang (gloo); or as the adapter of the section lora alone (docs/servers.md)',
    ),
  syncDir: z
    .string()
    .default('')
    .describe(
      'directory for the weights or adapters, which the servers must see under the same path (default: weights in run.output)',
    ),
  timeoutSeconds: z
    .number()
    .positive()
    .max(1e6)
    .default(1800)
    .describe('seconds that an answer, or a server that is gone, is waited for'),
  maxInFlight: count()
    .default(64)
    .describe('requests that a server works on at once; each asks for the whole group of a prompt'),
  maxStaleness: count(0)
    .max(64)
    .default(0)
    .describe(
      'updates of the policy that may lie between sampling and training: the rollouts of so many steps are sampled while a step is trained on',
    ),
  sendSeeds: z
    .boolean()
    .default(false)
    .describe('send a seed with each request, for servers that can repeat what they sampled'),
  canaryTolerance: z
    .number()
    .positive()
    .max(100)
    .optional()
    .describe(
      "mean difference, in nats, that a server's log-probs may have from the policy's after each update of the weights (default: 1e-4 with model.dtype float32, 0.05 with bfloat16)",
    ),
  maxMismatch: z
    .number()
    .positive()
    .max(100)
    .default(0.5)
    .describe(
      "mean difference, in nats, that the log-probs of a step's rollouts may have from the policy's; a larger one ends the run",
    ),
})

/** The tolerance of the canary, in nats. */
export function canaryToleranceOf({
  rollouts,
  model,
}: {
  readonly rollouts: { readonly canaryTolerance?: number | undefined }
  readonly model: { readonly dtype: string }
}): number {
  return rollouts.canaryTolerance ?? (model.dtype === 'float32' ? 1e-4 : 0.05)
}
