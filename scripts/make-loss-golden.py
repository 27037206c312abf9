#!/usr/bin/env python3
"""Writes test/golden/loss/: batches, and what the objective of docs/objective.md makes of them.

    python3 scripts/make-loss-golden.py        (needs torch and numpy)

An implementation of its own: each formula as the documentation states it, and every gradient from autograd through
that formula, so that the slopes which the kernels have by hand are checked too. What autograd must not see is detached
where the documentation says so: the ratio of `cispo`, and a penalty whose log-ratio was clamped.

The same code then runs with every tensor in float32, bfloat16 and float16. `naive` holds how far that is from float64:
what a plain implementation in that type loses, which is the yardstick of the kernels' tolerances. It is the largest
absolute difference in the case (of the loss: the sum of its rows' differences), at the worst of nine temperatures around
the case's, scaled to the case; null where the type overflowed.

A file has a batch and its cases. Strings are arrays: base64 of little-endian float32 numbers (inputs) or float64 numbers
(results). Logits are multiples of 1/16 below 8, which all three types hold exactly.
"""

import base64
import json
import math
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parent.parent / "test" / "golden" / "loss"
INF = math.inf
PENALTIES = [
    "none", "forward", "forward-full", "forward-score",
    "reverse-score", "reverse-k1", "reverse-k2", "reverse-k3", "reverse-full",
]
AGGREGATIONS = ["sequence-mean", "token-mean", "constant"]
TEMPERATURES = [0.7, 1.0, 1.6]
MAX_LENGTH = 5  # the longest allowed completion, for `constant`
NAIVE = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


# The objective

def objective_terms(batch, objective, dtype):
    """lp, q[a], D, H and ratio of each row, the loss and its gradient with respect to the logits: all in `dtype`."""
    kept = batch["tokenWeights"] != 0
    tensor = lambda name: torch.tensor(batch[name][kept], dtype=dtype)
    tau, limit = objective["temperature"], objective["maxLogRatio"]
    ids = torch.tensor(batch["tokenIds"][kept], dtype=torch.int64).unsqueeze(1)
    logits = tensor("logits").requires_grad_()

    ell = torch.log_softmax(logits / tau, -1)
    lp = ell.gather(1, ids).squeeze(1)
    entropy = -expectation(ell, ell)

    penalty = objective["penalty"]
    q = None
    if penalty != "none":
        phi = tensor("refWeights").unsqueeze(1) if penalty.startswith("forward") else torch.ones(len(ids), 1, dtype=dtype)
        # 0 * -inf: a uniform reference covers masked words, too.
        u = torch.where(phi == 0, torch.zeros((), dtype=dtype), phi * (tensor("refLogits") / tau))
        q = torch.log_softmax(u, -1)
    q_a = q.gather(1, ids).squeeze(1) if q is not None else torch.zeros_like(lp)

    log_rho = lp - tensor("oldLogprobs")
    rho = torch.exp(log_rho.clamp(max=limit))
    ratio = rho
    if objective["surrogate"] == "gspo":
        sequences = torch.tensor(sequence_of_rows(batch)[kept])
        ratio = torch.exp(sequence_means(log_rho, sequences).clamp(max=limit))
    g = policy_term(objective, ratio, tensor("advantages"), lp)
    if "policyWeights" in batch:
        g = tensor("policyWeights") * g
    kl = penalty_term(penalty, lp, q_a, ell, q, rho, limit)

    n = tensor("tokenWeights")
    losses = -n * (g - objective["klCoef"] * kl + objective["entropyCoef"] * entropy)
    loss = losses.sum()
    loss.backward()

    rows = {"logprobs": lp, "refLogprobs": q_a, "kl": kl, "entropy": entropy, "ratio": ratio, "losses": losses}
    out = {name: np.zeros(len(kept)) for name in rows}
    for name, values in rows.items():
        out[name][kept] = values.detach().double().numpy()
    out["loss"] = loss.item()
    out["gradLogits"] = np.zeros(batch["logits"].shape)
    out["gradLogits"][kept] = logits.grad.double().numpy()
    return out


def sequence_means(values, sequences):
    """For each row, the mean over the rows of its sequence."""
    belongs = (sequences.unsqueeze(0) == sequences.unsqueeze(1)).to(values.dtype)
    return (belongs @ values) / belongs.sum(1)


def expectation(log_p, values):
    """sum_v p_v values_v, where p_v > 0."""
    p = torch.exp(log_p)
    return torch.where(p > 0, p * torch.where(p > 0, values, torch.zeros_like(values)), torch.zeros_like(p)).sum(-1)


def policy_term(objective, ratio, advantage, lp):
    clipped = ratio.clamp(1 - objective["clipLow"], 1 + objective["clipHigh"])
    match objective["surrogate"]:
        case "clip" | "gspo":
            capped = ratio.clamp(max=objective.get("ratioCap", INF))
            return torch.minimum(capped * advantage, clipped * advantage)
        case "cispo":
            return clipped.detach() * advantage * lp
        case "sapo":
            tau = torch.where(
                advantage > 0, *(torch.tensor(objective[name], dtype=ratio.dtype) for name in ("sapoTauPositive", "sapoTauNegative"))
            )
            return 4 / tau * torch.sigmoid(tau * (ratio - 1)) * advantage


def penalty_term(penalty, lp, q_a, ell, q, rho, limit):
    if penalty == "none":
        return torch.zeros_like(lp)
    if penalty == "forward-full":
        return expectation(q, q - ell)
    if penalty == "reverse-full":
        return expectation(ell, ell - q)
    d = q_a - lp
    if penalty == "reverse-k1":
        return -d
    if penalty == "reverse-k2":
        return d * d / 2
    over = d > limit
    d = d.clamp(max=limit)
    if penalty.startswith("forward"):
        # The limit where the reference gives the token no mass: w d -> 0, w -> 0.
        gone = torch.isneginf(d)
        d = torch.where(gone, torch.zeros_like(d), d)
        w = torch.exp(d)
        estimate = torch.where(gone, torch.ones_like(d), w * d - w + 1)
    else:
        estimate = torch.exp(d) - d - 1
    value = rho * estimate if penalty.endswith("score") else estimate
    return torch.where(over, value.detach(), value)


# The batches

def sequence_of_rows(batch):
    offsets = batch["sequenceOffsets"]
    return np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))


def token_weights(offsets, masked, aggregation):
    lengths = [sum(not masked[i] for i in range(start, end)) for start, end in zip(offsets, offsets[1:])]
    weights = np.zeros(len(masked), np.float32)
    for b, (start, end) in enumerate(zip(offsets, offsets[1:])):
        for i in range(start, end):
            if masked[i]:
                continue
            weights[i] = {
                "sequence-mean": 1 / (len(lengths) * lengths[b]),
                "token-mean": 1 / sum(lengths),
                "constant": 1 / (len(lengths) * MAX_LENGTH),
            }[aggregation]
    return weights


def log_probs_of(batch, objective):
    return log_probs(batch["logits"], batch["tokenIds"], objective["temperature"])


def log_probs(logits, ids, tau):
    return torch.log_softmax(torch.tensor(logits) / tau, -1).gather(1, torch.tensor(ids, dtype=torch.int64).unsqueeze(1))[:, 0].numpy()


# The ratio of each row, by the sign of its sequence's advantage: on both sides of the clip bounds .8 and 1.2 and of
# the cap 1.5, and beyond the clamp e^2. For gspo these are the ratios of sequences.
TOKEN_RATIOS = {
    1: [0.5, 0.79, 0.81, 1.0, 1.19, 1.21, 2.0, 9.0],
    -1: [0.5, 0.79, 0.81, 1.0, 1.19, 1.21, 1.45, 1.55, 9.0],
    0: [0.6, 1.4],
}
LENGTHS = [5, 3, 5, 4, 2, 3]  # of the sequences, masked rows not counted
ADVANTAGES = [1.25, 0.75, -1.5, -0.625, -0.5, 0.0]
MASKED_ROWS = [2, 9, 15, 23]  # inside sequences and at their ends
GSPO_LENGTHS = [3, 2, 3, 2, 2, 3, 1, 4, 2]
GSPO_ADVANTAGES = [1.25, 0.75, 0.5, -1.5, -0.625, -0.5, -1.0, 2.0, 0.0]
GSPO_RATIOS = [0.7, 1.19, 1.21, 0.79, 0.81, 1.19, 1.55, 9.0, 1.4]


def make_inputs(surrogate, seed):
    """What the cases of one file share."""
    random = np.random.default_rng(seed)
    per_sequence = surrogate == "gspo"
    lengths, advantages = (GSPO_LENGTHS, GSPO_ADVANTAGES) if per_sequence else (LENGTHS, ADVANTAGES)
    vocab = 6
    masked, sequence = [], []
    offsets = [0]
    for b, length in enumerate(lengths):
        left = length
        while left:
            masked.append(len(masked) in MASKED_ROWS)
            sequence.append(b)
            left -= not masked[-1]
        if len(masked) in MASKED_ROWS:
            masked.append(True)
            sequence.append(b)
        offsets.append(len(masked))
    rows = len(masked)
    grid = lambda: np.clip(np.round(random.normal(size=(rows, vocab)) * 2.5 * 16) / 16, -7.9375, 7.9375)
    ids = random.integers(vocab, size=rows)
    inputs = {
        "vocabSize": vocab,
        "sequenceOffsets": np.array(offsets),
        "masked": np.array(masked),
        "logits": grid(),
        "refLogits": grid(),
        "tokenIds": ids,
        "advantages": np.array([advantages[b] for b in sequence]),
        "refWeights": np.array([[0.5, 0.0, 1.0, 0.25][i % 4] for i in range(rows)]),
        "policyWeights": np.array([[1.0, 0.5, 0.0, 2.0, 1.5][(b if per_sequence else i) % 5] for i, b in enumerate(sequence)]),
    }
    # Words that both models rule out, in rows whose phi is not 0 (there the exact forward KL is infinite).
    for row in (4, 8, 14):
        gone = [v for v in range(vocab) if v != ids[row]][row % 3 :: 2]
        inputs["logits"][row, gone] = inputs["refLogits"][row, gone] = -INF
    inputs["oldLogprobs"] = {tau: old_logprobs(inputs, tau, per_sequence, random) for tau in TEMPERATURES}
    return inputs


def old_logprobs(inputs, tau, per_sequence, random):
    lp = log_probs(inputs["logits"], inputs["tokenIds"], tau)
    log_rho = np.zeros(len(lp))
    sequences = sequence_of_rows(inputs)
    if per_sequence:
        for b, ratio in enumerate(GSPO_RATIOS):
            mine = (sequences == b) & ~inputs["masked"]
            noise = random.normal(size=mine.sum()) * 0.4
            log_rho[mine] = math.log(ratio) + noise - noise.mean()
    else:
        used = {1: 0, -1: 0, 0: 0}
        for i in np.flatnonzero(~inputs["masked"]):
            sign = int(np.sign(inputs["advantages"][i]))
            ratios = TOKEN_RATIOS[sign]
            log_rho[i] = math.log(ratios[used[sign] % len(ratios)])
            used[sign] += 1
    return (lp - log_rho).astype(np.float32).astype(float)


def batch_for(inputs, objective, aggregation, weighted):
    batch = {name: inputs[name] for name in ("vocabSize", "sequenceOffsets", "logits", "refLogits", "tokenIds", "advantages", "refWeights")}
    batch["oldLogprobs"] = inputs["oldLogprobs"][objective["temperature"]]
    batch["tokenWeights"] = token_weights(inputs["sequenceOffsets"], inputs["masked"], aggregation).astype(float)
    if weighted:
        batch["policyWeights"] = inputs["policyWeights"]
    return batch


PLAIN = {"klCoef": 0.375, "entropyCoef": 0.125, "clipLow": 0.2, "clipHigh": 0.2, "temperature": 1.0, "maxLogRatio": 20.0}
SURROGATES = {
    "clip": {"surrogate": "clip"},
    "two-sided": {"surrogate": "clip", "ratioCap": 1.5},
    "cispo": {"surrogate": "cispo"},
    "sapo": {"surrogate": "sapo", "clipLow": 1.0, "clipHigh": INF, "sapoTauPositive": 1.0, "sapoTauNegative": 1.05},
    "gspo": {"surrogate": "gspo"},
}


def make_objective(surrogate, penalty, **changes):
    objective = {**PLAIN, "penalty": penalty, **SURROGATES[surrogate], **changes}
    return {**objective, "klCoef": 0.0} if penalty == "none" else objective


PER_TOKEN = ("logprobs", "refLogprobs", "kl", "entropy", "ratio")


def make_case(inputs, objective, weighted, turn=0):
    """All aggregations. They only scale rows, except where a sequence shares its ratio: else one has the gradient."""
    case = {"objective": objective, "policyWeights": weighted}
    aggregations = {}
    for index, aggregation in enumerate(AGGREGATIONS):
        batch = batch_for(inputs, objective, aggregation, weighted)
        exact = objective_terms(batch, objective, torch.float64)
        if aggregation == AGGREGATIONS[0]:
            case["perToken"] = {name: f64(exact[name]) for name in PER_TOKEN}
            case["naive"] = naive_errors(batch, objective, exact, PER_TOKEN)
        fields = ("loss", "gradLogits") if objective["surrogate"] == "gspo" or index == turn % 3 else ("loss",)
        aggregations[aggregation] = {
            "loss": exact["loss"],
            **{name: f64(exact[name]) for name in fields[1:]},
            "naive": naive_errors(batch, objective, exact, fields),
        }
    return {**case, "aggregations": aggregations}


def naive_errors(batch, objective, exact, fields):
    """Whether roundings add up or cancel hangs on the temperature's bits: the worst of nine nearby ones counts."""
    errors = {name: dict.fromkeys(fields, 0.0) for name in NAIVE}
    for step in range(-4, 5):
        near = {**objective, "temperature": objective["temperature"] * (1 + step / 128)}
        moved = log_probs_of(batch, near) - log_probs_of(batch, objective)
        old = (batch["oldLogprobs"] + np.where(batch["tokenWeights"] != 0, moved, 0)).astype(np.float32).astype(float)
        near_batch = {**batch, "oldLogprobs": old}
        near_exact = objective_terms(near_batch, near, torch.float64)
        for name, dtype in NAIVE.items():
            got = objective_terms(near_batch, near, dtype)
            for field in fields:
                errors[name][field] = max(errors[name][field], relative_error(field, got, near_exact) * scale(field, exact))
    # Rounded upwards, to stay a bound.
    readable = lambda error: float(f"{error * 1.0005:.3e}") if math.isfinite(error) else None
    return {name: {field: readable(error) for field, error in by_field.items()} for name, by_field in errors.items()}


def relative_error(field, got, exact):
    if field == "loss":  # a sum may be off by what its parts are
        return differences(got["losses"], exact["losses"]).sum() / scale(field, exact)
    error = differences(got[field], exact[field]).max()
    return error / scale(field, exact) if error else 0.0


def scale(field, exact):
    if field == "loss":
        return np.abs(exact["losses"]).sum()
    return np.abs(exact[field][np.isfinite(exact[field])]).max()


def differences(got, exact):
    with np.errstate(invalid="ignore"):  # inf - inf
        return np.where(got == exact, 0.0, np.nan_to_num(np.abs(got - exact), nan=INF, posinf=INF))


# What no plain implementation gets right: clamps, words without mass, certainty. A sequence a row.

def make_extremes():
    tau, low, high = 0.7, -7.9375, 7.9375
    a, b = [0.5, 1.0, 0.0, -1.0], [1.0, 0.5, 0.0, 0.25]
    # logits, reference's, token, advantage, phi, log rho
    clamped = [
        ([low, high, high, high], [high, low, low, low], 0, 0.5, 1.0, 0.1),  # d > 20
        (a, b, 2, 1.0, 1.0, 21.0),  # log rho > 20
        (a, b, 3, -1.0, 1.0, 21.0),
    ]
    limits = [
        ([high, low, low, low], [high, low, low, low], 0, -0.5, 1.0, -0.3),  # all but certain
        ([-INF, -INF, 3.0, -INF], [-INF, -INF, 1.0, -INF], 2, 0.5, 1.0, 0.0),  # certain
        ([2.0, 2.0, 2.0, 2.0], [0.0, 0.0, 0.0, 0.0], 3, -0.5, 1.0, -1.0),  # everything equal
    ]
    forward_limits = [
        ([1.0, -0.5, 0.25, 2.0], [0.5, -INF, 1.0, -2.0], 1, 1.0, 1.0, 0.1),  # the reference rules the token out
        ([-INF, 1.0, 2.0, 0.5], [-INF, 3.0, 2.0, 0.5], 1, 0.5, 0.0, 0.1),  # phi 0 covers the masked word
    ]
    forward = [("clip", "forward"), ("sapo", "forward-score"), ("cispo", "none"), ("gspo", "forward")]
    reverse = [("clip", "reverse-k3"), ("two-sided", "reverse-score"), ("gspo", "reverse-k1"), ("sapo", "reverse-k2")]
    for name, rows, choices in [
        ("clamped", clamped, forward + reverse),
        ("limits", limits, reverse + [("clip", "forward-full"), ("clip", "reverse-full")]),
        ("forward-limits", limits + forward_limits, forward),
    ]:
        logits, ref, ids, advantages, phi, log_rho = (np.array(column) for column in zip(*rows))
        lp = log_probs(logits, ids, tau)
        inputs = {
            "vocabSize": 4,
            "sequenceOffsets": np.arange(len(rows) + 1),
            "masked": np.zeros(len(rows), bool),
            "logits": logits, "refLogits": ref, "tokenIds": ids, "advantages": advantages, "refWeights": phi,
            "policyWeights": np.ones(len(rows)),
            "oldLogprobs": {tau: (lp - log_rho).astype(np.float32).astype(float)},
        }
        write(name, inputs, [
            make_case(inputs, make_objective(surrogate, penalty, temperature=tau), False) for surrogate, penalty in choices
        ])


# Large vocabularies, where sums lose most. Logits come from a hash that the test has, too.

def hashed_logits(rows, vocab, salt):
    x = np.arange(rows * vocab, dtype=np.uint32) + np.uint32(salt)
    x *= np.uint32(0x9E3779B1)
    x ^= x >> np.uint32(15)
    x *= np.uint32(0x85EBCA6B)
    x ^= x >> np.uint32(13)
    x *= np.uint32(0xC2B2AE35)
    x ^= x >> np.uint32(16)
    steps = (x & np.uint32(127)).astype(float) + ((x >> np.uint32(7)) & np.uint32(127)) - 127
    return (steps / 16).reshape(rows, vocab)


WIDE_ROWS = 6
WIDE_SALTS = {"logits": 0, "refLogits": 1 << 30}


def make_wide():
    cases = []
    for vocab, penalty, tau in [
        (1000, "forward", 1.0), (1000, "reverse-k3", 0.7), (32003, "forward-full", 1.3), (32003, "reverse-full", 1.0),
        (151936, "forward", 1.3), (151936, "none", 1.0),
    ]:
        objective = make_objective("clip", penalty, temperature=tau)
        inputs = {
            "vocabSize": vocab,
            "sequenceOffsets": np.array([0, 4, WIDE_ROWS]),
            "masked": np.zeros(WIDE_ROWS, bool),
            **{name: hashed_logits(WIDE_ROWS, vocab, salt) for name, salt in WIDE_SALTS.items()},
            "tokenIds": (np.arange(WIDE_ROWS) * 7919 + 17) % vocab,
            "advantages": np.array([1.5] * 4 + [-0.75] * 2),
            "refWeights": np.array([1.0, 0.5, 0.0, 0.25, 0.75, 1.0]),
        }
        lp = log_probs(inputs["logits"], inputs["tokenIds"], tau)
        log_rho = np.log([0.9, 1.1, 1.3, 0.7, 1.1, 0.7])
        inputs["oldLogprobs"] = {tau: (lp - log_rho).astype(np.float32).astype(float)}
        batch = batch_for(inputs, objective, "sequence-mean", False)
        exact = objective_terms(batch, objective, torch.float64)
        picks = [0, 1, vocab // 2, vocab - 1]
        cases.append({
            "vocabSize": vocab,
            "objective": objective,
            "oldLogprobs": f32(batch["oldLogprobs"]),
            "loss": exact["loss"],
            "perToken": {name: f64(exact[name]) for name in PER_TOKEN},
            "gradAtToken": f64(exact["gradLogits"][np.arange(WIDE_ROWS), inputs["tokenIds"]]),
            "gradAt": picks,
            "gradPicked": f64(exact["gradLogits"][:, picks]),
            "naive": naive_errors(batch, objective, exact, (*PER_TOKEN, "loss", "gradLogits")),
        })
    shared = {name: inputs[name].tolist() for name in ("sequenceOffsets", "advantages", "refWeights")}
    write_json("wide", {"inputs": {**shared, "salts": WIDE_SALTS}, "cases": cases})


# Files

def f64(values):
    return base64.b64encode(np.ascontiguousarray(values, "<f8").tobytes()).decode()


def f32(values):
    narrow = np.ascontiguousarray(values, "<f4")
    assert np.array_equal(narrow.astype(float), values), "not exact in float32"
    return base64.b64encode(narrow.tobytes()).decode()


def write(name, inputs, cases):
    exact = {key: f32(inputs[key]) for key in ("logits", "refLogits")}
    plain = {key: inputs[key].tolist() for key in ("sequenceOffsets", "tokenIds", "advantages", "refWeights", "policyWeights")}
    write_json(name, {
        "inputs": {
            "vocabSize": inputs["vocabSize"], "maxLength": MAX_LENGTH, "masked": inputs["masked"].astype(int).tolist(),
            **plain, **exact, "oldLogprobs": {str(tau): f32(values) for tau, values in inputs["oldLogprobs"].items()},
        },
        "cases": cases,
    })


def write_json(name, content):
    """A line for each entry of the inputs and for each case. Infinity, which JSON lacks, is a string."""
    one_line = lambda value: json.dumps(value).replace(": Infinity", ': "Infinity"')
    inputs = ",\n".join(f"  {json.dumps(key)}: {one_line(value)}" for key, value in content["inputs"].items())
    cases = ",\n".join(f"  {one_line(case)}" for case in content["cases"])
    text = f'{{\n "inputs": {{\n{inputs}\n }},\n "cases": [\n{cases}\n ]\n}}\n'
    (ROOT / f"{name}.json").write_text(text)
    print(f"{name}.json: {len(text) / 1000:.0f} kB")


def main():
    torch.set_num_threads(1)
    ROOT.mkdir(parents=True, exist_ok=True)
    for number, surrogate in enumerate(SURROGATES):
        inputs = make_inputs(surrogate, seed=number + 1)
        cases = []
        for index, penalty in enumerate(PENALTIES):
            tau = TEMPERATURES[(index + number) % 3]
            objective = make_objective(surrogate, penalty, temperature=tau, maxLogRatio=2.0)
            cases.append(make_case(inputs, objective, (index + number) % 2 == 1, turn=index // 3 + number))
        write(surrogate, inputs, cases)
    make_extremes()
    make_wide()


if __name__ == "__main__":
    main()
