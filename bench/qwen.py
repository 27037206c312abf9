"""transformers and torch at what bench/qwen.ts measures. A JSON line in, one out: {"seconds", "cpu", "tokens", "peak"}.

qwen.py PART MODEL DTYPE   PART: generate or train
"""
import json
import resource
import sys
import time

import torch
from transformers import AutoModelForCausalLM

from torch_step import loss

part, directory, dtype = sys.argv[1:4]
load = lambda: AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype))  # noqa: E731
policy = load()
reference = load().requires_grad_(False) if part == "train" else None


def generate(prompts, new_tokens, stop, seed):
    torch.manual_seed(seed)
    longest = max(map(len, prompts))
    ids = torch.tensor([[stop[0]] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    with torch.inference_mode():
        out = policy.generate(
            ids,
            attention_mask=mask,
            max_new_tokens=new_tokens,
            do_sample=True,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            repetition_penalty=1.0,
            eos_token_id=stop,
            pad_token_id=stop[0],
        )
    rows = out[:, longest:].tolist()
    # Useful: up to the token that ends a completion.
    return sum(next((i + 1 for i, token in enumerate(row) if token in stop), len(row)) for row in rows)


def train(sequences, prompt):
    ids = torch.tensor(sequences)
    loss(policy, reference, ids, prompt).backward()
    policy.zero_grad(set_to_none=False)
    return ids.numel()


print(json.dumps({"version": f"torch {torch.__version__}"}), flush=True)
for line in sys.stdin:
    given = json.loads(line)
    wall, cpu = time.perf_counter(), time.process_time()
    if part == "generate":
        tokens = generate(given["prompts"], given["newTokens"], given["stop"], given["seed"])
    else:
        tokens = train(given["sequences"], given["prompt"])
    seconds, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"seconds": seconds, "cpu": cpu, "tokens": tokens, "peak": peak}), flush=True)
