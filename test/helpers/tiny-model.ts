import { writeFileSync } from 'node:fs'
import path from 'node:path'
import { initializeModel } from '../../lib/model/engine.js'
import { eosId, vocabSize, writeTokenizer } from '../../scripts/countdown-tokenizer.js'
import { makeTempDir } from './fake-policy.js'

/** A real Qwen2 with one layer, random weights and the countdown tokenizer, for tests that need the engine. */
export async function makeTinyModel(seed = 1): Promise<string> {
  const dir = makeTempDir()
  writeTokenizer(dir)
  const config = {
    architectures: ['Qwen2ForCausalLM'],
    model_type: 'qwen2',
    vocab_size: vocabSize,
    hidden_size: 16,
    intermediate_size: 32,
    num_hidden_layers: 1,
    num_attention_heads: 4,
    num_key_value_heads: 2,
    max_position_embeddings: 64,
    rms_norm_eps: 1e-6,
    rope_theta: 10000,
    hidden_act: 'silu',
    tie_word_embeddings: true,
    initializer_range: 0.1,
    torch_dtype: 'float32',
    eos_token_id: eosId,
  }
  writeFileSync(path.join(dir, 'config.json'), JSON.stringify(config))
  await initializeModel(dir, seed)
  return dir
}
