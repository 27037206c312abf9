"""What bench/gpu_engine.ts compares with: transformers' generate, and a step of transformers and torch. Prints a line of JSON.

gpu_engine_peers.py MODEL DEVICE BATCH PROMPT NEW SEQUENCES LENGTH

Each part runs twice and its second time counts. The step is that of torch_step.py, four sequences at a time, since more
logits do not fit.
"""

import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM

from torch_step import loss

directory, device = sys.argv[1:3]
batch, prompt, new, sequences, length = map(int, sys.argv[3:])
on_cuda = device.startswith("cuda")
AT_ONCE = 4


def wait():
    if on_cuda:
        torch.cuda.synchronize()


def seconds(call):
    call()
    wait()
    start = time.perf_counter()
    call()
    wait()
    return time.perf_counter() - start


def rates():
    """Bytes read and written by a large copy; bfloat16 GEMM on random numbers."""
    size, bytes_ = (8192, 2**30) if on_cuda else (512, 2**26)
    source = torch.zeros(bytes_, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))

    def repeated(call):
        return seconds(lambda: [call() for _ in range(10)]) / 10

    return 2 * bytes_ / repeated(lambda: target.copy_(source)) / 1e9, 2 * size**3 / repeated(lambda: a @ b) / 1e12


def load():
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.bfloat16).to(device)


def generate():
    model = load().eval()
    ids = torch.randint(model.config.vocab_size, (batch, prompt), device=device)
    with torch.inference_mode():
        run = lambda: model.generate(  # noqa: E731
            ids,
            attention_mask=torch.ones_like(ids),
            min_new_tokens=new,
            max_new_tokens=new,
            do_sample=True,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            pad_token_id=0,
        )
        return {"seconds": seconds(run), "tokens": batch * new}


def train():
    policy, reference = load().train(), load().requires_grad_(False)
    policy.gradient_checkpointing_enable()
    optimizer = torch.optim.AdamW(policy.parameters(), lr=1e-6, fused=True)
    first = length // 4
    ids = torch.randint(policy.config.vocab_size, (sequences, length), device=device)

    def step():
        for part in ids.split(AT_ONCE):
            (loss(policy, reference, part, first) * len(part) / sequences).backward()
        torch.nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return {"seconds": seconds(step), "tokens": sequences * length}


def attempt(part):
    try:
        return part()
    except Exception as error:  # noqa: BLE001
        return {"error": str(error).split("\n")[0]}
    finally:
        if on_cuda:
            torch.cuda.empty_cache()


copy, gemm = rates()
result = {
    "device": torch.cuda.get_device_name() if on_cuda else device,
    "copyGBs": copy,
    "gemmTFLOPs": gemm,
    "generate": attempt(generate),
    "train": attempt(train),
}
print(json.dumps(result))
