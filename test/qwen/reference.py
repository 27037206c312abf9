"""What transformers says of a model, for test/qwen/compare.ts.

reference.py logits MODEL IN.json OUT.safetensors   texts, prompts, rows -> token ids, chats, logits in three dtypes
reference.py greedy MODEL IN.json OUT.safetensors   prompts, newTokens -> greedy completions in float32
reference.py check MODEL SAVED DTYPE                whether SAVED loads and holds MODEL's numbers in DTYPE
"""
import json
import sys

import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

torch.set_grad_enabled(False)


def load(directory, dtype):
    return AutoModelForCausalLM.from_pretrained(directory, dtype=dtype)


def logits(directory, source, target):
    given = json.load(open(source))
    tokenizer = AutoTokenizer.from_pretrained(directory)
    told = {
        "texts": [tokenizer(text, add_special_tokens=False)["input_ids"] for text in given["texts"]],
        "chats": [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
            )
            for text in given["texts"]
        ],
    }
    arrays = {}
    for dtype in ("float32", "float64", "bfloat16"):
        model = load(directory, getattr(torch, dtype))
        for i, rows in enumerate(given["rows"]):
            found = model(torch.tensor([given["prompts"][i]])).logits[0, rows]
            arrays[f"{dtype}.{i}"] = (found.float() if dtype == "bfloat16" else found).contiguous()
    save_file(arrays, target, metadata={"told": json.dumps(told)})


def greedy(directory, source, target):
    given = json.load(open(source))
    model = load(directory, torch.float32)
    prompts = given["prompts"]
    longest = max(map(len, prompts))
    pad = model.generation_config.pad_token_id
    ids = torch.tensor([[pad] * (longest - len(p)) + p for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    out = model.generate(
        ids, attention_mask=mask, max_new_tokens=given["newTokens"], do_sample=False, repetition_penalty=1.0
    )
    ends = model.generation_config.eos_token_id
    found = []
    for row in out[:, longest:].tolist():
        end = next((i + 1 for i, token in enumerate(row) if token in ends), len(row))
        found.append(row[:end])
    save_file({"none": torch.zeros(1)}, target, metadata={"told": json.dumps({"greedy": found})})


def check(directory, saved, dtype):
    dtype = getattr(torch, dtype)
    first, info = load(directory, dtype), None
    second, info = AutoModelForCausalLM.from_pretrained(saved, dtype="auto", output_loading_info=True)
    other = dict(second.named_parameters())
    different = [
        name
        for name, p in first.named_parameters()
        if other[name].dtype != dtype or not torch.equal(p, other[name])
    ]
    print(
        json.dumps(
            {
                "different": different,
                "missing": sorted(info["missing_keys"]),
                "unexpected": sorted(info["unexpected_keys"]),
                "tensors": len(other),
            }
        )
    )


{"logits": logits, "greedy": greedy, "check": check}[sys.argv[1]](*sys.argv[2:])
