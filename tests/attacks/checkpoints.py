"""Mutated checkpoints: their configuration, tokenizer, index and safetensors files.

Right is what transformers' own model, rounded like ours, and tokenizer.json give for the same
folder; or the answer of the unmutated folder, when transformers refuses the mutated one.
"""

from __future__ import annotations

import functools
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import neuralchat_lite
from neuralchat_lite.errors import PromptError
from neuralchat_lite.generation.prompt import encode_prompt

from . import bases, nasty, oracle
from .headers import spoil_weights
from .outcome import LIBRARY, ORACLE, Case, Outcome, attempt, refusal

MESSAGES = [{"role": "user", "content": "calculate 7 *  8"}]
PROMPT = "### User:\ncalculate 2023 +  17\n### Assistant:\n"
NEW_TOKENS = 6
# What config.json may say beyond what the bases have.
CONFIG_KEYS = (
    *("rope_scaling", "rope_parameters", "rope_theta", "sliding_window", "use_sliding_window"),
    *("max_window_layers", "layer_types", "attention_bias", "mlp_bias", "partial_rotary_factor"),
    *("quantization_config", "auto_map", "torch_dtype", "dtype", "pad_token_id", "tokenizer_class"),
    *("original_max_position_embeddings", "attention_dropout", "logit_scale", "use_qk_norm"),
    *("transformers_version", "is_encoder_decoder", "num_experts", "head_dim", "vision_config"),
    *("hidden_activation", "attention_multiplier", "norm_eps", "text_config", "max_length"),
)
ROPE_KEYS = (
    *("rope_type", "type", "factor", "low_freq_factor", "high_freq_factor", "beta_fast"),
    *("beta_slow", "attention_factor", "mscale", "mscale_all_dim", "truncate", "rope_theta"),
    *("original_max_position_embeddings", "partial_rotary_factor", "short_factor"),
)
ROPE_VALUES = (*nasty.VALUES, *("yarn", "linear", "llama3", "default", "dynamic", "longrope"))
MODEL_TYPES = ("mistral", "llama", "qwen2", "qwen3", "gemma", "mixtral", "phi3", "gpt2", "", None)
CLASSES = (
    *("LlamaTokenizer", "LlamaTokenizerFast", "PreTrainedTokenizerFast", "GPT2TokenizerFast"),
    *("Qwen2Tokenizer", "TokenizersBackend", "GPT2Tokenizer", "BertTokenizer", "T5TokenizerFast"),
    *("../evil.Tokenizer", "", None, 7),
)
TEMPLATES = (
    "{% for i in range(10**9) %}{% endfor %}",
    "{{ 'x' * 10**10 }}",
    "{% for m in messages %}{{ m.content }}{% endfor %}",
    "{{ messages[5].content }}",
    "{{ raise_exception('no\\n\x1b[31m') }}",
    "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "{% if",
    "",
)
Mutator = Callable[[random.Random, Path], str]


def config_value(rng: random.Random, folder: Path) -> str:
    return nasty.edit_json(folder / "config.json", lambda config: nasty.change_place(rng, config))


def config_key(rng: random.Random, folder: Path) -> str:
    key, value = rng.choice(CONFIG_KEYS), rng.choice(nasty.VALUES)
    return nasty.edit_json(folder / "config.json", setter(key, value))


def setter(key: str, value: Any) -> Callable[[Any], str]:
    def change(holder: Any) -> str:
        if not isinstance(holder, dict):
            return "nothing to change"
        holder[key] = value
        return f"{key} = {repr(value)[:60]}"

    return change


def rope(rng: random.Random, folder: Path) -> str:
    kind = rng.choice(["yarn", "linear", "llama3"])
    given = {"rope_type": kind, "factor": rng.choice([2.0, 4, 1.0])}
    if kind == "llama3":
        given |= bases.LLAMA3
    for _ in range(rng.choice([0, 1, 1, 2])):
        given[rng.choice(ROPE_KEYS)] = rng.choice(ROPE_VALUES)
    key = rng.choice(["rope_scaling", "rope_scaling", "rope_parameters"])
    return nasty.edit_json(folder / "config.json", setter(key, given))


def window(rng: random.Random, folder: Path) -> str:
    def change(config: Any) -> str:
        config["sliding_window"] = rng.choice([1, 2, 3, 127, 2**31, 2**63, 0, -1, 4.5, *[None] * 2])
        config["use_sliding_window"] = rng.choice([True, True, False, 1])
        config["max_window_layers"] = rng.choice([0, 1, 2, 28, -1])
        if rng.random() < 0.3:
            kinds = ["full_attention", "sliding_attention", "chunked_attention"]
            config["layer_types"] = rng.choices(kinds, [4, 4, 1], k=rng.choice([2, 2, 2, 1, 3]))
        return f"sliding_window = {config['sliding_window']} and its kin"

    return nasty.edit_json(folder / "config.json", change)


def model_type(rng: random.Random, folder: Path) -> str:
    setting = setter("model_type", rng.choice(MODEL_TYPES))
    return nasty.edit_json(folder / "config.json", setting)


def generation_config(rng: random.Random, folder: Path) -> str:
    keys = ("eos_token_id", "bos_token_id", "max_length", "temperature", "stop_strings", "x")
    values = (*nasty.VALUES, [2, 5], [2, 10**9], 678, 679, -5)
    setting = setter(rng.choice(keys), rng.choice(values))
    return nasty.edit_json(folder / "generation_config.json", setting)


def tokenizer_json(rng: random.Random, folder: Path) -> str:
    def change(value: Any) -> str:
        return nasty.change_place(rng, value, depth=rng.choice([1, 2, 3, 9]))

    return nasty.edit_json(folder / "tokenizer.json", change)


def vocabulary(rng: random.Random, folder: Path) -> str:
    def change(value: Any) -> str:
        words = value["model"]["vocab"]
        one, other = rng.sample(list(words), 2)
        act = rng.randrange(5)
        if act == 0:
            words[one], words[other] = words[other], words[one]
        elif act == 1:
            words[one] = rng.choice([words[other], 678, 679, 10**6, 2**32, -1, "1", None])
        elif act == 2:
            del words[one]
        elif act == 3:
            added = {"id": rng.choice([679, 700, 5, 2**31]), "content": rng.choice(["<a>", "user"])}
            flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
            value["added_tokens"].append({**added, **{flag: rng.random() < 0.5 for flag in flags}})
        else:
            value["model"]["merges"] = value["model"]["merges"][: rng.randrange(50)]
        return f"vocabulary changed at {one!r} and {other!r}"

    try:
        return nasty.edit_json(folder / "tokenizer.json", change)
    except (KeyError, TypeError, AttributeError, ValueError):
        return "tokenizer.json left as an earlier mutation made it"


def tokenizer_config(rng: random.Random, folder: Path) -> str:
    def change(value: Any) -> str:
        act = rng.randrange(4)
        if act == 0:
            return nasty.change_place(rng, value)
        if act == 1:
            return setter("tokenizer_class", rng.choice(CLASSES))(value)
        if act == 2:
            return setter("chat_template", rng.choice(TEMPLATES))(value)
        keys = ("added_tokens_decoder", "model_max_length", "add_bos_token", "add_prefix_space")
        more = ("auto_map", "extra_special_tokens", "additional_special_tokens", "eos_token")
        more += ("split_special_tokens", "legacy", "padding_side", "pad_token", "use_fast")
        values = (*nasty.VALUES, {"5": {"content": "a"}}, ["<s>"], "</s>", "<s>", {"content": "x"})
        return setter(rng.choice(keys + more), rng.choice(values))(value)

    try:
        return nasty.edit_json(folder / "tokenizer_config.json", change)
    except (TypeError, AttributeError):
        return "tokenizer_config.json left as an earlier mutation made it"


def template(rng: random.Random, folder: Path) -> str:
    (folder / "chat_template.jinja").write_text(rng.choice(TEMPLATES))
    return "chat_template.jinja replaced"


def weights(rng: random.Random, folder: Path) -> str:
    files = sorted(folder.glob("model*.safetensors"))
    return spoil_weights(rng, rng.choice(files)) if files else "no weights"


def index(rng: random.Random, folder: Path) -> str:
    path = folder / "model.safetensors.index.json"
    if not path.exists():
        path.write_text('{"metadata": {}, "weight_map": {"model.norm.weight": "a.safetensors"}}')
        return "an index beside model.safetensors"

    def change(value: Any) -> str:
        if rng.random() < 0.4:
            return nasty.change_place(rng, value)
        names = value["weight_map"]
        files = sorted(set(names.values()))
        name = rng.choice(list(names))
        outside = ["../a.safetensors", "/dev/zero", "", ".", "a\0b", "n" * 5000, "config.json"]
        names[name] = rng.choice([*files, *files, *outside])
        return f"{name} lies in {names[name][:40]!r}"

    try:
        return nasty.edit_json(path, change)
    except (KeyError, TypeError, AttributeError, IndexError):
        return "the index left as an earlier mutation made it"


def stale(rng: random.Random, folder: Path) -> str:
    """Files that should not be there any more, or not yet."""
    files = sorted(folder.glob("model*.safetensors"))
    if not files:
        return "no weights"
    path = rng.choice(files)
    act = rng.randrange(4)
    if act == 0 and len(files) > 1:
        shutil.copyfile(path, folder / "model.safetensors")
        return "a shard again as model.safetensors"
    if act == 1:
        path.unlink()
        return f"{path.name} is missing"
    if act == 2:
        shutil.copyfile(path, folder / "model-00009-of-00009.safetensors")
        return "a shard that nobody names"
    (folder / "model.safetensors.index.json").unlink(missing_ok=True)
    return "the index is missing"


def other_file(rng: random.Random, folder: Path) -> str:
    """A file that the bases do not have, with odd contents."""
    names = ("special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt")
    names += ("tokenizer.model", "chat_template.json", "adapter_config.json", "manifest.json")
    names += ("quantization_config.json", "pytorch_model.bin", "params.json", "config.json.bak")
    path = folder / rng.choice(names)
    if not path.exists():
        path.write_text(nasty.dumps(rng.choice([*nasty.VALUES, {"eos_token": "</s>"}])))
    if rng.random() < 0.3:
        return f"{path.name} added; {nasty.spoil_file(rng, path)}"
    return f"{path.name} added"


def any_file(rng: random.Random, folder: Path) -> str:
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return nasty.spoil_file(rng, rng.choice(files)) if files else "no files"


MUTATORS: dict[str, tuple[Mutator, int]] = {  # name -> what it does, and how often
    "config value": (config_value, 6),
    "config key": (config_key, 4),
    "rope": (rope, 4),
    "window": (window, 2),
    "model type": (model_type, 1),
    "generation config": (generation_config, 2),
    "tokenizer.json": (tokenizer_json, 4),
    "vocabulary": (vocabulary, 2),
    "tokenizer config": (tokenizer_config, 4),
    "template": (template, 1),
    "weights": (weights, 9),
    "index": (index, 3),
    "stale": (stale, 2),
    "other file": (other_file, 2),
    "any file": (any_file, 5),
}


def mutate(rng: random.Random, folder: Path, table: dict[str, tuple[Mutator, int]]) -> list[str]:
    """One to three mutations of a folder, in words."""
    chances = [often for _, often in table.values()]
    done = []
    for name in rng.choices(list(table), chances, k=rng.choice([1, 1, 1, 2, 3])):
        done.append(f"{name}: {table[name][0](rng, folder)}")
    return done


def ask(model: Any) -> oracle.Answer:
    """A few tokens from the public API, the logits of the same tokens fed at once, and the ids of a
    conversation, unless that is refused."""
    reply = model.generate(PROMPT, max_new_tokens=NEW_TOKENS)
    prompt = ids_of(model, PROMPT)
    whole = [*prompt, *reply.token_ids]
    logits = model.decoder.forward(whole, model.decoder.new_cache(), all_logits=True)
    try:
        chat: tuple[int, ...] | None = ids_of(model, MESSAGES)
    except PromptError as error:
        if (said := refusal(error)).kind != "refused":
            raise AssertionError(said.what) from error
        chat = None
    return oracle.Answer(prompt, reply.token_ids, reply.text, logits, chat)


def ids_of(model: Any, prompt: Any) -> tuple[int, ...]:
    return encode_prompt(prompt, model.tokenizer, model.architecture.vocab_size).ids


class Checkpoints:
    """Load a mutated checkpoint through a cache of its own, and ask it."""

    name = "checkpoints"

    def prepare(self, root: Path) -> None:
        self.bases = {name: bases.make_base(name, root / name) for name in bases.CONFIGS}
        self.known: dict[tuple[str, str], oracle.Answer] = {}
        for name, folder in self.bases.items():
            for weight_dtype in ("int4", "int8"):
                self.known[name, weight_dtype] = ask(load(folder, weight_dtype, root / "cache"))

    def unmutated(self) -> list[str]:
        """What is wrong with the answers of the bases themselves."""
        found = []
        for (name, weight_dtype), answer in self.known.items():
            folder = self.bases[name]
            witness = functools.partial(rounded_witness, folder, weight_dtype)
            if (said := judged(folder, witness, answer)) is not None:
                found.append(f"{name} in {weight_dtype}: {said}")
        return found

    def run(self, case: Case) -> Outcome:
        rng = random.Random(f"{self.name}/{case.seed}")
        family = rng.choice(list(self.bases))
        weight_dtype = rng.choice(["int4", "int8"])
        folder = case.place / family
        shutil.copytree(self.bases[family], folder)
        case.done += [family, weight_dtype, *mutate(rng, folder, MUTATORS)]
        case.begins(LIBRARY)
        answer, failed = attempt(lambda: ask(load(folder, weight_dtype, case.place / "cache")))
        case.begins(ORACLE)
        if failed is not None:
            return failed
        known = self.known[family, weight_dtype]
        return verdict(answer, known, folder, lambda: rounded_witness(folder, weight_dtype))


def rounded_witness(folder: Path, weight_dtype: str) -> Any:
    return oracle.round_weights(oracle.load_witness(folder), weight_dtype)


def verdict(
    answer: oracle.Answer,
    known: oracle.Answer,
    tokenizer: Path,
    witness: Callable[[], Any],
    tolerance: float = oracle.TOLERANCE,
) -> Outcome:
    """Whether an answer is right: as the witnesses say, or, when they refuse the folder, the
    `known` one of the unmutated folder.

    tokenizer: the folder with the tokenizer
    """
    usual = "as unmutated" if same(answer, known) else "as the witness"
    try:
        said = judged(tokenizer, witness, answer, tolerance)
    except oracle.NoWitness as error:
        if usual == "as unmutated":
            return Outcome("right", usual, f"no witness: {error}")
        return Outcome("wrong", "no witness", f"{answer.text!r}; {error}")
    if said is None:
        return Outcome("right", usual)
    return Outcome("wrong", " ".join(said.split()[:2]), said)


def load(folder: Path, weight_dtype: str, cache: Path, **more: Any) -> Any:
    options = {"weight_dtype": weight_dtype, "compute_dtype": "fp32"}
    return neuralchat_lite.load(folder, options, cache_dir=cache, threads=1, **more)


def same(answer: oracle.Answer, known: oracle.Answer) -> bool:
    """Whether this is the unmutated folder's answer."""
    return (
        (answer.prompt_ids, answer.ids, answer.text) == (known.prompt_ids, known.ids, known.text)
        and answer.chat_ids in (None, known.chat_ids)
        and oracle.differing(answer.logits, known.logits, 1e-6) is None
    )


def judged(
    tokenizer: Path,
    witness: Callable[[], Any],
    answer: oracle.Answer,
    tolerance: float = oracle.TOLERANCE,
) -> str | None:
    """How an answer differs from the witnesses'; None when it does not. Raises NoWitness."""
    said = oracle.wrong_tokens(tokenizer, PROMPT, MESSAGES, answer)
    if said is not None:
        return said
    model = witness()
    try:
        theirs = oracle.logits_of(model, [*answer.prompt_ids, *answer.ids])
    except Exception as error:
        raise oracle.NoWitness(f"{type(error).__name__}: {str(error)[:200]}") from None
    return oracle.differing(answer.logits, theirs, tolerance)
