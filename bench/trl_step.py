"""Steps of TRL's GRPOTrainer for bench/step.ts: python trl_step.py SETTINGS (a JSON file). Prints one JSON line per step."""
import json
import os
import resource
import sys
import time

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

with open(sys.argv[1], encoding="utf8") as file:
    settings = json.load(file)

import torch  # noqa: E402
import transformers  # noqa: E402
import trl  # noqa: E402
from datasets import Dataset  # noqa: E402

torch.set_num_threads(settings["threads"])


def reward(completions, **_):
    """Half of the completions get 1: the work of a step does not depend on which."""
    texts = [c[0]["content"] if isinstance(c, list) else c for c in completions]
    return [float(len(text) % 2) for text in texts]


class Timed(trl.GRPOTrainer):
    rollout = 0.0
    tokens = 0

    def _generate(self, *args, **kwargs):
        start = time.perf_counter()
        out = super()._generate(*args, **kwargs)
        self.rollout += time.perf_counter() - start
        self.tokens += sum(len(ids) for ids in out[1])
        return out


class Report(transformers.TrainerCallback):
    def on_step_begin(self, *_, **__):
        self.start, trainer.rollout, trainer.tokens = time.perf_counter(), 0.0, 0

    def on_step_end(self, *_, **__):
        total = time.perf_counter() - self.start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        line = {"rollout": trainer.rollout, "train": total - trainer.rollout, "tokens": trainer.tokens, "peak": peak}
        print(json.dumps(line), flush=True)


micro = settings["microBatch"]
sequences = settings["prompts"] * settings["group"]
arguments = trl.GRPOConfig(
    output_dir=settings["output"],
    use_cpu=True,
    bf16=False,  # the model itself is loaded in its dtype: autocast would convert the weights in every product
    model_init_kwargs={"dtype": settings["dtype"]},
    per_device_train_batch_size=micro,
    gradient_accumulation_steps=sequences // micro,
    num_generations=settings["group"],
    max_completion_length=settings["newTokens"],
    max_steps=settings["steps"],
    temperature=1.0,
    beta=settings["klCoef"],
    loss_type="grpo",
    learning_rate=1e-6,
    gradient_checkpointing=False,
    logging_strategy="no",
    save_strategy="no",
    report_to=[],
    disable_tqdm=True,
    seed=1,
)
peft_config = None
if settings["rank"]:
    from peft import LoraConfig

    peft_config = LoraConfig(r=settings["rank"], lora_alpha=2 * settings["rank"], target_modules="all-linear")
messages = [[{"role": "user", "content": text}] for text in settings["problems"]]
trainer = Timed(
    model=settings["model"],
    args=arguments,
    reward_funcs=reward,
    train_dataset=Dataset.from_dict({"prompt": messages}),
    peft_config=peft_config,
    callbacks=[Report()],
)
versions = f"trl {trl.__version__}, transformers {transformers.__version__}, torch {torch.__version__}"
print(json.dumps({"version": versions}), flush=True)
trainer.train()
