"""`generate` and `forward` against transformers' own class on the dequantized weights."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from neuralchat_lite.errors import ConfigError, PromptError
from neuralchat_lite.transformers.auto import AutoModelForCausalLM
from neuralchat_lite.transformers.cache import NativeCache
from neuralchat_lite.transformers.modeling import CACHE

from ..conftest import TRAINED
from ..patience import patience
from .conftest import NANO, PROMPTS, Pair

Pairs = Callable[[str], Pair]
MODELS = ("nano", *TRAINED)


@pytest.mark.parametrize("beams", [1, 4])
@pytest.mark.parametrize("size", [1, 3, 8])
@pytest.mark.parametrize("name", MODELS)
def test_ids_are_those_of_transformers(pair: Pairs, name: str, size: int, beams: int) -> None:
    models = pair(name)
    batch = models.batch(*PROMPTS[:size])
    ours, theirs = models.ids(batch, max_new_tokens=24, num_beams=beams, do_sample=False)
    assert ours == theirs


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True, "temperature": 0.9, "top_k": 40},
        {"do_sample": True, "top_p": 0.9, "num_return_sequences": 3},
        {"do_sample": True, "num_beams": 3},
        {"num_beams": 4, "num_return_sequences": 4},
        {"num_beams": 3, "length_penalty": 2.0, "early_stopping": True},
        {"repetition_penalty": 1.3, "no_repeat_ngram_size": 3},
        {"min_new_tokens": 20, "suppress_tokens": [5, 6, 7]},
        {"use_cache": False},
        {"prefill_chunk_size": 4},
    ],
    ids=str,
)
def test_ways_to_generate_give_the_ids_of_transformers(nano: Pair, options: dict[str, Any]) -> None:
    prompts = PROMPTS[:1] if "prefill_chunk_size" in options else PROMPTS[:3]
    ours, theirs = nano.ids(nano.batch(*prompts), max_new_tokens=24, **options)
    assert ours == theirs


def test_greedy_calls_of_threads_share_steps(nano: Pair) -> None:
    batches = [nano.batch(prompt) for prompt in PROMPTS]
    alone = [nano.theirs.generate(**batch, max_new_tokens=30).tolist() for batch in batches]
    counts = nano.ours.native.scheduler.batch.counts
    before, tokens = counts.steps, counts.new_tokens
    found: dict[int, Any] = {}
    gate = threading.Barrier(len(batches))

    def ask(index: int) -> None:
        gate.wait(patience(60))
        found[index] = nano.ours.generate(**batches[index], max_new_tokens=30).tolist()

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(patience(120))
    assert [found[index] for index in range(len(batches))] == alone
    assert counts.new_tokens - tokens > counts.steps - before > 0


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": True},
        {"num_beams": 2},
        {"repetition_penalty": 1.1},
        {"return_dict_in_generate": True},
        {"use_cache": False},
        {"max_time": 1000.0},
        {"prompt_lookup_num_tokens": 3},
    ],
    ids=str,
)
def test_other_calls_keep_the_loop_of_transformers(nano: Pair, options: dict[str, Any]) -> None:
    counts = nano.ours.native.scheduler.batch.counts
    before = counts.steps
    nano.ours.generate(**nano.batch(PROMPTS[0]), max_new_tokens=4, **options)
    assert counts.steps == before
    nano.ours.generate(**nano.batch(PROMPTS[0]), max_new_tokens=4)
    assert counts.steps > before


def test_a_cache_that_the_caller_gave_holds_the_answer(nano: Pair) -> None:
    cache = NativeCache(nano.ours.decoder)
    batch = nano.batch(PROMPTS[3])
    ids = nano.ours.generate(**batch, max_new_tokens=4, **{CACHE: cache})
    assert cache.get_seq_length() == ids.shape[1] - 1


def test_an_id_outside_the_vocabulary_ends_the_call_alone(nano: Pair) -> None:
    with pytest.raises(PromptError, match="is outside the vocabulary"):
        nano.ours.generate(input_ids=torch.tensor([[1, 99_999]]), max_new_tokens=4)


def test_assisted_generation_gives_the_greedy_ids(nano: Pair) -> None:
    batch = nano.batch(PROMPTS[3])
    greedy = nano.theirs.generate(**batch, max_new_tokens=40).tolist()
    for model, options in (
        (nano.ours, {"prompt_lookup_num_tokens": 4}),
        (nano.ours, {"assistant_model": nano.ours}),
        (nano.ours, {"assistant_model": nano.theirs}),
        (nano.theirs, {"assistant_model": nano.ours}),
    ):
        assert model.generate(**batch, max_new_tokens=40, **options).tolist() == greedy, options


def test_generation_ends_at_a_stop_string_and_at_a_criterion(nano: Pair) -> None:
    batch = nano.batch(PROMPTS[3])
    whole = nano.tokenizer.decode(nano.ours.generate(**batch, max_new_tokens=40)[0])
    stop = whole[-12:-8]
    ours, theirs = nano.ids(batch, max_new_tokens=40, stop_strings=[stop], tokenizer=nano.tokenizer)
    assert ours == theirs and stop in nano.tokenizer.decode(ours[0])

    class AfterFive(hf.StoppingCriteria):
        def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
            return torch.full((len(input_ids),), input_ids.shape[1] >= start + 5)

    start = batch.input_ids.shape[1]
    found = nano.ours.generate(
        **batch, max_new_tokens=40, stopping_criteria=hf.StoppingCriteriaList([AfterFive()])
    )
    assert found.shape[1] == start + 5


def test_a_logits_processor_decides(nano: Pair) -> None:
    class Only(hf.LogitsProcessor):
        def __call__(self, input_ids: Any, scores: Any) -> Any:
            allowed = torch.full_like(scores, float("-inf"))
            allowed[:, 9] = 0
            return allowed

    found = nano.ours.generate(
        **nano.batch(PROMPTS[0]), max_new_tokens=3, logits_processor=[Only()]
    )
    assert found[0, -3:].tolist() == [9, 9, 9]


def test_a_generation_config_is_taken_whole_and_from_the_folder(nano: Pair) -> None:
    batch = nano.batch(PROMPTS[0])
    given = hf.GenerationConfig(max_new_tokens=7, do_sample=False, eos_token_id=-1)
    found = nano.ours.generate(**batch, generation_config=given)
    assert found.shape[1] == batch.input_ids.shape[1] + 7
    assert nano.ours.generation_config.eos_token_id == nano.theirs.generation_config.eos_token_id


def test_scores_and_logits_are_returned(nano: Pair) -> None:
    options = {
        "max_new_tokens": 4,
        "return_dict_in_generate": True,
        "output_scores": True,
        "output_logits": True,
    }
    batch = nano.batch(PROMPTS[0])
    ours, theirs = (m.generate(**batch, **options) for m in (nano.ours, nano.theirs))
    assert ours.sequences.tolist() == theirs.sequences.tolist()
    assert len(ours.scores) == len(ours.logits) == 4
    torch.testing.assert_close(ours.logits[3], theirs.logits[3], rtol=0, atol=1e-3)


def rms(values: torch.Tensor) -> torch.Tensor:
    return values.square().mean(-1).sqrt()


@pytest.mark.parametrize("side", ["left", "right"])
def test_logits_of_padded_rows_differ_from_exact_ones_by_roundings_of_fp32(
    nano: Pair, side: str
) -> None:
    nano.tokenizer.padding_side = side
    batch = nano.batch(*PROMPTS[:3])
    nano.tokenizer.padding_side = "left"
    positions = (batch.attention_mask.cumsum(1) - 1).clamp(min=0)  # as `generate` counts them
    real = batch.attention_mask.bool()
    ours = nano.ours(**batch).logits
    where = {"attention_mask": batch.attention_mask, "position_ids": positions}
    with torch.no_grad():
        theirs = nano.theirs(batch.input_ids, **where).logits
        double = copy.deepcopy(nano.theirs).double()
        exact = double(batch.input_ids, **where).logits
        # How much one rounding of fp32 matters differs by position. After some texts the logits
        # change 30 times as much as after others, and there the largest error of all is a matter
        # of luck: that of transformers varies by a factor of 14 with the instruction set that
        # torch uses. So the error of a position is counted in roundings of that position: changes
        # of the logits when every embedding changes by 2^-24 of itself, in double precision.
        embedded = double.get_input_embeddings()(batch.input_ids)
        generator = torch.Generator().manual_seed(0)
        changes = []
        for _ in range(4):
            noise = torch.randn(embedded.shape, generator=generator, dtype=torch.float64)
            changed = double(inputs_embeds=embedded * (1 + 2**-24 * noise), **where).logits
            changes.append(rms(changed - exact)[real])
        rounding = rms(torch.stack(changes, dim=-1))
    # A layer rounds 13 times in a row: norm, q/k/v, rotation, scores, softmax, values, o, sum;
    # norm, gate and up, SwiGLU, down, sum. Independent roundings add up to the root of their
    # number, which is typical, and at worst to their number. A wrong mask gives 10^6.
    count = 13 * nano.ours.config.num_hidden_layers
    for found in (ours, theirs):  # both compute in fp32: the bound has to hold for either
        roundings = rms(found - exact)[real] / rounding
        assert roundings.median() <= count**0.5
        assert roundings.max() <= count
    assert not ours[~real].any()


def test_the_loss_is_that_of_transformers_and_leaves_padding_out(nano: Pair) -> None:
    batch = nano.batch(*PROMPTS[:3])
    mask = batch.attention_mask
    labels = batch.input_ids.masked_fill(mask == 0, -100)
    first = mask.argmax(dim=1)  # transformers predicts it from padding
    theirs = nano.theirs(
        **batch, labels=labels.scatter(1, first[:, None], -100), position_ids=None
    ).loss
    ours = nano.ours(**batch, labels=labels).loss
    torch.testing.assert_close(ours, theirs.detach(), rtol=1e-4, atol=1e-4)


def test_logits_to_keep_are_the_last_columns(nano: Pair) -> None:
    batch = nano.batch(*PROMPTS[:2])
    whole = nano.ours(**batch).logits
    torch.testing.assert_close(nano.ours(**batch, logits_to_keep=2).logits, whole[:, -2:])
    columns = torch.tensor([0, 3])
    torch.testing.assert_close(nano.ours(**batch, logits_to_keep=columns).logits, whole[:, columns])
    logits, *_ = nano.ours(**batch, return_dict=False)
    torch.testing.assert_close(logits, whole)


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ({"input_ids": None}, r"must be \[batch, tokens\] with at least one token, got None"),
        ({"input_ids": torch.tensor([1, 2])}, r"got \(2,\)"),
        ({"input_ids": torch.zeros((1, 0), dtype=torch.long)}, r"got \(1, 0\)"),
        ({"attention_mask": torch.tensor([[1, 0, 1]])}, "row 0 of attention_mask has padding betw"),
        ({"attention_mask": torch.ones(1, 5)}, r"\[batch, past \+ new\] = \[1, 3\], got \[1, 5\]"),
        ({"attention_mask": torch.zeros(1, 3)}, "row 0 of attention_mask has no token"),
        ({"position_ids": torch.tensor([[4, 9, 1]])}, "position_ids of row 0 are"),
        ({"output_hidden_states": True}, "output_hidden_states is not available"),
        ({"output_attentions": True}, "output_attentions is not available"),
        ({"past_key_values": hf.DynamicCache()}, "expected a NativeCache of this model"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_cannot_be_computed_is_refused(
    nano: Pair, arguments: dict[str, Any], rule: str
) -> None:
    with pytest.raises(ValueError, match=rule):
        nano.ours(**{"input_ids": torch.tensor([[1, 2, 3]]), **arguments})


def test_unknown_arguments_are_refused(nano: Pair) -> None:
    with pytest.raises(TypeError, match="unexpected arguments: colour"):
        nano.ours(torch.tensor([[1]]), colour="red")
    with pytest.raises(ValueError, match="not used by the model: \\['colour'\\]"):
        nano.ours.generate(torch.tensor([[1]]), colour="red")
    with pytest.raises(ValueError, match="cache_implementation='static'"):
        nano.ours.generate(torch.tensor([[1]]), cache_implementation="static")


def test_streamers_show_the_text_as_it_comes(
    nano: Pair, capsys: pytest.CaptureFixture[str]
) -> None:
    batch = nano.batch(PROMPTS[3])
    ids = nano.ours.generate(
        **batch, max_new_tokens=30, streamer=hf.TextStreamer(nano.tokenizer, skip_prompt=True)
    )
    answer = nano.tokenizer.decode(ids[0, batch.input_ids.shape[1] :])
    assert capsys.readouterr().out.strip() == answer.strip()

    streamer = hf.TextIteratorStreamer(nano.tokenizer, skip_prompt=True, timeout=patience(60))
    options = {**batch, "max_new_tokens": 30, "streamer": streamer}
    worker = threading.Thread(target=nano.ours.generate, kwargs=options)
    worker.start()
    pieces = list(streamer)
    worker.join()
    assert "".join(pieces) == answer and len(pieces) > 3


@pytest.mark.parametrize("first", ["model", "tokenizer"])
def test_a_saved_model_comes_back_with_a_tokenizer_saved_beside_it(
    nano: Pair, tmp_path: Path, first: str
) -> None:
    savers = [nano.ours, nano.tokenizer]
    for saver in savers if first == "model" else savers[::-1]:
        saver.save_pretrained(tmp_path / "saved")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert loaded.quantization_config == nano.ours.quantization_config
    batch = nano.batch(*PROMPTS[:2])
    options = {"max_new_tokens": 12, "do_sample": False}
    assert torch.equal(loaded.generate(**batch, **options), nano.ours.generate(**batch, **options))
    loaded.save_pretrained(tmp_path / "saved")  # over its own folder, as in transformers
    assert torch.equal(loaded.generate(**batch, **options), nano.ours.generate(**batch, **options))
    with pytest.raises(ConfigError, match="push_to_hub"):
        nano.ours.save_pretrained(tmp_path / "other", push_to_hub=True)


def test_the_model_says_what_it_is(nano: Pair) -> None:
    assert isinstance(nano.ours, hf.PreTrainedModel)
    assert type(nano.ours).__name__ == type(nano.theirs).__name__ == "MistralForCausalLM"
    assert nano.ours.num_parameters() == nano.theirs.num_parameters()
    assert nano.ours.num_parameters(exclude_embeddings=True) < nano.ours.num_parameters()
    assert nano.ours.get_memory_footprint() < nano.theirs.get_memory_footprint() / 4
    assert nano.ours.device.type == "cpu" and nano.ours.dtype == torch.float32
    assert nano.ours.can_generate() and not nano.ours.training
    assert nano.ours.native.report()["weights"]["weight_dtype"] == "int4"


def test_a_model_that_is_not_quantized_computes_on_the_checkpoints_weights() -> None:
    ours = AutoModelForCausalLM.from_pretrained(NANO)
    theirs = hf.AutoModelForCausalLM.from_pretrained(NANO, dtype=torch.float32)
    ids = torch.tensor([[1, 5, 9, 30, 77]])
    torch.testing.assert_close(ours(ids).logits, theirs(ids).logits, rtol=0, atol=1e-3)
    with pytest.raises(ConfigError, match="weights of its checkpoint"):
        ours.save_pretrained("/nowhere/at/all")


def test_a_text_longer_than_the_context_ends_there_with_a_warning(nano: Pair) -> None:
    ids = torch.randint(5, 600, (1, 1015), generator=torch.Generator().manual_seed(0))
    with pytest.warns(
        UserWarning, match="longer than the context of 1024 tokens: the text will end"
    ):
        found = nano.ours.generate(ids, max_new_tokens=50, min_new_tokens=50)
    assert found.shape[1] == 1024


def test_the_default_dtype_of_torch_and_small_integers_change_nothing(nano: Pair) -> None:
    ids = torch.tensor([[1, 5, 9, 30, 77]])
    want = nano.ours(ids).logits
    torch.set_default_dtype(torch.float64)
    try:
        found = nano.ours(ids.to(torch.uint8)).logits
    finally:
        torch.set_default_dtype(torch.float32)
    assert torch.equal(found, want)
    assert torch.equal(nano.ours(ids, token_type_ids=torch.zeros_like(ids)).logits, want)


def test_a_changed_generation_config_is_saved(nano: Pair, tmp_path: Path) -> None:
    twin = copy.deepcopy(nano.ours)
    twin.generation_config.max_new_tokens = 7
    twin.save_pretrained(tmp_path / "saved")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert loaded.generation_config.max_new_tokens == 7


def test_an_unknown_option_of_generate_names_the_one_that_is_meant(nano: Pair) -> None:
    batch = nano.batch(PROMPTS[0])
    for given, meant in (
        ("max_tokens", "max_new_tokens"),
        ("temprature", "temperature"),
        ("stop", "stop_strings"),
        ("attention_masks", "attention_mask"),
        ("input_id", "input_ids"),
        ("past_key_value", "past_key_values"),
        ("generation_confg", "generation_config"),
        ("assistant", "assistant_model"),
        ("n", "num_return_sequences"),
    ):
        with pytest.raises(ValueError, match=rf"{given} \(did you mean '{meant}'\?\)"):
            nano.ours.generate(**batch, **{given: 3})
    with pytest.raises(ValueError, match="not used by the model: \\['xyz'\\]"):
        nano.ours.generate(**batch, xyz=3)


@pytest.mark.parametrize(
    ("ids", "got"), [("hello", "str"), ([[5, 6]], "list"), (torch.tensor([5, 6]), r"\[2\]")]
)
def test_what_is_no_batch_of_ids_is_refused_by_generate(nano: Pair, ids: Any, got: str) -> None:
    with pytest.raises(PromptError, match=rf"a tensor \[batch, tokens\], got {got}: give tok"):
        nano.ours.generate(ids)


def test_embeddings_in_place_of_ids_are_refused_by_name(nano: Pair) -> None:
    vectors = torch.zeros(1, 3, 8)
    for call in (nano.ours, nano.ours.generate):
        with pytest.raises(ValueError, match="inputs_embeds is not available"):
            call(inputs_embeds=vectors)
