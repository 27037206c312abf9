#!/usr/bin/env python3
"""Writes test/golden/: small random models with what transformers and autograd make of them.

    python3 scripts/make-golden.py [qwen2 qwen3 llama lora]        (needs torch, transformers >= 5, safetensors, peft)

A case is a directory with config.json and model.safetensors as save_pretrained writes them (old-spelling.json is the
same configuration in the spelling of transformers 4), golden.json (the batch, the objective, loss and tolerances) and
expected.safetensors: the log-softmax at every row, (N, V), and the gradient of the loss for every parameter.

Expected values come from a float64 copy of the float32 model, with the norms in float64 as well. transformers forms
the rotary tables in float32 whatever the dtype: they are part of the model. Beside each value stands `float32Error`:
how far transformers' own float32 run is from it at most, which is the yardstick of the test's tolerance.

Of qwen3 and llama there is the same for bfloat16: expected-bfloat16.safetensors and golden.json's `bfloat16` are of the
model whose weights are rounded to bfloat16, and the yardstick is transformers' bfloat16 run. The ratio is not clipped
there, since an error of bfloat16's size would move rows over a bound.

Of lora a case is an adapter as PEFT saves it, for the model that golden.json calls `base`; the reference is that model
without the adapter, and the gradients are the adapter's.
"""

import json
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import (
    AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM)
from transformers.models.llama import modeling_llama
from transformers.models.qwen2 import modeling_qwen2
from transformers.models.qwen3 import modeling_qwen3

VOCAB = 23
ROOT = Path(__file__).resolve().parent.parent / "test" / "golden"


def rms_norm(self, x):
    """transformers' RMS norm, in float64 where the model is (the original computes in float32 always)."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
    return self.weight * wide.to(x.dtype)


modeling_qwen2.Qwen2RMSNorm.forward = rms_norm
modeling_qwen3.Qwen3RMSNorm.forward = rms_norm
modeling_llama.LlamaRMSNorm.forward = rms_norm

MODELS = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
}

# By family: a seed, and by name: heads, key/value heads, hidden, tied, rope theta, penalty, temperature, and further
# fields of the configuration.
FAMILIES = {
    "qwen2": (20251003, {
        "gqa42-tied": (4, 2, 32, True, 1e4, "forward", 1.0, {}),
        "gqa61-untied": (6, 1, 36, False, 1e6, "reverse-k3", 1.0, {}),
        "gqa42-untied": (4, 2, 32, False, 1e6, "forward", 0.7, {}),
        "gqa61-tied": (6, 1, 36, True, 1e4, "none", 1.3, {}),
    }),
    "qwen3": (20251101, {
        "qwen3-62-tied": (6, 2, 36, True, 1e6, "forward", 1.0, {"head_dim": 10}),
        "qwen3-41-untied": (4, 1, 28, False, 1e6, "reverse-k3", 0.8, {"head_dim": 14, "intermediate_size": 44}),
    }),
    "llama": (20251102, {
        "llama-42-untied": (4, 2, 32, False, 5e5, "forward", 1.0, {}),
        "llama-61-tied": (6, 1, 36, True, 1e4, "reverse-k3", 1.0, {"head_dim": 8}),
    }),
}


def make_model(family, heads, kv_heads, hidden, tied, theta, generator, more):
    config_of, model_of = MODELS[family]
    config = config_of(**{
        **dict(
            vocab_size=VOCAB, hidden_size=hidden, intermediate_size=40, num_hidden_layers=2, num_attention_heads=heads,
            num_key_value_heads=kv_heads, max_position_embeddings=64,
            rope_parameters={"rope_type": "default", "rope_theta": theta}, tie_word_embeddings=tied, dtype="float32",
            bos_token_id=None, eos_token_id=0), **more})
    model = model_of(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            noise = torch.randn(parameter.shape, generator=generator)
            # Large enough that distributions are far from uniform and biases and norms matter.
            parameter.copy_(1 + 0.2 * noise if name.endswith("norm.weight") else 0.25 * noise)
    return model


def make_batch(generator):
    """Sequences of unequal lengths; every token but the last predicts its successor, some rows are masked."""
    sequences, positions, ids = [], [], []
    for length in (9, 2, 17, 5):
        start = sum(map(len, sequences))
        sequence = torch.randint(0, VOCAB, (length,), generator=generator).tolist()
        sequences.append(sequence)
        first = length // 3
        positions += [start + t for t in range(first, length - 1)]
        ids += sequence[first + 1 :]
    n = len(ids)
    weights = torch.rand(n, generator=generator) / n
    weights[::5] = 0
    return {
        "sequences": sequences,
        "rowPositions": positions,
        "tokenIds": ids,
        "tokenWeights": weights.tolist(),
        "advantages": torch.randn(n, generator=generator).tolist(),
        "refWeights": torch.rand(n, generator=generator).tolist(),
        # Ratios on both sides of both clip boundaries.
        "oldLogprobs": (torch.randn(n, generator=generator) * 0.3).tolist(),
    }


def rows_of(model, batch):
    """(N, V) logits at the rows, each sequence run by itself: no padding is involved."""
    logits = [model(input_ids=torch.tensor([s]), use_cache=False).logits[0] for s in batch["sequences"]]
    return torch.cat(logits)[batch["rowPositions"]]


def loss_of(policy_logits, ref_logits, batch, objective):
    """docs/objective.md, differentiated by autograd."""
    dtype = policy_logits.dtype
    column = lambda name: torch.tensor(batch[name], dtype=torch.float32).to(dtype)
    z, u = policy_logits / objective["temperature"], ref_logits / objective["temperature"]
    logp = z.log_softmax(-1)
    ids = torch.tensor(batch["tokenIds"])[:, None]
    lp = logp.gather(1, ids)[:, 0]
    ratio = torch.exp(lp - column("oldLogprobs"))
    advantage = column("advantages")
    gain = torch.minimum(
        ratio * advantage, ratio.clamp(1 - objective["clipLow"], 1 + objective["clipHigh"]) * advantage)
    if objective["penalty"] == "forward":
        q = (column("refWeights")[:, None] * u.log_softmax(-1)).log_softmax(-1).gather(1, ids)[:, 0]
        d = (q - lp).clamp(max=objective["maxLogRatio"])
        penalty = torch.exp(d) * d - torch.exp(d) + 1
    elif objective["penalty"] == "reverse-k3":
        d = (u.log_softmax(-1).gather(1, ids)[:, 0] - lp).clamp(max=objective["maxLogRatio"])
        penalty = torch.exp(d) - d - 1
    else:
        penalty = torch.zeros_like(lp)
    entropy = -(logp.exp() * logp).sum(-1)
    terms = gain - objective["klCoef"] * penalty + objective["entropyCoef"] * entropy
    return -(column("tokenWeights") * terms).sum()


def sensitivity(policy_logits, ref_logits, batch, objective):
    """How far the loss moves at most, to first order, when every logit of both models moves by one."""
    leaves = [x.detach().clone().requires_grad_() for x in (policy_logits, ref_logits)]
    loss_of(*leaves, batch, objective).backward()
    return sum(x.grad.abs().sum().item() for x in leaves if x.grad is not None)


def run(policy, reference, batch, objective):
    policy.zero_grad()
    logits = rows_of(policy, batch)
    with torch.no_grad():
        ref_logits = rows_of(reference, batch)
    loss = loss_of(logits, ref_logits, batch, objective)
    loss.backward()
    gradients = {
        name.replace(".default.", "."): p.grad.double() for name, p in policy.named_parameters() if p.requires_grad}
    logp = logits.detach().double().log_softmax(-1)
    return loss.item(), logp, gradients, sensitivity(logits, ref_logits, batch, objective)


def copy_of(model, dtype):
    copy = type(model)(model.config).to(dtype).eval()
    copy.load_state_dict({k: v.to(dtype) for k, v in model.state_dict().items()})
    copy.tie_weights()
    return copy


def copies_of(*models):
    """For expect()."""
    return lambda dtype: [copy_of(model, dtype) for model in models]


def expect(models, batch, objective, dtype, file):
    """What golden.json says of a dtype. models(dtype) are policy and reference, whose weights the dtype can hold."""
    narrow = run(*models(dtype), batch, objective)
    loss, logp, gradients, slope = run(*models(torch.float64), batch, objective)
    save_file({"logp": logp.float(), **{k: v.float().contiguous() for k, v in gradients.items()}}, file)
    logp_error = (narrow[1] - logp).abs().max().item()
    off = {k: narrow[2][k] - gradients[k] for k in gradients}
    error = {
        # One run may hit the loss by luck: what its log-probs' error can do to the loss counts.
        "loss": logp_error * slope,
        "logp": logp_error,
        "logpNorm": (narrow[1] - logp).norm().item(),
        "gradients": {k: x.abs().max().item() for k, x in off.items()},
        "gradientNorm": sum(x.square().sum().item() for x in off.values()) ** 0.5,
    }
    return loss, error


def greedy(model, prompt=(3, 1, 4, 1, 5), count=24):
    """A greedy completion, generated with the key/value cache. The best token leads by more than rounding everywhere."""
    with torch.no_grad():
        out = model.generate(
            torch.tensor([prompt]), max_new_tokens=count, do_sample=False, use_cache=True, eos_token_id=None,
            pad_token_id=0, output_logits=True, return_dict_in_generate=True)
    lead = min((top[0] - top[1]).item() for top in (step[0].topk(2).values for step in out.logits))
    assert lead > 1e-4, lead
    return {"prompt": list(prompt), "completion": out.sequences[0, len(prompt):].tolist()}


def main():
    for family in sys.argv[1:] or [*MODELS, "lora"]:
        if family == "lora":
            write_adapters()
        else:
            write_family(family)


ADAPTERS = {
    # name: base, the fields of LoraConfig, penalty
    "lora-all": ("qwen3-62-tied", {"r": 3, "lora_alpha": 5, "target_modules": "all-linear"}, "forward"),
    "lora-some": (
        "gqa42-untied",
        {"r": 2, "lora_alpha": 3, "target_modules": ["q_proj", "v_proj", "up_proj", "down_proj"], "use_rslora": True},
        "reverse-k3"),
}


def write_adapters():
    import peft

    generator = torch.Generator().manual_seed(20251103)
    for name, (base, fields, penalty) in ADAPTERS.items():
        directory = ROOT / name
        shutil.rmtree(directory, ignore_errors=True)
        load = lambda dtype: AutoModelForCausalLM.from_pretrained(ROOT / base, dtype=dtype).eval()
        made = peft.get_peft_model(load(torch.float32), peft.LoraConfig(task_type="CAUSAL_LM", **fields))
        with torch.no_grad():
            for parameter in made.parameters():
                if parameter.requires_grad:
                    parameter.copy_(0.25 * torch.randn(parameter.shape, generator=generator))
        made.peft_config["default"].base_model_name_or_path = base
        made.save_pretrained(directory)
        (directory / "README.md").unlink()

        def models(dtype, stored=torch.float32):
            """stored: the type that all weights are rounded to. Buffers (rotary frequencies) are not."""
            reference = load(torch.float32)
            policy = peft.PeftModel.from_pretrained(
                load(torch.float32), directory, is_trainable=True, autocast_adapter_dtype=False)
            for model in (policy, reference):
                for parameter in model.parameters():
                    parameter.data = parameter.data.to(stored).float()
            return policy.to(dtype).eval(), reference.to(dtype).eval()

        objective = {
            "penalty": penalty, "klCoef": 0.3, "entropyCoef": 0.05, "clipLow": 0.2, "clipHigh": 0.28, "temperature": 0.9,
            "maxLogRatio": 20}
        batch = make_batch(generator)
        if not penalty.startswith("forward"):
            del batch["refWeights"]
        policy, _ = models(torch.float32)
        with torch.no_grad():
            logp = (rows_of(policy, batch) / objective["temperature"]).log_softmax(-1)
            own = logp.gather(1, torch.tensor(batch["tokenIds"])[:, None])[:, 0]
            batch["oldLogprobs"] = (own + torch.tensor(batch["oldLogprobs"])).clamp(max=0).tolist()
        loss, error = expect(models, batch, objective, torch.float32, directory / "expected.safetensors")
        golden = {
            "base": base, "objective": objective, "batch": batch, "loss": loss, "float32Error": error,
            "greedy": greedy(policy)}
        smooth = {**objective, "clipLow": 1, "clipHigh": 1000}
        loss, error = expect(
            lambda dtype: models(dtype, torch.bfloat16), batch, smooth, torch.bfloat16,
            directory / "expected-bfloat16.safetensors")
        golden["bfloat16"] = {"objective": smooth, "loss": loss, "error": error}
        (directory / "golden.json").write_text(json.dumps(golden, indent=1) + "\n")
        print(name, "loss", golden["loss"], "errors", golden["float32Error"]["logp"], error["logp"])


def write_family(family):
    seed, cases = FAMILIES[family]
    generator = torch.Generator().manual_seed(seed)
    models = {name: make_model(family, *case[:5], generator, case[7]) for name, case in cases.items()}
    names = list(cases)
    for index, name in enumerate(names):
        policy, reference_name = models[name], names[(index + 1) % len(names)]
        reference = models[reference_name]
        penalty, temperature = cases[name][5:7]
        objective = {
            "penalty": penalty, "klCoef": 0 if penalty == "none" else 0.3, "entropyCoef": 0.05,
            "clipLow": 0.2, "clipHigh": 0.28, "temperature": temperature, "maxLogRatio": 20}
        batch = make_batch(generator)
        if not objective["penalty"].startswith("forward"):
            del batch["refWeights"]  # only the forward penalties reweight the reference
        with torch.no_grad():  # old log-probs near the policy's own, as float32 numbers, at most 0
            logp = (rows_of(policy, batch) / objective["temperature"]).log_softmax(-1)
            own = logp.gather(1, torch.tensor(batch["tokenIds"])[:, None])[:, 0]
            batch["oldLogprobs"] = (own + torch.tensor(batch["oldLogprobs"])).clamp(max=0).tolist()

        directory = ROOT / name
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        loss, error = expect(copies_of(policy, reference), batch, objective, torch.float32, directory / "expected.safetensors")
        policy.save_pretrained(directory)
        (directory / "generation_config.json").unlink(missing_ok=True)
        config = json.loads((directory / "config.json").read_text())
        old = dict(config)
        old["rope_theta"] = old.pop("rope_parameters")["rope_theta"]
        old["torch_dtype"] = old.pop("dtype")
        old["rope_scaling"] = None
        (directory / "old-spelling.json").write_text(json.dumps(old, indent=2) + "\n")
        golden = {
            "reference": reference_name, "objective": objective, "batch": batch, "loss": loss, "float32Error": error,
            "greedy": greedy(policy)}
        print(name, "loss", loss, "float32 errors", error["loss"], error["logp"])
        if family != "qwen2":
            rounded = [copy_of(copy_of(model, torch.bfloat16), torch.float32) for model in (policy, reference)]
            smooth = {**objective, "clipLow": 1, "clipHigh": 1000}
            loss, error = expect(copies_of(*rounded), batch, smooth, torch.bfloat16, directory / "expected-bfloat16.safetensors")
            golden["bfloat16"] = {"objective": smooth, "loss": loss, "error": error}
            print(name, "loss", loss, "bfloat16 errors", error["loss"], error["logp"])
        (directory / "golden.json").write_text(json.dumps(golden, indent=1) + "\n")


if __name__ == "__main__":
    main()
