"""load, generate and stream on the small trained model, through the native kernels."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

import neuralchat_lite as ncl
from neuralchat_lite import loading
from neuralchat_lite.checkpoints import hub
from neuralchat_lite.errors import CacheError, CheckpointError, ConfigError, PromptError

from .patience import patience

PROMPT = "Once upon a time"


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def model(stories: Path, cache: Path) -> ncl.Model:
    return ncl.load(stories, cache_dir=cache)


@pytest.fixture
def checkpoint(stories: Path, tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return Path(shutil.copytree(stories, tmp_path / "model", copy_function=shutil.copyfile))


def forbidden(step: Any) -> None:
    raise AssertionError(f"{step} should not happen")


def test_unquantized_fp32_tells_the_known_story(trained_model: Path) -> None:
    model = ncl.load(trained_model, dtype="fp32")
    for golden in json.loads((trained_model / "golden.json").read_text(encoding="utf-8")):
        count = len(golden["greedy_ids"]) - len(golden["input_ids"])
        reply = ncl.generate(model, golden["prompt"], max_new_tokens=count)
        assert golden["input_ids"] + list(reply.token_ids) == golden["greedy_ids"]
        assert golden["prompt"] + reply.text == golden["greedy_text"]


def test_a_checkpoint_is_quantized_once_and_then_mapped(stories: Path, tmp_path: Path) -> None:
    stages: list[str] = []
    first = ncl.load(stories, cache_dir=tmp_path, progress=lambda step: stages.append(step.stage))
    assert "quantize" in stages
    stages.clear()
    second = ncl.load(stories, cache_dir=tmp_path, progress=lambda step: stages.append(step.stage))
    assert "quantize" not in stages
    assert first.folder == second.folder
    assert first.generate(PROMPT).text == second.generate(PROMPT).text


def test_default_is_int4_in_groups_of_32(model: ncl.Model) -> None:
    assert model.config == ncl.WeightOnlyQuantConfig()
    assert model.config.weight_dtype == "int4"
    assert model.config.group_size == 32


def test_a_quantized_folder_loads_with_its_own_config(
    stories: Path, cache: Path, tmp_path: Path
) -> None:
    config = ncl.WeightOnlyQuantConfig(weight_dtype="int8", group_size=64)
    folder = ncl.load(stories, config, cache_dir=cache).save_pretrained(tmp_path / "int8")
    loaded = ncl.load(folder)
    assert loaded.config is not None
    assert loaded.config.bytes_config() == config.bytes_config()
    assert loaded.folder == folder


def test_a_weight_type_alone_is_a_configuration(stories: Path, tmp_path: Path) -> None:
    short = ncl.load(stories, "int8", cache_dir=tmp_path)
    whole = ncl.load(stories, ncl.WeightOnlyQuantConfig(weight_dtype="int8"), cache_dir=tmp_path)
    assert short.config == whole.config
    assert short.folder == whole.folder
    with pytest.raises(ConfigError, match="did you mean 'int8'"):
        ncl.load(stories, "int88", cache_dir=tmp_path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"quantization_config": "int8"}, ": int8-g32 weights, bf16 compute, engine native>"),
        ({"dtype": "fp32"}, ": unquantized weights, fp32 compute, engine native>"),
        ({"engine": "torch"}, ": unquantized weights, bf16 compute, engine torch>"),
    ],
)
def test_a_model_is_one_line(
    stories: Path, cache: Path, options: dict[str, Any], said: str
) -> None:
    shown = repr(ncl.load(stories, cache_dir=cache, **options))
    assert shown.startswith(f"<Model {stories.name}")
    assert shown.endswith(said)
    assert "\n" not in shown


def test_a_quantized_folder_refuses_another_config(model: ncl.Model) -> None:
    other = ncl.WeightOnlyQuantConfig(weight_dtype="int8")
    with pytest.raises(ConfigError, match=r"weight_dtype='int8' \(stored: 'int4'\).*; leave"):
        ncl.load(model.folder, other)


def test_a_quantized_folder_computes_in_what_is_asked_for(model: ncl.Model) -> None:
    loaded = ncl.load(model.folder, ncl.WeightOnlyQuantConfig(compute_dtype="fp32"))
    assert loaded.report()["compute_dtype"] == "fp32"
    assert model.report()["compute_dtype"] == "bf16"


def test_a_default_compute_dtype_is_for_what_names_none(stories: Path, tmp_path: Path) -> None:
    def taken(model: Path, *config: Any, **options: Any) -> tuple[str, str]:
        options |= {"default_compute_dtype": "auto", "cache_dir": tmp_path / "cache"}
        report = ncl.load(model, *config, **options).report()
        return report["compute_dtype_asked"], report["compute_dtype"]

    assert taken(stories) == ("auto", "int8")
    assert taken(stories, {"weight_dtype": "int8"}) == ("auto", "bf16")
    assert taken(stories, compute_dtype="bf16") == ("bf16", "bf16")
    assert taken(stories, {"compute_dtype": "fp32"}) == ("fp32", "fp32")
    assert taken(stories, ncl.WeightOnlyQuantConfig()) == ("bf16", "bf16")
    assert taken(stories, dtype="fp32") == ("fp32", "fp32")
    saved = ncl.quantize(stories, {"compute_dtype": "bf16"}, tmp_path / "saved")
    assert taken(saved) == ("bf16", "bf16")
    assert taken(saved, compute_dtype="auto") == ("auto", "int8")
    with pytest.raises(ConfigError, match="compute_dtype must be one of"):
        ncl.load(stories, default_compute_dtype="best", cache_dir=tmp_path / "cache")


def test_save_pretrained_stands_alone(stories: Path, tmp_path: Path) -> None:
    original = ncl.load(stories, cache_dir=tmp_path / "cache")
    text = original.generate(PROMPT, max_new_tokens=30).text
    folder = original.save_pretrained(tmp_path / "alone")
    shutil.rmtree(tmp_path / "cache")
    assert ncl.load(folder).generate(PROMPT, max_new_tokens=30).text == text


def test_save_pretrained_refuses_a_folder_with_another_model(
    model: ncl.Model, tmp_path: Path
) -> None:
    (tmp_path / "pytorch_model.bin").write_text("precious")
    with pytest.raises(CacheError, match="holds another model"):
        model.save_pretrained(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["pytorch_model.bin"]


def test_a_copy_that_fails_leaves_nothing(
    model: ncl.Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(CacheError, match="No space left on device"):
        model.save_pretrained(tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []


def test_unquantized_model_cannot_be_saved_as_quantized(stories: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="weights of its checkpoint"):
        ncl.load(stories, dtype="bf16").save_pretrained(tmp_path / "x")


@pytest.mark.parametrize(
    ("options", "rule"),
    [
        ({"dtype": "int4"}, "dtype must be 'fp32' or 'bf16', got 'int4'"),
        (
            {"dtype": "fp32", "quantization_config": ncl.WeightOnlyQuantConfig()},
            "give only one of them",
        ),
        ({"threads": 0}, "threads must be an integer from 1 to 1024, got 0"),
        ({"threads": "two"}, "got 'two'"),
        ({"context_length": 0}, "context_length must be an integer between 1 and"),
        ({"context_length": 513}, "512 positions, got 513"),
    ],
)
def test_impossible_loads_are_refused(
    stories: Path, cache: Path, options: dict[str, Any], rule: str
) -> None:
    with pytest.raises(ConfigError, match=rule):
        ncl.load(stories, cache_dir=cache, **options)


def test_dtype_of_a_quantized_folder_is_refused(model: ncl.Model) -> None:
    with pytest.raises(ConfigError, match="needs the original checkpoint"):
        ncl.load(model.folder, dtype="fp32")


def test_missing_tokenizer_is_named(checkpoint: Path, cache: Path) -> None:
    (checkpoint / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"has no tokenizer, expected one of tokenizer\.json"):
        ncl.load(checkpoint, cache_dir=cache, progress=forbidden)  # before any work


def test_damaged_tokenizer_is_named(checkpoint: Path, cache: Path) -> None:
    (checkpoint / "tokenizer.json").write_text('{"version": "1.0", "model": 3}')
    with pytest.raises(CheckpointError, match=r"tokenizer in .*model cannot be read"):
        ncl.load(checkpoint, cache_dir=cache, progress=forbidden)


def test_what_cannot_run_is_said_before_any_work(checkpoint: Path, cache: Path) -> None:
    with pytest.raises(ConfigError, match="got 513"):
        ncl.load(checkpoint, context_length=513, cache_dir=cache / "new", progress=forbidden)
    with pytest.raises(CacheError, match="not an empty folder"):
        ncl.quantize(checkpoint, output=checkpoint, progress=forbidden)
    config = json.loads((checkpoint / "config.json").read_text())
    config["rope_scaling"] = {"rope_type": "llama3", "factor": 8.0}
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="low_freq_factor"):
        ncl.load(checkpoint, cache_dir=cache / "new", progress=forbidden)


@pytest.mark.parametrize(
    ("model", "options", "rule"),
    [
        (None, {}, "must be a folder or a hub name, got None"),
        ("STORIES", {"quantization_config": 4}, "must be a WeightOnlyQuantConfig, a dict"),
        ("STORIES", {"context_length": "a"}, "context_length must be an integer.*got 'a'"),
        ("STORIES", {"context_length": 7.5}, "got 7.5"),
        ("STORIES", {"context_length": True}, "got True"),
        ("STORIES", {"cache_dir": ""}, "cache_dir is an empty string"),
        ("STORIES", {"compute_dtype": "fp16"}, "compute_dtype='fp16'"),
        ("STORIES", {"kv_cache_dtype": "int4"}, "'bf16', 'fp32', 'int8', got 'int4'"),
        ("STORIES", {"kv_cache_dtype": "int8", "engine": "torch"}, "leave kv_cache_dtype out"),
        ("STORIES", {"dtype": "bf16", "compute_dtype": "bf16"}, "give only one of them"),
    ],
)
def test_arguments_of_another_kind_are_refused(
    stories: Path, model: Any, options: dict[str, Any], rule: str
) -> None:
    with pytest.raises(ncl.NeuralchatError, match=rule):
        ncl.load(stories if model == "STORIES" else model, **options)


def test_a_dictionary_of_options_is_a_config(stories: Path, cache: Path) -> None:
    model = ncl.load(stories, {"weight_dtype": "int8"}, compute_dtype="fp32", cache_dir=cache)
    assert model.config == ncl.WeightOnlyQuantConfig(weight_dtype="int8", compute_dtype="fp32")
    assert model.decoder.compute_dtype == "fp32"


def test_threads_revision_and_token_reach_their_places(
    stories: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def resolve(*arguments: Any) -> hub.Resolved:
        seen.append(arguments)
        return hub.Resolved(stories)

    monkeypatch.setattr(loading, "resolve", resolve)
    monkeypatch.setattr(loading.native, "set_threads", seen.append)
    ncl.load("org/model", revision="v2", token="secret", threads=1, cache_dir=cache)
    ncl.quantize("org/model", revision="v3", token="more", cache_dir=cache)
    assert seen == [("org/model", "v2", "secret"), 1, ("org/model", "v3", "more")]


def test_threads_that_load_at_once_in_a_fresh_process_all_succeed(
    stories: Path, cache: Path
) -> None:
    code = f"""
import threading, neuralchat_lite as ncl
failed = []
def load():
    try:
        ncl.load({str(stories)!r}, cache_dir={str(cache)!r})
    except BaseException as error:
        failed.append(error)
threads = [threading.Thread(target=load) for _ in range(4)]
[t.start() for t in threads], [t.join() for t in threads]
assert not failed, failed
"""
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=patience(120)
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.parametrize("missing", ["manifest.json", "quantization_config.json"])
def test_a_quantized_folder_that_lacks_a_file_is_not_taken_for_a_checkpoint(
    model: ncl.Model, tmp_path: Path, missing: str
) -> None:
    folder = model.save_pretrained(tmp_path / "part")
    (folder / missing).unlink()
    with pytest.raises(CacheError, match=f"{missing}.* (is missing|cannot be read)"):
        ncl.load(folder)


@pytest.mark.parametrize("contents", [None, "[" * 100000])
def test_a_config_that_cannot_be_read_is_named(
    checkpoint: Path, cache: Path, contents: str | None
) -> None:
    (checkpoint / "config.json").unlink()
    if contents is None:
        (checkpoint / "config.json").mkdir()
    else:
        (checkpoint / "config.json").write_text(contents)
    with pytest.raises(CheckpointError, match=r"config\.json (cannot be read|is not JSON)"):
        ncl.load(checkpoint, cache_dir=cache)


def test_unknown_option_is_refused_with_the_valid_ones(model: ncl.Model) -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'max_new_tokens'.*expected max_new"):
        model.stream(PROMPT, max_tokens=3)


def test_prompt_longer_than_the_context_is_refused_at_once(model: ncl.Model) -> None:
    with pytest.raises(PromptError, match="the context has 512"):
        model.stream([1] * 513)


def test_stream_joins_to_generate_and_says_what_loading_took(model: ncl.Model) -> None:
    pieces = list(ncl.stream(model, PROMPT, max_new_tokens=20))
    reply = ncl.generate(model, PROMPT, max_new_tokens=20)
    assert "".join(piece.text for piece in pieces) == reply.text
    assert reply.timings.load_s == model.load_s > 0
    assert reply.timings.bytes_per_token > model.decoder.weight_bytes


def test_messages_stop_where_the_next_turn_would_begin(
    model: ncl.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = model.tokenizer.encode("So.\n### User:\nMore", add_special_tokens=False)
    script = iter(ids)
    from neuralchat_lite.generation.sampling import Chooser

    monkeypatch.setattr(Chooser, "__call__", lambda *_: next(script))
    reply = model.generate([{"role": "user", "content": "Hello"}])
    assert (reply.text.strip(), reply.finish_reason) == ("So.", "stop")


def test_generations_in_several_threads_do_not_mix(model: ncl.Model) -> None:
    jobs = [
        (prompt, {"max_new_tokens": 40, "temperature": temperature, "seed": seed})
        for prompt in ("Once upon a time", "Lily", "The cat", "One day")
        for temperature, seed in ((0.0, None), (1.0, 1), (1.0, 2))
    ]
    alone = [model.generate(prompt, **options).token_ids for prompt, options in jobs]
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(lambda job: model.generate(job[0], **job[1]).token_ids, jobs))
    assert together == alone
    assert len(set(alone)) > 6  # or there was nothing to mix up


def test_interleaved_streams_do_not_mix(model: ncl.Model) -> None:
    prompts = ("Once upon a time", "Lily")
    streams = [model.stream(prompt, max_new_tokens=30) for prompt in prompts]
    pairs = list(zip(*streams, strict=True))
    for index, prompt in enumerate(prompts):
        tokens = tuple(pair[index].token_id for pair in pairs)
        assert tokens == model.generate(prompt, max_new_tokens=30).token_ids


def test_conversation_answers(model: ncl.Model) -> None:
    talk = model.conversation("Tell stories.", max_new_tokens=5)
    talk.say("Once")
    assert talk.say("More").timings.cached_tokens > 0


def test_report_says_what_runs_and_why(model: ncl.Model) -> None:
    report = model.report()
    assert report["isa"] in report["kernels"]
    assert report["isa_why"]
    assert report["threads_why"]
    assert report["weights"]["weight_dtype"] == "int4"
    [end] = report["turn_ends"]
    assert (end["id"], end["token"]) == (2, "</s>")
    assert {"config.json", "the tokenizer's eos_token"} <= set(end["from"])
    json.dumps(report)


def test_hub_name_is_quantized_under_its_commit(
    stories: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    commit = "0123456789abcdef0123456789abcdef01234567"
    snapshot = tmp_path / "hub" / commit

    def download(name: str, *, allow_patterns: list[str], **_: Any) -> str:
        assert name == "org/stories"
        assert "config.json" in allow_patterns
        shutil.copytree(stories, snapshot, copy_function=shutil.copyfile, dirs_exist_ok=True)
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert hub.resolve("org/stories").hub == ("org/stories", commit)
    model = ncl.load("org/stories", cache_dir=tmp_path / "cache")
    assert model.folder.name.startswith("stories-int4-g32-")
    source = json.loads((model.folder / "manifest.json").read_text(encoding="utf-8"))["source"]
    assert (source["hub"], source["revision"]) == ("org/stories", commit)


def test_several_answers_are_a_list_and_the_first_is_the_one_of_the_seed(model: ncl.Model) -> None:
    sampled: Any = {"temperature": 1.0, "max_new_tokens": 8}
    several: Any = model.generate(PROMPT, n=3, seed=4, **sampled)
    alone = [model.generate(PROMPT, seed=seed, **sampled) for seed in (4, 5, 6)]
    assert [reply.text for reply in several] == [reply.text for reply in alone]
    with pytest.raises(
        ConfigError, match=r"n=3 asks for several answers, and only generate gives several"
    ):
        model.stream(PROMPT, n=3, **sampled)
    with pytest.raises(ConfigError, match="n must be a positive integer, got 0"):
        model.generate(PROMPT, n=0, **sampled)


def test_one_text_has_a_vector_and_a_list_has_a_row_for_each(model: ncl.Model) -> None:
    hidden = model.architecture.hidden_size
    one, two = model.embed(PROMPT), model.embed([PROMPT, "A dog"], pooling="mean")
    assert (one.shape, two.shape) == ((hidden,), (2, hidden))
    assert one.equal(two[0])
    assert two.norm(dim=1).tolist() == pytest.approx([1, 1])
    assert model.embed([PROMPT], pooling="last", normalize=False).norm() != pytest.approx(1)


def test_an_engine_without_hidden_states_is_named(
    model: ncl.Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(type(model.decoder), "hidden_states")
    with pytest.raises(ConfigError, match="engine 'native' gives logits and no hidden states"):
        model.embed(PROMPT)


def test_a_text_is_scored_as_it_was_generated(model: ncl.Model) -> None:
    reply = model.generate(PROMPT, max_new_tokens=8, logprobs=True)
    assert reply.logprobs
    ids = [*model.tokenizer.encode(PROMPT), *reply.token_ids]
    one, (two, _) = model.score(ids), model.score([ids, ids[:4]])
    assert one == two
    assert one.logprobs[-8:] == pytest.approx(reply.logprobs, abs=1e-5)
    assert model.score(PROMPT).token_ids == tuple(ids[: reply.prompt_tokens])
