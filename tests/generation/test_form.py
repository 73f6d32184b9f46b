"""Answers that have a form: each that ends has it, and none is without."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from neuralchat_lite import load
from neuralchat_lite.checkpoints.tokenizer import load_tokenizer
from neuralchat_lite.engines.engine import OneByOne
from neuralchat_lite.errors import ConfigError
from neuralchat_lite.generation.batch import Batch, Limits
from neuralchat_lite.generation.form import form_of
from neuralchat_lite.generation.job import Job
from neuralchat_lite.generation.options import GenerationOptions
from neuralchat_lite.generation.prompt import Prompt
from neuralchat_lite.generation.sequence import Reply
from neuralchat_lite.generation.sequence import Sequence as One
from neuralchat_lite.generation.several import generate
from neuralchat_lite.kernels.kv_format import PAGE

from .schemas import random_schema

pytest.importorskip("llguidance", reason="needs the extra structured")
jsonschema = pytest.importorskip("jsonschema", reason="needs jsonschema")

ROOT = Path(__file__).parents[2]
NANO = ROOT / "examples/nano/model"
SEVERAL = [[{"role": "user", "content": f"calculate {n} + 1"}] for n in (100, 7, 23, 520)]
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 9}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}


class Dice(OneByOne):
    """Its logits are drawn, those of what ends strings, lists and numbers higher."""

    when_not_finite = "."

    def __init__(self, tokenizer: Any, seed: int) -> None:
        size = len(tokenizer)
        self.architecture = SimpleNamespace(
            eos_ids=(tokenizer.eos_token_id,), max_positions=9999, vocab_size=size, stated_eos={}
        )
        self.context_length = 9999
        self.random = torch.Generator().manual_seed(seed)
        self.likelier = ending(tokenizer)

    def new_cache(self, capacity: int = 256) -> Any:
        cache = SimpleNamespace(length=0)
        cache.truncate = lambda length: setattr(cache, "length", length)
        return cache

    def forward(self, ids: Sequence[int], cache: Any, *, all_logits: bool = False) -> torch.Tensor:
        cache.length += len(ids)
        drawn = torch.rand((len(self.likelier),), generator=self.random)
        return 5 * drawn + self.likelier

    def bytes_per_token(self, context: int) -> int:
        return 1


@cache
def ending(tokenizer: Any) -> torch.Tensor:
    texts = [tokenizer.decode([index]) for index in range(len(tokenizer))]
    found = torch.tensor([6.0 * bool(re.search(r'["}\],]', text)) for text in texts])
    found[tokenizer.eos_token_id] = 20
    return found


def answer(tokenizer: Any, seed: int, **options: Any) -> Reply:
    settings = GenerationOptions(**{"max_new_tokens": 400, **options})
    return generate(One(Dice(tokenizer, seed), tokenizer, Prompt((5,)), settings))


@pytest.fixture(scope="module")
def nano_tokenizer() -> Any:
    return load_tokenizer(NANO)


@pytest.fixture(scope="module")
def byte_level_tokenizer() -> Any:
    """Of the kind that SmolLM2 and Llama 3 have, with long tokens full of quotes and braces."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import PreTrainedTokenizerFast

    trained = ByteLevelBPETokenizer()
    texts = [path.read_text("utf-8") for path in sorted(ROOT.glob("tests/generation/*.py"))[:12]]
    made = [json.dumps(random_schema(Random(seed)), indent=2) for seed in range(200)]
    trained.train_from_iterator([*texts, *made], 3000, special_tokens=["<|end|>"])
    return PreTrainedTokenizerFast(tokenizer_object=trained._tokenizer, eos_token="<|end|>")


def spelled_for(tokenizer: Any, schema: Any) -> Any:
    """With letters of ASCII alone, where a vocabulary has no others."""
    if tokenizer.decode(tokenizer.encode("ä"), skip_special_tokens=True) == "ä":
        return schema
    text = json.dumps(schema, ensure_ascii=False)
    return json.loads(text.translate(str.maketrans("äöß", "aos")))


def check_schemas(tokenizer: Any, seeds: range) -> tuple[int, int]:
    """(answers that have ended, schemas that were refused); fails where one does not validate."""
    ended = refused = 0
    for seed in seeds:
        schema = spelled_for(tokenizer, random_schema(Random(seed)))
        given = GenerationOptions(json_schema=schema)
        try:
            form_of(given, tokenizer, len(tokenizer), ())
        except ConfigError:
            refused += 1
            continue
        reply = answer(tokenizer, seed, json_schema=schema)
        if reply.finish_reason == "length":
            continue
        ended += 1
        said = json.loads(reply.text)
        # RFC 3339 has seconds up to 60, and Python has not.
        checker = jsonschema.FormatChecker(("date", "email", "uuid", "ipv4", "ipv6"))
        jsonschema.Draft202012Validator(schema, format_checker=checker).validate(said)
    return ended, refused


@pytest.mark.parametrize("kind", ["nano_tokenizer", "byte_level_tokenizer"])
def test_every_answer_that_ends_is_what_its_schema_allows(
    kind: str, request: pytest.FixtureRequest
) -> None:
    ended, refused = check_schemas(request.getfixturevalue(kind), range(12))
    assert ended >= 8 and refused <= 2, (ended, refused)


@pytest.mark.long
@pytest.mark.parametrize("kind", ["nano_tokenizer", "byte_level_tokenizer"])
def test_every_answer_of_500_schemas_is_what_they_allow(
    kind: str, request: pytest.FixtureRequest
) -> None:
    ended, refused = check_schemas(request.getfixturevalue(kind), range(1000, 1500))
    assert ended >= 400 and refused <= 50, (ended, refused)


CHAINS = """
from pathlib import Path
from neuralchat_lite.checkpoints.tokenizer import load_tokenizer
from neuralchat_lite.errors import ConfigError
from neuralchat_lite.generation.form import form_of
from neuralchat_lite.generation.options import GenerationOptions
tokenizer, n = load_tokenizer(Path({nano!r})), 20_000
rules = [f"r{{i}}: r{{i + 1}}" for i in range(n)]
schemas = {{f"s{{i}}": {{"items": {{"$ref": f"#/$defs/s{{i + 1}}"}}}} for i in range(n)}}
for form in (
    {{"grammar": "\\n".join(["start: r0", *rules, f"r{{n}}: /a/"])}},
    {{"json_schema": {{"$ref": "#/$defs/s0", "$defs": {{**schemas, f"s{{n}}": {{}}}}}}}},
):
    try:
        form_of(GenerationOptions(**form), tokenizer, len(tokenizer), ())
        print("kept")
    except ConfigError:
        print("refused")
"""


def test_a_long_chain_of_references_does_not_end_the_process() -> None:
    ran = subprocess.run(
        [sys.executable, "-c", CHAINS.format(nano=str(NANO))], capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr[-500:]
    assert ran.stdout.split() == ["kept", "refused"]


def test_a_grammar_that_is_too_long_is_refused(nano_tokenizer: Any) -> None:
    given = GenerationOptions(choice=[f"word {number}" for number in range(100_000)])
    with pytest.raises(ConfigError, match=r"choice is a grammar of .* 1048576"):
        form_of(given, nano_tokenizer, len(nano_tokenizer), ())


def test_a_form_is_kept_whatever_it_is_given_as(nano_tokenizer: Any) -> None:
    for seed in range(8):
        assert re.fullmatch(
            "[0-9]{3}(-x)?", answer(nano_tokenizer, seed, regex="[0-9]{3}(-x)?").text
        )
        texts = ['a "quoted" one', "a \\ b\nc", "a", "ab"]
        assert answer(nano_tokenizer, seed, choice=texts).text in texts
        grammar = 'start: "sum: " NUMBER ("," NUMBER){2}\nNUMBER: /[1-9][0-9]?/'
        said = answer(nano_tokenizer, seed, grammar=grammar)
        assert re.fullmatch("sum: [1-9][0-9]?(,[1-9][0-9]?){2}", said.text)
        reply = answer(nano_tokenizer, seed, json_object=True)
        assert reply.finish_reason == "length" or isinstance(json.loads(reply.text), dict)


def test_an_answer_ends_where_its_form_ends_and_nowhere_else(nano_tokenizer: Any) -> None:
    whole = answer(nano_tokenizer, 0, choice=["yes, sir"])
    assert (whole.text, whole.finish_reason) == ("yes, sir", "stop")
    either = answer(nano_tokenizer, 0, regex="[0-9]{2}[0-9]?")
    assert (len(either.text), either.finish_reason) == (2, "eos"), "an end is by far the likeliest"
    cut = answer(nano_tokenizer, 0, regex="[0-9]{9}", max_new_tokens=4)
    assert (len(cut.text), cut.finish_reason) == (4, "length")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"json_schema": {"not": {}}}, r'json_schema cannot be honoured: .*"not"'),
        ({"json_schema": {"type": "strin"}}, "Invalid type: strin"),
        ({"json_schema": {"x-guidance": {"lenient": True}, "not": {}}}, '"not"'),
        ({"json_schema": {"type": "string", "format": "colour"}}, "Unknown format: colour"),
        ({"json_schema": {"$ref": "http://x.invalid/y"}}, "cannot be honoured"),
        ({"json_schema": {"minimum": 3, "maximum": 2, "type": "integer"}}, "Unsatisfiable"),
        ({"json_schema": {"const": float("nan")}}, "json_schema is no JSON"),
        ({"json_schema": "{"}, "json_schema must be a JSON schema"),
        ({"json_schema": True}, "json_schema must be a JSON schema"),
        ({"regex": "a("}, "unclosed group"),
        ({"regex": "(?=a)b"}, "look-around"),
        ({"regex": ""}, "regex must be a regular expression"),
        ({"grammar": "start: nothing"}, "unknown name"),
        ({"choice": ["a", ""]}, "choice must be one text or more, none of them empty"),
        ({"choice": []}, "choice must be one text or more"),
        ({"choice": ["a"], "regex": "b"}, "regex and choice both say"),
        ({"regex": "b", "stop": "c", "ignore_eos": True}, "stop, ignore_eos could break the form"),
        ({"json_object": True, "min_new_tokens": 3}, "min_new_tokens could break"),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    options: dict[str, Any], said: str, nano_tokenizer: Any
) -> None:
    with pytest.raises(ConfigError, match=said):
        answer(nano_tokenizer, 0, **options)


def test_a_field_has_one_spelling(byte_level_tokenizer: Any) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    for key, allowed in (("b", True), ("a", False), ("\\u0061", False)):
        given = GenerationOptions(json_schema=schema)
        form = form_of(given, byte_level_tokenizer, len(byte_level_tokenizer), ())
        assert form is not None
        ids = byte_level_tokenizer.encode(f'{{"a":1,"{key}":"x"}}')
        assert (form.beginning(ids) == ids) == allowed, key


def test_a_pydantic_class_is_a_schema(nano_tokenizer: Any) -> None:
    pydantic = pytest.importorskip("pydantic", reason="needs pydantic")

    class Person(pydantic.BaseModel):
        name: str = pydantic.Field(max_length=5)
        age: int = pydantic.Field(ge=0, lt=100)

    reply = answer(nano_tokenizer, 1, json_schema=Person)
    assert 0 <= Person.model_validate_json(reply.text).age < 100
    text = json.dumps(Person.model_json_schema())
    assert answer(nano_tokenizer, 1, json_schema=text).token_ids == reply.token_ids

    class Odd(pydantic.BaseModel):
        thread: object
        call: type(print)  # type: ignore[valid-type]
        model_config = pydantic.ConfigDict(arbitrary_types_allowed=True)

    with pytest.raises(ConfigError, match="pydantic has no JSON schema of Odd"):
        answer(nano_tokenizer, 1, json_schema=Odd)


def test_processors_that_leave_no_token_are_named(nano_tokenizer: Any) -> None:
    def no_digits(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        digits = nano_tokenizer.convert_tokens_to_ids(list("0123456789"))
        scores[0, digits] = -torch.inf
        return scores

    with pytest.raises(ConfigError, match="no token is left that regex allows here"):
        answer(nano_tokenizer, 0, regex="[0-9]{3}", logits_processors=[no_digits])


def test_a_tokenizer_without_a_description_is_refused() -> None:
    class Letters:
        eos_token_id = None

        def __len__(self) -> int:
            return 128

    with pytest.raises(ConfigError, match="can read, and not Letters"):
        form_of(GenerationOptions(regex="a"), Letters(), 128, ())  # type: ignore[arg-type]


OPTIONS: list[dict[str, Any]] = [
    {"json_schema": PERSON},
    {"json_schema": PERSON, "temperature": 1.5, "seed": 3, "top_k": 9},
    {"regex": "[a-z]{4,9} and then some [0-9]+ of them"},
    {"choice": ["certainly not", "certainly", "of course"], "repetition_penalty": 1.3},
]


@pytest.fixture(scope="module")
def nano(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return load(NANO, "int4", cache_dir=tmp_path_factory.mktemp("cache"))


def test_an_answer_with_a_form_is_the_same_alone_and_in_company(nano: Any) -> None:
    def ask(case: int) -> Reply:
        options = {"max_new_tokens": 150, **OPTIONS[case]}
        reply: Reply = nano.generate(SEVERAL[case], **options)
        return reply

    cases = range(len(OPTIONS))
    alone = [ask(case) for case in cases]
    with ThreadPoolExecutor(8) as pool:
        together = list(pool.map(ask, [*cases, *cases]))
    for case, reply in enumerate(together):
        assert reply.token_ids == alone[case % len(OPTIONS)].token_ids
    jsonschema.validate(json.loads(alone[1].text), PERSON)


def test_drafts_and_logprobs_change_no_answer_with_a_form(nano: Any) -> None:
    for case, options in enumerate(OPTIONS):
        given = {"max_new_tokens": 60, **options}
        plain = nano.generate(SEVERAL[case], **given)
        for more in ({"draft": "ngram"}, {"logprobs": True}, {"draft": nano, "logprobs": True}):
            reply = nano.generate(SEVERAL[case], **given, **more)
            assert (reply.token_ids, reply.text) == (plain.token_ids, plain.text), more


def test_drafts_that_the_form_forbids_are_not_fed(nano_tokenizer: Any) -> None:
    decoder = Dice(nano_tokenizer, 0)
    given = GenerationOptions(regex="(ab){9}c?", draft="ngram")
    ids = nano_tokenizer.encode("a b a c a b", add_special_tokens=False)
    one = One(decoder, nano_tokenizer, Prompt(tuple(ids)), given)
    assert one.form is not None
    letters = nano_tokenizer.convert_tokens_to_ids(["a", "b", "a", "a"])
    assert one.form.beginning(letters) == letters[:3]
    assert one.form.beginning(letters[1:]) == []


def test_what_a_form_forces_is_fed_in_one_step(nano: Any) -> None:
    def steps() -> int:
        return int(nano.report()["scheduler"]["steps"])

    text = "this sentence is said whole, and no other"
    before = steps()
    reply = nano.generate(SEVERAL[0], choice=[text])
    took = steps() - before
    assert (reply.text, reply.finish_reason) == (text, "stop")
    assert took < len(reply.token_ids) / 2
    before = steps()
    slow = nano.generate(SEVERAL[0], choice=[text], logprobs=True)
    assert slow.token_ids == reply.token_ids and len(slow.logprobs) == len(slow.token_ids)
    assert steps() - before == len(slow.token_ids), "each token has its own logits"


def test_an_answer_with_a_form_is_the_same_after_it_gave_way(nano: Any) -> None:
    page = nano.decoder.new_cache().bytes_for(PAGE)
    batch = Batch(nano.decoder, Limits(kv_bytes=5 * page))
    given = GenerationOptions(
        regex="([a-z]{6} or else ){8}", max_new_tokens=150, temperature=1.0, seed=1
    )

    def jobs() -> list[Job]:
        prompts = [tuple(range(first, first + PAGE)) for first in (300, 301)]
        return [Job(One(nano.decoder, nano.tokenizer, Prompt(ids), given)) for ids in prompts]

    alone, together = jobs(), jobs()
    for one in alone:
        run(Batch(nano.decoder, Limits()), [one])
    run(batch, together)
    assert batch.counts.preemptions > 0, "else this shows nothing"
    assert [one.error for one in together] == [None, None]
    for one, other in zip(alone, together, strict=True):
        assert one.sequence.ids == other.sequence.ids
        assert one.sequence.finish_reason == "stop"


def run(batch: Batch, jobs: list[Job]) -> None:
    batch.arrivals.extend(jobs)
    while batch.step():
        pass
