#!/usr/bin/env python3
"""Runs the losses of TRL and liger-kernel, in float64 on the CPU, and writes what they compute.

    npm run test:peers        or, in an environment with requirements.txt:  python3 run_peers.py DIRECTORY

TRL: GRPOTrainer._compute_loss itself, on a stand-in for the trainer that has the attributes it reads and the log-probs
and entropies of the logits given. Liger: LigerFusedLinearGRPOLoss itself, its hidden states being the logits and its
projection the identity; it asks for float32 throughout, which is answered with float64.

Each case names the rapo objective and aggregation that should give the same number, or, where the peer is known to
differ, why (`differs`), and where that can be said in rapo's terms, `parts` that add up to the peer's number.
Lengths, weights and counts are powers of two, so that float32 weights are exact.
Strings are arrays: base64 of little-endian float64 numbers (results) or float32 numbers (inputs).
"""

import base64
import contextlib
import importlib.metadata
import json
import math
import sys
import types
from collections import defaultdict
from pathlib import Path

import numpy as np
import torch

VOCAB = 5
LENGTHS = [4, 2, 8, 2]
WIDTH, MAX_LENGTH = 8, 8
ADVANTAGES = [1.25, -0.75, 0.5, -1.5]
# rho of each token: on both sides of the bounds .8 and 1.2, of the cap 1.5 and of cispo's 5. The sequences' own ratios,
# their geometric means 1.10, .64, 1.41 and 1.62, lie inside, below, above, and beyond the cap.
RATIOS = [[0.5, 1.19, 1.21, 2.0], [0.81, 0.5], [0.79, 0.81, 1.0, 6.0, 2.5, 1.3, 0.9, 1.4], [1.45, 1.8]]
SAMPLER_RATIOS = [1.0, 0.5, 1.5, 2.0, 0.75]  # importance weights of the tokens, in turn


def make_inputs(name, seed, reference_shift=0.0, ratio_shift=0.0, advantages=ADVANTAGES):
    """(B, T) arrays padded on the right; the shifts make the first sequence's log-ratios extreme."""
    random = np.random.default_rng(seed)
    grid = lambda: np.round(random.normal(size=(len(LENGTHS), WIDTH, VOCAB)) * 1.5 * 64) / 64
    logits, ref = grid(), grid()
    ids = random.integers(VOCAB, size=(len(LENGTHS), WIDTH))
    mask = np.array([[t < length for t in range(WIDTH)] for length in LENGTHS])
    np.put_along_axis(ref[:1], ids[:1, :, None], np.take_along_axis(ref[:1], ids[:1, :, None], 2) + reference_shift, 2)
    np.put_along_axis(logits[:1], ids[:1, :, None], np.take_along_axis(logits[:1], ids[:1, :, None], 2) - reference_shift, 2)
    lp = log_probs(torch.tensor(logits), torch.tensor(ids)).numpy()
    log_rho = np.array([np.pad(np.log(row), (0, WIDTH - len(row))) for row in RATIOS])
    log_rho[0] += ratio_shift
    return {
        "name": name,
        "logits": logits,
        "refLogits": ref,
        "tokenIds": ids,
        "mask": mask,
        "advantages": np.array(advantages),
        "oldLogprobs": (lp - log_rho).astype(np.float32).astype(float),
        "importanceWeights": np.resize(SAMPLER_RATIOS, mask.shape),
    }


def log_probs(logits, ids):
    return torch.log_softmax(logits, -1).gather(2, ids.unsqueeze(2)).squeeze(2)


# The cases: rapo's objective, and what TRL's and Liger's options are called for it

PLAIN = {"penalty": "none", "klCoef": 0.0, "entropyCoef": 0.0, "clipLow": 0.2, "clipHigh": 0.2, "temperature": 1.0, "maxLogRatio": 20.0}
K3 = {"penalty": "reverse-k3", "klCoef": 0.25}
SCORE = {"penalty": "reverse-score", "klCoef": 0.25}
GSPO = {"surrogate": "gspo"}
SAPO = {"surrogate": "sapo", "clipLow": 1.0, "clipHigh": math.inf, "sapoTauPositive": 1.0, "sapoTauNegative": 1.0625}
CISPO = {"surrogate": "cispo", "clipLow": 1.0, "clipHigh": 4.0}

CASES = [
    # name, objective, aggregation, the peers' options
    ("grpo, k3", K3, "sequence-mean", {"loss_type": "grpo"}),
    ("grpo, reverse-score", SCORE, "sequence-mean", {"loss_type": "grpo", "use_bias_correction_kl": True}),
    ("dapo", {"clipHigh": 0.28}, "token-mean", {"loss_type": "dapo"}),
    ("dapo, reverse-score", {**SCORE, "clipHigh": 0.28}, "token-mean", {"loss_type": "dapo", "use_bias_correction_kl": True}),
    ("bnpo, k3", K3, "token-mean", {"loss_type": "bnpo"}),
    ("dr-grpo", {}, "constant", {"loss_type": "dr_grpo"}),
    ("dr-grpo, k3", K3, "constant", {"loss_type": "dr_grpo"}),
    ("cispo", CISPO, "token-mean", {"loss_type": "cispo"}),
    ("cispo, k3", {**CISPO, **K3}, "token-mean", {"loss_type": "cispo"}),
    ("sapo", SAPO, "sequence-mean", {"loss_type": "sapo"}),
    ("sapo, reverse-score", {**SAPO, **SCORE}, "sequence-mean", {"loss_type": "sapo", "use_bias_correction_kl": True}),
    ("gspo", GSPO, "sequence-mean", {"loss_type": "grpo", "importance_sampling_level": "sequence"}),
    ("gspo, k3", {**GSPO, **K3}, "sequence-mean", {"loss_type": "grpo", "importance_sampling_level": "sequence"}),
    ("gspo, two-sided", {**GSPO, "ratioCap": 1.5}, "sequence-mean", {"loss_type": "grpo", "importance_sampling_level": "sequence"}),
    ("gspo, token-mean", GSPO, "token-mean", {"loss_type": "dapo", "importance_sampling_level": "sequence"}),
    ("two-sided", {"ratioCap": 1.5}, "sequence-mean", {"loss_type": "grpo"}),
    ("two-sided, reverse-score", {**SCORE, "ratioCap": 1.5}, "token-mean", {"loss_type": "dapo", "use_bias_correction_kl": True}),
    ("importance weights, k3", K3, "token-mean", {"loss_type": "dapo", "policy_weights": "importance"}),
]

SEQUENCE_SCORE = {"loss_type": "grpo", "importance_sampling_level": "sequence", "use_bias_correction_kl": True}
DIFFERENT = [
    # name, objective, aggregation, options, inputs, why
    ("gspo, reverse-score", {**GSPO, **SCORE}, "sequence-mean", SEQUENCE_SCORE, "usual",
     "weighs the penalty with the sequence's ratio"),
    ("grpo, k3, reference/policy > e^20", K3, "sequence-mean", {"loss_type": "grpo"}, "far reference",
     "no clamp of the penalty's log-ratio"),
    ("grpo, ratio > e^20", {}, "sequence-mean", {"loss_type": "grpo"}, "far policy", "no clamp of the ratio"),
]
TRL_ONLY = [
    ("dapo, entropy bonus", {"clipHigh": 0.28, "entropyCoef": 0.125}, "token-mean", {"loss_type": "dapo"}),
    ("grpo, top half by entropy", {}, "sequence-mean", {"loss_type": "grpo", "policy_weights": "entropy"}),
    ("grpo, off-policy sequences masked, k3", K3, "sequence-mean", {"loss_type": "grpo", "policy_weights": "off-policy"}),
]
TRL_DIFFERENT = [
    ("grpo, entropy bonus", {"entropyCoef": 0.125}, "sequence-mean", {"loss_type": "grpo"}, "usual",
     "averages the entropy over tokens, whatever the loss type"),
    ("dapo, entropy bonus, top half by entropy", {"clipHigh": 0.28, "entropyCoef": 0.125}, "token-mean",
     {"loss_type": "dapo", "policy_weights": "entropy"}, "usual", "averages the entropy over the selected tokens alone"),
]


def parts_of(name, objective, aggregation, mask, policy_weights):
    """The two entropy bonuses that TRL averages in its own way: the loss without one, and the entropy alone."""
    if name not in (case[0] for case in TRL_DIFFERENT):
        return None
    selected = mask if policy_weights is None else mask * policy_weights
    without = {"objective": {**objective, "entropyCoef": 0.0}, "aggregation": aggregation}
    if policy_weights is not None:
        without["policyWeights"] = f32(policy_weights)
    entropy = {**PLAIN, "entropyCoef": objective["entropyCoef"]}
    return [
        without,
        {"objective": entropy, "aggregation": "token-mean", "policyWeights": f32(np.zeros(mask.shape)), "mask": selected.astype(int).ravel().tolist()},
    ]


LIGER_ONLY = [("grpo, k3, temperature .7", {**K3, "temperature": 0.7}, "sequence-mean", {"loss_type": "grpo"})]


def bounds(objective):
    """epsilon, epsilon_high and delta of both peers. For cispo their epsilon_high is the bound itself."""
    high = objective["clipHigh"]
    if objective.get("surrogate") == "cispo":
        high = 1 + high
    # There is no "no bound" there.
    return objective["clipLow"], 1e30 if math.isinf(high) else high, objective.get("ratioCap")


# TRL

class TrlPeer:
    name = "trl"

    def __init__(self):
        from trl.trainer.grpo_trainer import GRPOTrainer

        self.trainer = GRPOTrainer
        self.version = importlib.metadata.version("trl")

    def run(self, inputs, objective, options):
        stand_in = self.stand_in(objective, options)
        logits = torch.tensor(inputs["logits"], requires_grad=True)
        ids = torch.tensor(inputs["tokenIds"])
        mask = torch.tensor(inputs["mask"], dtype=torch.float64)
        ell = torch.log_softmax(logits / objective["temperature"], -1)
        entropy = -(ell.exp() * ell).sum(-1)
        stand_in._get_per_token_logps_and_entropies = lambda *_, **__: (ell.gather(2, ids.unsqueeze(2)).squeeze(2), entropy, None)
        batch = {
            "prompt_ids": ids[:, :1], "prompt_mask": mask[:, :1], "completion_ids": ids, "completion_mask": mask,
            "advantages": torch.tensor(inputs["advantages"]),
            "old_per_token_logps": torch.tensor(inputs["oldLogprobs"]),
            "ref_per_token_logps": log_probs(torch.tensor(inputs["refLogits"]) / objective["temperature"], ids),
            "importance_sampling_ratio": torch.tensor(inputs["importanceWeights"]),
            "num_items_in_batch": mask.sum(),
        }
        policy_weights = self.policy_weights(stand_in, batch, ell, entropy, options)
        loss = self.trainer._compute_loss(stand_in, None, batch)
        loss.backward()
        return loss.item(), logits.grad.numpy(), policy_weights

    def extra(self):
        """Advantages by the lines of grpo_trainer.py (1.16.0: 2764 to 2787) for scale_rewards "group"."""
        from trl.trainer.utils import nanstd

        size = 5  # nanstd takes n / (n - 1) in float32, in which 5 / 4 is exact
        rewards = torch.tensor([1.0, 0.0, 0.0, 1.0, 0.0, 0.25, 0.0, 0.5, 1.0, 0.5, 1.0, 1.0, 1.0, 1.0, 1.0], dtype=torch.float64)
        mean = torch.nanmean(rewards.view(-1, size), dim=1).repeat_interleave(size)
        std = nanstd(rewards.view(-1, size), dim=1).repeat_interleave(size)
        advantages = (rewards - mean) / (std + 1e-4)
        return {"advantages": {"groupSize": size, "rewards": rewards.tolist(), "advantages": advantages.tolist()}}

    def stand_in(self, objective, options):
        low, high, delta = bounds(objective)
        weights = options.get("policy_weights")
        same = lambda x, *_, **__: x
        stand_in = types.SimpleNamespace(
            aux_loss_enabled=False, use_adaptive_entropy=False, use_vllm=weights == "importance",
            vllm_importance_sampling_correction=True, current_gradient_accumulation_steps=1,
            top_entropy_quantile=0.5 if weights == "entropy" else 1.0,
            off_policy_mask_threshold=0.25 if weights == "off-policy" else None,
            importance_sampling_level=options.get("importance_sampling_level", "token"),
            beta=objective["klCoef"], loss_type=options["loss_type"], epsilon_low=low, epsilon_high=high,
            max_completion_length=MAX_LENGTH,
            entropy_coef=objective["entropyCoef"], _entropy_bonus_enabled=objective["entropyCoef"] != 0,
            _metrics={"train": defaultdict(list)}, model=types.SimpleNamespace(training=True),
            accelerator=types.SimpleNamespace(
                num_processes=1, sync_gradients=True, gather=same, reduce=same, pad_across_processes=same),
            args=types.SimpleNamespace(
                delta=delta, use_bias_correction_kl=options.get("use_bias_correction_kl", False), steps_per_generation=1,
                # torch.where makes float32 of two Python numbers, so these had better be exact in it.
                sapo_temperature_pos=objective.get("sapoTauPositive"), sapo_temperature_neg=objective.get("sapoTauNegative")),
            get_off_policy_mask=self.trainer.get_off_policy_mask,
        )
        stand_in.get_high_entropy_mask = self.trainer.get_high_entropy_mask.__get__(stand_in)
        return stand_in

    def policy_weights(self, stand_in, batch, ell, entropy, options):
        """What TRL multiplies the policy term of each token with."""
        mask = batch["completion_mask"]
        match options.get("policy_weights"):
            case "importance":
                return batch["importance_sampling_ratio"].numpy()
            case "entropy":
                return stand_in.get_high_entropy_mask(entropy.detach(), mask, 0.5).double().numpy()
            case "off-policy":
                lp = ell.detach().gather(2, batch["completion_ids"].unsqueeze(2)).squeeze(2)
                old = batch["old_per_token_logps"]
                kept = self.trainer.get_off_policy_mask(batch["advantages"].unsqueeze(1), lp, old, mask, 0.25)
                return kept.expand_as(mask).numpy()


# Liger

class LigerPeer:
    name = "liger"

    def __init__(self):
        from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss, fused_linear_ppo

        self.loss, self.module = LigerFusedLinearGRPOLoss, fused_linear_ppo
        self.version = importlib.metadata.version("liger-kernel")

    def run(self, inputs, objective, options):
        low, high, delta = bounds(objective)
        loss_function = self.loss(
            beta=objective["klCoef"], compiled=False, use_ref_model=objective["klCoef"] != 0,
            epsilon_low=low, epsilon_high=high, loss_type=options["loss_type"], max_completion_length=MAX_LENGTH,
            importance_sampling_level=options.get("importance_sampling_level", "token"),
            sapo_temperature_pos=objective.get("sapoTauPositive", 1.0), sapo_temperature_neg=objective.get("sapoTauNegative", 1.0),
            temperature=objective["temperature"], delta=delta, use_bias_correction_kl=options.get("use_bias_correction_kl", False))
        logits = torch.tensor(inputs["logits"], requires_grad=True)
        identity = torch.eye(VOCAB, dtype=torch.float64)
        weights = inputs["importanceWeights"] if options.get("policy_weights") == "importance" else None
        with self.widened():
            loss, _ = loss_function(
                logits, identity, torch.tensor(inputs["tokenIds"]), torch.tensor(inputs["mask"], dtype=torch.float64),
                torch.tensor(inputs["advantages"]), old_per_token_logps=torch.tensor(inputs["oldLogprobs"]),
                ref_input=torch.tensor(inputs["refLogits"]), ref_weight=identity,
                vllm_is_ratio=None if weights is None else torch.tensor(weights))
        loss.backward()
        return loss.item(), logits.grad.numpy(), weights

    def extra(self):
        return {}

    @contextlib.contextmanager
    def widened(self):
        """Where Liger asks for float32 it gets float64."""
        wide_torch = types.ModuleType("torch")
        wide_torch.__dict__.update(torch.__dict__)
        wide_torch.float32 = torch.float64
        to_float = torch.Tensor.float
        self.module.torch, torch.Tensor.float = wide_torch, torch.Tensor.double
        try:
            yield
        finally:
            self.module.torch, torch.Tensor.float = torch, to_float


# GSPO-token

class GspoTokenPeer:
    """
    The form of GSPO that the paper calls GSPO-token and verl trains with: each token has the sequence's ratio, and its
    gradient through its own log-prob. Written out here; verl does not install beside the others.
    """

    name = "gspo-token"
    version = "of arXiv 2507.18071"

    def run(self, inputs, objective, options):
        low, high, delta = bounds(objective)
        logits = torch.tensor(inputs["logits"], requires_grad=True)
        mask = torch.tensor(inputs["mask"], dtype=torch.float64)
        advantages = torch.tensor(inputs["advantages"]).unsqueeze(1)
        lp = log_probs(logits, torch.tensor(inputs["tokenIds"]))
        log_rho = (lp - torch.tensor(inputs["oldLogprobs"])).detach()
        log_s = (log_rho * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
        ratio = torch.exp(log_s + lp - lp.detach())
        g = torch.minimum(ratio * advantages, ratio.clamp(1 - low, 1 + high) * advantages)
        if options["loss_type"] == "grpo":
            loss = -((g * mask).sum(1) / mask.sum(1)).mean()
        else:
            loss = -(g * mask).sum() / mask.sum()
        loss.backward()
        return loss.item(), logits.grad.numpy(), None

    def extra(self):
        return {}


# Files

def f64(values):
    return base64.b64encode(np.ascontiguousarray(values, "<f8").tobytes()).decode()


def f32(values):
    narrow = np.ascontiguousarray(values, "<f4")
    assert np.array_equal(narrow.astype(float), values), "not exact in float32"
    return base64.b64encode(narrow.tobytes()).decode()


def write_json(path, head, entries):
    """A line an entry. Infinity, which JSON lacks, is a string."""
    one_line = lambda value: json.dumps(value).replace(": Infinity", ': "Infinity"')
    lines = ",\n".join(f"  {one_line(entry)}" for entry in entries)
    fields = "".join(f" {json.dumps(key)}: {json.dumps(value)},\n" for key, value in head.items())
    path.write_text(f'{{\n{fields} "entries": [\n{lines}\n ]\n}}\n')


def main():
    directory = Path(sys.argv[1])
    directory.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    inputs = {
        entry["name"]: entry
        for entry in [
            make_inputs("usual", 1),
            make_inputs("far reference", 2, reference_shift=20.0),
            make_inputs("far policy", 3, ratio_shift=22.0, advantages=[-1.25, 0.75, -0.5, 1.5]),
        ]
    }
    write_json(directory / "inputs.json", {"vocabSize": VOCAB, "width": WIDTH, "maxLength": MAX_LENGTH}, [
        {
            "name": entry["name"], "mask": entry["mask"].astype(int).ravel().tolist(), "tokenIds": entry["tokenIds"].ravel().tolist(),
            "advantages": entry["advantages"].tolist(),
            **{field: f32(entry[field]) for field in ("logits", "refLogits", "oldLogprobs")},
        }
        for entry in inputs.values()
    ])
    usual = lambda cases: [(*case, "usual", None) for case in cases]
    for peer, cases in [
        (TrlPeer(), usual(CASES + TRL_ONLY) + DIFFERENT + TRL_DIFFERENT),
        (LigerPeer(), usual(CASES + LIGER_ONLY) + DIFFERENT),
        (GspoTokenPeer(), usual(case for case in CASES if case[0] in ("gspo", "gspo, token-mean"))),
    ]:
        entries = []
        for name, changes, aggregation, options, inputs_name, why in cases:
            objective = {**PLAIN, **changes}
            chosen = inputs[inputs_name]
            loss, grad, policy_weights = peer.run(chosen, objective, options)
            parts = parts_of(name, objective, aggregation, chosen["mask"], policy_weights)
            entries.append({
                "name": name, "objective": objective, "aggregation": aggregation, "inputs": inputs_name, "options": options,
                **({"differs": why} if why else {}),
                **({"parts": parts} if parts else {}),
                **({"policyWeights": f32(policy_weights)} if policy_weights is not None else {}),
                "loss": loss, "gradLogits": f64(grad),
            })
        write_json(directory / f"{peer.name}.json", {"peer": peer.name, "version": peer.version, **peer.extra()}, entries)


if __name__ == "__main__":
    main()
