"""The harness' model: what it answers is what a slow reading finds, and its shots are shared."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

import neuralchat_lite as ncl
from neuralchat_lite.engines.engine import OneByOne
from neuralchat_lite.errors import ConfigError, PromptError

pytest.importorskip("lm_eval", reason="lm_eval is not installed: pip install '.[bench]'")

from lm_eval.api.instance import Instance

from benchmarks.accuracy.lm_eval_model import NeuralchatLM, Shared

SHOTS = "calculate 12 + 30\nAnswer: 42\n\ncalculate 5 + 6\nAnswer: 11\n\n"


@pytest.fixture(scope="module")
def model(nano: Path) -> ncl.Model:
    return ncl.load(nano, dtype="fp32")


def instances(kind: Any, *arguments: tuple[Any, ...]) -> list[Instance]:
    return [Instance(kind, {}, given, index) for index, given in enumerate(arguments)]


def read_slowly(model: ncl.Model, context: list[int], continuation: list[int]):
    """Token by token, each from an empty cache."""
    total, greedy, fed = 0.0, True, list(context)
    for token in continuation:
        logits = model.decoder.forward(fed, model.decoder.new_cache())
        total += logits.log_softmax(-1)[token].item()
        greedy = greedy and int(logits.argmax()) == token
        fed.append(token)
    return total, greedy


def test_log_likelihoods_are_those_of_a_slow_reading_whatever_the_order(model):
    pairs = [
        (SHOTS + "calculate 7 + 8\n", "Answer: 15"),
        (SHOTS + "calculate 7 + 8\n", "Answer: 16"),
        (SHOTS + "calculate 7 + 1\n", "Answer: 8"),
        ("calculate", " 1"),
        (SHOTS + "calculate 7 + 8\nAnswer: ", "1"),
        (SHOTS + "calculate 7 + 8\nAnswer: ", "2"),
    ]
    random.Random(0).shuffle(pairs)
    lm = NeuralchatLM(model)
    want = []
    for context, continuation in pairs:
        tokens = lm._encode_pair(context, continuation)
        want.append(read_slowly(model, *tokens))
    found = lm.loglikelihood(instances("loglikelihood", *pairs), disable_tqdm=True)
    assert [value for value, _ in found] == pytest.approx([v for v, _ in want], abs=1e-3)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in want]


def test_a_greedy_continuation_is_known_as_such(model):
    context = list(model.tokenizer.encode(SHOTS))
    cache = model.decoder.new_cache()
    logits = model.decoder.forward(context, cache)
    best = int(logits.argmax())
    worst = int(logits.argmin())
    found = NeuralchatLM(model)._loglikelihood_tokens(
        [(None, context, [best]), (None, context, [worst])]
    )
    assert [greedy for _, greedy in found] == [True, False]


def test_shots_that_requests_share_are_computed_once(model):
    pairs = [(f"{SHOTS}calculate {n} + {n}\n", f"Answer: {m}") for n in range(8) for m in range(4)]
    lm = NeuralchatLM(model)
    lm.loglikelihood(instances("loglikelihood", *pairs), disable_tqdm=True)
    every = sum(len(lm.tok_encode("".join(pair))) for pair in pairs)
    shots = len(lm.tok_encode(SHOTS))
    assert lm.shared.computed < every - 31 * (shots - 1)


def test_choices_go_through_the_layers_together_and_change_nothing(model, monkeypatch):
    context, lm = list(model.tokenizer.encode(SHOTS)), NeuralchatLM(model)
    choices = [[5 + n, *range(20, 20 + n)] for n in range(11)]
    batches = []
    forward_batch = model.decoder.forward_batch

    def counted(batch, caches, **more):
        batches.append(len(batch))
        return forward_batch(batch, caches, **more)

    monkeypatch.setattr(model.decoder, "forward_batch", counted)
    found = lm._loglikelihood_tokens([(None, context, choice) for choice in choices])
    assert batches == [1, 8, 3]  # the context, and then the choices
    fed = sum(len(choice) - 1 for choice in choices)
    assert lm.shared.computed == len(context) - 1 + len(choices) + fed
    alone = [NeuralchatLM(model)._loglikelihood_tokens([(None, context, c)])[0] for c in choices]
    assert found == alone


def test_a_decoder_that_computes_one_after_the_other_answers_the_same(model):
    class Alone(OneByOne):
        new_cache = staticmethod(model.decoder.new_cache)
        forward = staticmethod(model.decoder.forward)

    context = list(model.tokenizer.encode(SHOTS))
    asked = [(None, context, choice) for choice in ([5], [6], [7, 8], [7, 9, 10])]
    lm = NeuralchatLM(model)
    want = lm._loglikelihood_tokens(asked)
    lm.shared = Shared(Alone())
    found = lm._loglikelihood_tokens(asked)
    assert [value for value, _ in found] == pytest.approx([v for v, _ in want], abs=1e-4)
    assert [greedy for _, greedy in found] == [greedy for _, greedy in want]


def test_continuations_of_one_token_are_fed_once(model):
    context = list(model.tokenizer.encode(SHOTS))
    lm = NeuralchatLM(model)
    lm._loglikelihood_tokens([(None, context, [token]) for token in (5, 6, 7)])
    assert lm.shared.computed == len(context)


def test_a_prompt_that_is_too_long_loses_its_beginning(model):
    lm = NeuralchatLM(model, max_length=20)
    context = list(model.tokenizer.encode(SHOTS))
    continuation = [9, 8, 7]
    (found,) = lm._loglikelihood_tokens([(None, context, continuation)])
    want = read_slowly(model, context[-18:], continuation)  # the last token is never fed
    assert found[0] == pytest.approx(want[0], abs=1e-3)
    assert lm.cut == 1


def test_an_empty_context_is_the_begin_token(model):
    lm = NeuralchatLM(model)
    (found,) = lm.loglikelihood(instances("loglikelihood", ("", "Answer")), disable_tqdm=True)
    ids = list(model.tokenizer.encode("Answer", add_special_tokens=False))
    assert found[0] == pytest.approx(read_slowly(model, [1], ids)[0], abs=1e-3)


def test_whole_texts_are_scored_in_disjoint_windows(model):
    lm = NeuralchatLM(model, max_length=16)
    (found,) = lm.loglikelihood_rolling(instances("loglikelihood_rolling", (SHOTS,)))
    ids = lm.tok_encode(SHOTS)
    total, place = 0.0, 0
    while place < len(ids):
        part = ids[place : place + 16]
        # The window is full: what does not fit a last one of 16 is predicted behind more context.
        end = place + len(part)
        before = [1] if place == 0 else ids[max(0, end - 17) : place]
        total += read_slowly(model, before, part)[0]
        place = end
    assert found == pytest.approx(total, abs=2e-3)


def test_texts_are_the_models_own_greedy_ones_up_to_a_stop(model):
    lm = NeuralchatLM(model)
    prompts = [f"### User:\ncalculate {n} + 5\n### Assistant:\n" for n in (10, 12, 14)]
    given = {"until": ["\n"], "max_gen_toks": 20, "do_sample": False}
    found = lm.generate_until(instances("generate_until", *((p, given) for p in prompts)))
    want = [model.generate(p, max_new_tokens=20, stop=["\n"]).text for p in prompts]
    assert found == want
    assert all(want)


def test_texts_do_not_depend_on_what_was_asked_before(model):
    prompts = [(SHOTS + "calculate 3 + 4\n", {"until": [], "max_gen_toks": 12}), (SHOTS, {})]
    lm = NeuralchatLM(model)
    lm.loglikelihood(instances("loglikelihood", (SHOTS + "calculate", " 9")), disable_tqdm=True)
    after = lm.generate_until(instances("generate_until", *prompts[:1]))
    assert after == NeuralchatLM(model).generate_until(instances("generate_until", *prompts[:1]))


def test_what_cannot_be_answered_is_refused(model):
    with pytest.raises(ConfigError, match="must not exceed the context of 512, got 4096"):
        NeuralchatLM(model, max_length=4096)
    with pytest.raises(ConfigError, match="device must be 'cpu', got 'cuda'"):
        NeuralchatLM(model, device="cuda")
    lm = NeuralchatLM(model, max_length=20)
    with pytest.raises(PromptError, match="1 to 20 tokens, got 21"):
        lm._loglikelihood_tokens([(None, [1], [5] * 21)])
    with pytest.raises(PromptError, match="20 new tokens leave no room"):
        lm.generate_until(instances("generate_until", (SHOTS, {"max_gen_toks": 20})))
    with pytest.raises(ConfigError, match="do_sample must be False"):
        lm.generate_until(instances("generate_until", (SHOTS, {"do_sample": True})))


def test_the_harness_finds_the_model_by_name_with_options_in_one_text(nano, tmp_path):
    from lm_eval.api.registry import get_model

    text = f"pretrained={nano},weight_dtype=int8,compute_dtype=fp32,cache_dir={tmp_path}"
    lm = get_model("neuralchat-lite").create_from_arg_string(text, {"batch_size": 8})
    assert lm.model.config.weight_dtype == "int8"
    assert lm.decoder.compute_dtype == "fp32"
