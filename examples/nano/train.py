"""Train neural-chat-nano from nothing: python examples/nano/train.py --out RUN

Conversations are drawn as they are needed and never repeat by plan; only the assistant's last
answer is learned. RUN holds a checkpoint, from which the same command goes on after an
interruption, a log (log.jsonl), a plot of it (curve.png), and at the end the model in bf16
(RUN/model). The held-out measure here is teacher-forced: every token of an answer must be the
likeliest one, which is what greedy decoding needs to write it whole.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from problems import Problem, held_out_problems, make_problem
from tokenizer import CONTEXT, save_tokenizer, train_tokenizer
from torch import Tensor
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

SEED = 0
BATCH = 64  # conversations
POOL = 64  # batches that are drawn at once and sorted by length, so that little is padding
WARMUP = 100
COOLDOWN = 0.4  # of all steps, at the end, in which the learning rate goes down to zero
EARLIER_TURNS = 0.1  # of conversations have a turn before the one that is learned
WITHOUT_SYSTEM = 0.25  # of conversations have no system message
IGNORED = -100

Example = tuple[list[int], int]  # token ids, and how many of them are the prompt


def make_model(vocab_size: int, tokenizer: PreTrainedTokenizerFast) -> MistralForCausalLM:
    config = MistralConfig(
        vocab_size=vocab_size,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        sliding_window=256,
        rms_norm_eps=1e-5,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        tie_word_embeddings=False,
    )
    model = MistralForCausalLM(config)
    for name, weight in model.named_parameters():
        if weight.dim() == 2:
            std = 0.02 if "embed" in name else weight.shape[1] ** -0.5
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                std /= math.sqrt(2 * config.num_hidden_layers)
            torch.nn.init.normal_(weight, std=std)
    return model


def encode(
    tokenizer: PreTrainedTokenizerFast,
    problem: Problem,
    earlier: Problem | None = None,
    system: bool = True,
) -> Example:
    messages = problem.messages()
    if earlier is not None:
        answer = {"role": "assistant", "content": earlier.answer}
        messages = [*earlier.messages(), answer, messages[-1]]
    if not system:
        del messages[0]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    prompt = tokenizer.encode(text, add_special_tokens=False)
    answer_ids = tokenizer.encode(problem.answer, add_special_tokens=False)
    return [*prompt, *answer_ids, tokenizer.eos_token_id], len(prompt)


def batches(
    tokenizer: PreTrainedTokenizerFast, first_step: int, size: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Ids and labels [size, tokens] of every step from `first_step` on."""
    for pool in range(first_step // POOL, 1 << 30):
        rng = random.Random(f"{SEED} {pool}")  # each pool by itself, so that a run can go on
        examples = []
        for _ in range(POOL * size):
            problem = make_problem(rng, held_out=False)
            earlier = make_problem(rng, held_out=False) if rng.random() < EARLIER_TURNS else None
            system = rng.random() >= WITHOUT_SYSTEM
            examples.append(encode(tokenizer, problem, earlier, system))
        examples.sort(key=lambda example: len(example[0]))
        starts = list(range(0, POOL * size, size))
        rng.shuffle(starts)
        skipped = first_step % POOL if pool == first_step // POOL else 0
        for start in starts[skipped:]:
            yield collate(examples[start : start + size], tokenizer.pad_token_id)


def collate(examples: list[Example], padding: int) -> tuple[Tensor, Tensor]:
    width = max(len(ids) for ids, _ in examples)
    ids = torch.full((len(examples), width), padding)
    labels = torch.full((len(examples), width), IGNORED)
    for row, (tokens, prompt) in enumerate(examples):
        ids[row, : len(tokens)] = torch.tensor(tokens)
        labels[row, prompt : len(tokens)] = ids[row, prompt : len(tokens)]
    return ids, labels


def answer_logits(model: MistralForCausalLM, ids: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits [n, vocabulary] and the tokens [n] that they should predict: those of the answers."""
    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    wanted = labels[:, 1:]
    learned = wanted != IGNORED
    return model.lm_head(hidden[learned]).float(), wanted[learned]


@torch.no_grad()
def exact_match(model: MistralForCausalLM, examples: list[Example], device: str) -> float:
    """The share of answers whose every token is the likeliest one."""
    correct = 0
    for start in range(0, len(examples), BATCH):
        ids, labels = collate(examples[start : start + BATCH], 0)
        with autocast(device):
            logits, wanted = answer_logits(model, ids.to(device), labels.to(device))
        right = (logits.argmax(-1) == wanted).cpu()
        lengths = (labels[:, 1:] != IGNORED).sum(1).tolist()
        correct += sum(bool(part.all()) for part in torch.split(right, lengths))
    return correct / len(examples)


def autocast(device: str) -> torch.autocast:
    """bf16 where it is faster: for matrices as small as these, not on a CPU."""
    return torch.autocast(device, torch.bfloat16, enabled=device != "cpu")


def learning_rate(step: int, steps: int, highest: float) -> float:
    """Up, level, and down in a straight line at the end."""
    left = (steps - step) / max(1, COOLDOWN * steps)
    return highest * min((step + 1) / WARMUP, 1.0, left)


def optimizers(model: MistralForCausalLM, args: argparse.Namespace) -> list[torch.optim.Optimizer]:
    """Muon for the matrices inside layers, AdamW for everything else."""
    inside = [p for n, p in model.named_parameters() if p.dim() == 2 and "layers" in n]
    kept = {id(p) for p in inside}
    outside = [p for p in model.parameters() if id(p) not in kept]
    return [
        torch.optim.Muon(
            inside, lr=args.muon, momentum=0.95, weight_decay=0.0, adjust_lr_fn="original"
        ),
        torch.optim.AdamW(outside, lr=args.adam, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def save(path: Path, state: dict[str, Any]) -> None:
    """Whole or not at all: an interruption leaves the file before it."""
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(path)


def plot(out: Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plt

    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    measured = [entry for entry in log if "exact_match" in entry]
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), layout="constrained")
    left.semilogy([e["step"] for e in log], [e["loss"] for e in log])
    left.set(title="Loss of the answers", xlabel="step", ylabel="nats per token")
    right.plot([e["step"] for e in measured], [e["exact_match"] for e in measured], marker=".")
    right.set(title="Held-out problems", xlabel="step", ylabel="exact match", ylim=(0, 1.02))
    for axis in (left, right):
        axis.grid(alpha=0.3)
    figure.savefig(out / "curve.png", dpi=120)


def train(args: argparse.Namespace) -> None:
    torch.manual_seed(SEED)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    tokenizer = train_tokenizer()
    model = make_model(len(tokenizer), tokenizer).to(device)
    parts = optimizers(model, args)
    args.out.mkdir(parents=True, exist_ok=True)
    checkpoint, log = args.out / "checkpoint.pt", args.out / "log.jsonl"
    step, tokens, seconds = 0, 0, 0.0
    if checkpoint.exists():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        for part, saved in zip(parts, state["optimizers"], strict=True):
            part.load_state_dict(saved)
        step, tokens, seconds = state["step"], state["tokens"], state["seconds"]
        print(f"going on at step {step}")
    judged = [encode(tokenizer, problem) for problem in held_out_problems(args.judged)]
    count = sum(weight.numel() for weight in model.parameters())
    print(f"{count:,} parameters, {len(tokenizer)} tokens, on {device}, {args.steps} steps")
    losses: list[float] = []
    start = time.perf_counter() - seconds
    for ids, labels in batches(tokenizer, step, args.batch):
        if step in (args.steps, args.stop_at):
            break
        for part, highest in zip(parts, (args.muon, args.adam), strict=True):
            for group in part.param_groups:
                group["lr"] = learning_rate(step, args.steps, highest)
        with autocast(device):
            loss = F.cross_entropy(*answer_logits(model, ids.to(device), labels.to(device)))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for part in parts:
            part.step()
            part.zero_grad(set_to_none=True)
        losses.append(loss.item())
        step, tokens = step + 1, tokens + ids.numel()
        if step % args.log_every == 0 or step == args.steps:
            seconds = time.perf_counter() - start
            entry: dict[str, Any] = {
                "step": step,
                "loss": sum(losses) / len(losses),
                "tokens": tokens,
                "seconds": round(seconds, 1),
            }
            losses = []
            if step % args.judge_every == 0 or step in (args.steps, args.stop_at):
                entry["exact_match"] = exact_match(model, judged, device)
                state = {
                    "model": model.state_dict(),
                    "optimizers": [part.state_dict() for part in parts],
                    "step": step,
                    "tokens": tokens,
                    "seconds": seconds,
                }
                save(checkpoint, state)
            with log.open("a") as file:
                file.write(json.dumps(entry) + "\n")
            print(json.dumps(entry), flush=True)
    if step < args.steps:
        return
    folder = args.out / "model"
    model.to(torch.bfloat16).save_pretrained(folder)
    save_tokenizer(tokenizer, folder)
    plot(args.out)
    print(f"the model is in {folder}, its curve in {args.out / 'curve.png'}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the run")
    parser.add_argument("--steps", type=int, default=2200)
    parser.add_argument("--batch", type=int, default=BATCH, help="conversations of a step")
    parser.add_argument("--stop-at", type=int, help="stop after this step, to go on another time")
    parser.add_argument("--muon", type=float, default=0.02, help="learning rate of the matrices")
    parser.add_argument("--adam", type=float, default=0.003, help="learning rate of the rest")
    parser.add_argument("--judged", type=int, default=1000, help="held-out problems")
    parser.add_argument("--log-every", type=int, default=50)
    parser.add_argument("--judge-every", type=int, default=250)
    train(parser.parse_args())


if __name__ == "__main__":
    main()
