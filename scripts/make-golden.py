#!/usr/bin/env python3
"""Writes test/golden/: small random Qwen2 models with what transformers and autograd make of them.

    python3 scripts/make-golden.py        (needs torch, transformers >= 5, safetensors)

A case is a directory with config.json and model.safetensors as save_pretrained writes them (old-spelling.json is the
same configuration in the spelling of transformers 4), golden.json (the batch, the objective, loss and tolerances) and
expected.safetensors: the log-softmax at every row, (N, V), and the gradient of the loss for every parameter.

Expected values come from a float64 copy of the float32 model, with the norms in float64 as well. transformers forms
the rotary tables in float32 whatever the dtype: they are part of the model. Beside each value stands `float32Error`:
how far transformers' own float32 run is from it at most, which is the yardstick of the test's tolerance.
"""

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.models.qwen2 import modeling_qwen2

VOCAB = 23
ROOT = Path(__file__).resolve().parent.parent / "test" / "golden"


def rms_norm(self, x):
    """Qwen2RMSNorm, in float64 where the model is (the original computes in float32 always)."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.variance_epsilon)
    return self.weight * wide.to(x.dtype)


modeling_qwen2.Qwen2RMSNorm.forward = rms_norm

CASES = {
    # name: heads, key/value heads, hidden, tied, rope theta, penalty, temperature
    "gqa42-tied": (4, 2, 32, True, 1e4, "forward", 1.0),
    "gqa61-untied": (6, 1, 36, False, 1e6, "reverse-k3", 1.0),
    "gqa42-untied": (4, 2, 32, False, 1e6, "forward", 0.7),
    "gqa61-tied": (6, 1, 36, True, 1e4, "none", 1.3),
}


def make_model(heads, kv_heads, hidden, tied, theta, generator):
    config = Qwen2Config(
        vocab_size=VOCAB, hidden_size=hidden, intermediate_size=40, num_hidden_layers=2, num_attention_heads=heads,
        num_key_value_heads=kv_heads, max_position_embeddings=64, rope_parameters={"rope_type": "default", "rope_theta": theta},
        tie_word_embeddings=tied, dtype="float32", bos_token_id=None, eos_token_id=0)
    model = Qwen2ForCausalLM(config).eval()
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
    gradients = {name: p.grad.double() for name, p in policy.named_parameters()}
    logp = logits.detach().double().log_softmax(-1)
    return loss.item(), logp, gradients, sensitivity(logits, ref_logits, batch, objective)


def main():
    generator = torch.Generator().manual_seed(20251003)
    models = {name: make_model(*case[:5], generator) for name, case in CASES.items()}
    names = list(CASES)
    shutil.rmtree(ROOT, ignore_errors=True)
    for index, name in enumerate(names):
        policy, reference_name = models[name], names[(index + 1) % len(names)]
        reference = models[reference_name]
        objective = {
            "penalty": CASES[name][5], "klCoef": 0 if CASES[name][5] == "none" else 0.3, "entropyCoef": 0.05,
            "clipLow": 0.2, "clipHigh": 0.28, "temperature": CASES[name][6], "maxLogRatio": 20}
        batch = make_batch(generator)
        if not objective["penalty"].startswith("forward"):
            del batch["refWeights"]  # only the forward penalties reweight the reference
        with torch.no_grad():  # old log-probs near the policy's own, as float32 numbers, at most 0
            logp = (rows_of(policy, batch) / objective["temperature"]).log_softmax(-1)
            own = logp.gather(1, torch.tensor(batch["tokenIds"])[:, None])[:, 0]
            batch["oldLogprobs"] = (own + torch.tensor(batch["oldLogprobs"])).clamp(max=0).tolist()

        narrow = run(policy, reference, batch, objective)
        double = {}
        for key, model in (("policy", policy), ("reference", reference)):
            copy = Qwen2ForCausalLM(model.config).to(torch.float64).eval()
            copy.load_state_dict({k: v.double() for k, v in model.state_dict().items()})
            copy.tie_weights()
            double[key] = copy
        loss, logp, gradients, slope = run(double["policy"], double["reference"], batch, objective)

        directory = ROOT / name
        directory.mkdir(parents=True)
        policy.save_pretrained(directory)
        (directory / "generation_config.json").unlink(missing_ok=True)
        config = json.loads((directory / "config.json").read_text())
        old = dict(config)
        old["rope_theta"] = old.pop("rope_parameters")["rope_theta"]
        old["torch_dtype"] = old.pop("dtype")
        old["rope_scaling"] = None
        (directory / "old-spelling.json").write_text(json.dumps(old, indent=2) + "\n")
        save_file(
            {"logp": logp.float(), **{k: v.float().contiguous() for k, v in gradients.items()}},
            directory / "expected.safetensors")
        logp_error = (narrow[1] - logp).abs().max().item()
        golden = {
            "reference": reference_name,
            "objective": objective,
            "batch": batch,
            "loss": loss,
            "float32Error": {
                # One float32 run may hit the loss by luck: what its log-probs' error can do to the loss counts.
                "loss": logp_error * slope,
                "logp": logp_error,
                "gradients": {k: (narrow[2][k] - gradients[k]).abs().max().item() for k in gradients},
            },
        }
        (directory / "golden.json").write_text(json.dumps(golden, indent=1) + "\n")
        print(name, "loss", loss, "float32 errors", golden["float32Error"]["loss"], golden["float32Error"]["logp"])


if __name__ == "__main__":
    main()
