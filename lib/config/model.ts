/** The section `model`: which model is trained, and where it lives. */
import { z } from 'zod'
import { devicePattern, deviceRange, modelDTypes } from '../model/policy.js'
import { count } from './values.js'

export const model = z.strictObject({
  dir: z
    .string()
    .min(1)
    .describe(
      'Hugging Face directory of the model to train, or its name on the hub, such as Qwen/Qwen2.5-3B',
    ),
  reference: z.string().min(1).optional().describe('directory of the frozen reference (default: model.dir)'),
  refModelSyncSteps: count(0)
    .default(0)
    .describe(
      'steps from one update of the reference to the next, in which it moves to the policy; 0 is never',
    ),
  refModelMixupAlpha: z
    .number()
    .gt(0)
    .max(1)
    .default(0.6)
    .describe(
      "the policy's share in an updated reference, the rest being the reference before; 1 copies the policy",
    ),
  dtype: z
    .enum(modelDTypes)
    .default('float32')
    .describe(
      'dtype of weights and activations; the optimizer keeps float32. bfloat16 halves their memory, and is meant for GPUs and for CPUs with bfloat16 arithmetic (AVX512_BF16, AMX)',
    ),
  device: z
    .string()
    .regex(devicePattern)
    .default('cpu')
    .meta({ range: deviceRange, description: 'where the model lives' }),
})
