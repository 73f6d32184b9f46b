"""tokenizer.json decides the token ids, whatever class a folder names.

transformers' AutoTokenizer builds a tokenizer from `tokenizer_class` or `model_type` and drops
parts of tokenizer.json, other parts in other versions. Ids that differ from those of the training
give worse answers and no error. So the file itself is run here, and the other files only add what
it cannot say: chat template, names of special tokens, lengths. The ids are compared at load.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import tokenizers
import transformers

from neuralchat_lite.checkpoints.chat_template import render_messages
from neuralchat_lite.errors import CheckpointError, ConfigError
from neuralchat_lite.files.json_file import read_json, read_optional_json
from neuralchat_lite.files.names import TOKENIZER

# What is taken over from tokenizer_config.json, beside the names of special tokens. Everything else
# there chooses how a class rebuilds the tokenizer.
KEPT_SETTINGS = (
    "added_tokens_decoder",
    "additional_special_tokens",
    "chat_template",
    "clean_up_tokenization_spaces",
    "extra_special_tokens",
    "model_input_names",
    "model_max_length",
    "padding_side",
    "truncation_side",
)
# A decoder that generates text is padded on the left, and knows no token types.
DEFAULTS = {"padding_side": "left", "model_input_names": ["input_ids", "attention_mask"]}
# Fields of a token. tokenizers prints the names of others on stdout, as they are.
TOKEN_FIELDS = {
    "__type", "content", "lstrip", "normalized", "rstrip", "single_word", "special"
}  # fmt: skip
SPECIAL = "special_tokens_map.json"
NAMED_FILES = (SPECIAL, "added_tokens.json", "chat_template.jinja")
# What the versions and classes have cut differently: digits, runs of spaces, newlines,
# contractions, other scripts, bytes; each also after a special token.
PROBES = (
    "In 2023, 1234567 x 89",
    "two  spaces,   three,\tand a tab ",
    "one\ntwo\n\n\nthree \n four\r\n",
    " It's WE'LL don't",
    "naïve Ünïcode ﬁ 你好 🙂",
    "def f(x):\n    return x  # {[<|>]}",
)
PROBED_TOKENS = 64  # special tokens tried, at most
# Options of `apply_chat_template` for the text that is rendered.
AFTER_RENDERING = (
    "max_length",
    "padding",
    "return_dict",
    "return_tensors",
    "tokenize",
    "tokenizer_kwargs",
    "truncation",
)
TOO_LONG = "sequence-length-is-longer-than-the-specified-maximum"  # said once already
NOT_RENDERED = ("return_assistant_tokens_mask", "sanitize_control_tokens")


class PreTrainedTokenizerFast(transformers.PreTrainedTokenizerFast):
    """transformers' class, with chat templates rendered within limits. It has the same name, as
    `save_pretrained` writes that down, and every version can read it."""

    def apply_chat_template(  # type: ignore[override]  # versions differ in it
        self, conversation: Any, tools: Any = None, documents: Any = None, **options: Any
    ) -> Any:
        """As in transformers. Raises PromptError where the template fails or meets a limit,
        ConfigError for an option that only a training needs."""
        for name in NOT_RENDERED:
            if options.get(name):
                raise ConfigError(
                    f"{name}={options[name]!r} is not supported here: leave it out, or use a "
                    "tokenizer of transformers"
                )
        theirs = {name: options.pop(name) for name in AFTER_RENDERING if name in options}
        several = isinstance(conversation, list | tuple) and any(
            isinstance(each, list | tuple) or hasattr(each, "messages") for each in conversation
        )
        texts = [
            render_messages(self, each, tools=tools, documents=documents, **options)
            for each in (conversation if several else [conversation])
        ]
        # What is rendered is a message now, and its text the whole template.
        rendered = [[{"role": "user", "content": text}] for text in texts]
        return super().apply_chat_template(
            rendered if several else rendered[0],
            chat_template="{{ messages[0]['content'] }}",
            **theirs,
        )


def read_tokenizer_json(folder: Path, options: Mapping[str, Any]) -> Any:
    """The tokenizer of a folder with tokenizer.json: ids from that file, the rest from the others.

    options: settings of transformers' tokenizers, instead of those in tokenizer_config.json

    Raises CheckpointError where the ids are not those of tokenizer.json, and whatever the parsers
    raise for a damaged file.
    """
    backend = read_backend(folder / "tokenizer.json")
    wanted = probe_ids(backend)
    settings = {"tokenizer_config.json": settings_of(folder)}
    if (folder / SPECIAL).exists():
        settings[SPECIAL] = with_known_fields(read_json(folder / SPECIAL))
    linked = [name for name in ("tokenizer.json", *NAMED_FILES) if name not in settings]
    with staged(folder, linked, settings) as place:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(
            place, local_files_only=True, trust_remote_code=False, **options
        )
    add_tokens(backend, tokenizer, folder)
    tokenizer._tokenizer = backend
    # The context's length is checked here, and the error says more than this warning would.
    tokenizer.deprecation_warnings[TOO_LONG] = True
    tokenizer.name_or_path = tokenizer.init_kwargs["name_or_path"] = str(folder)
    compare(tokenizer, wanted, folder)
    return tokenizer


@contextmanager
def staged(
    folder: Path, linked: Sequence[str], written: Mapping[str, Mapping[str, Any]]
) -> Iterator[Path]:
    """A temporary folder with what transformers is to read, and nothing else.

    linked: names of files of `folder`, as far as they exist
    written: name -> contents of JSON files
    """
    with tempfile.TemporaryDirectory(prefix="neuralchat-lite-") as temporary:
        place = Path(temporary)
        for name in linked:
            if (folder / name).exists():
                (place / name).symlink_to((folder / name).resolve())
        for name, value in written.items():
            (place / name).write_text(json.dumps(value), encoding="utf-8")
        yield place


def settings_of(folder: Path) -> dict[str, Any]:
    """What counts of tokenizer_config.json, and the template of chat_template.json."""
    given = read_optional_json(folder / "tokenizer_config.json")
    kept = {
        key: value
        for key, value in given.items()
        if value is not None
        and (key in KEPT_SETTINGS or (key.endswith("_token") and not isinstance(value, bool)))
    }
    settings = {
        **DEFAULTS,
        **with_known_fields(kept),
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    template = folder / "chat_template.json"
    if template.exists() and not (folder / "chat_template.jinja").exists():
        settings["chat_template"] = template_of(template)
    return settings


def with_known_fields(value: Any) -> Any:
    """Settings whose tokens have only the fields that a token has."""
    if isinstance(value, list):
        return [with_known_fields(each) for each in value]
    if not isinstance(value, dict):
        return value
    is_token = isinstance(value.get("content"), str)
    return {
        key: with_known_fields(each)
        for key, each in value.items()
        if not is_token or key in TOKEN_FIELDS
    }


def template_of(path: Path) -> Any:
    """The template in a chat_template.json."""
    template = read_json(path).get("chat_template")
    if not isinstance(template, str | list | dict):
        raise CheckpointError(
            f"{path} has no chat_template, expected "
            '{"chat_template": "..."}: download it again, or remove it'
        )
    return template


def read_backend(path: Path) -> Any:
    """The `tokenizers.Tokenizer` of a file. Some are saved with the padding and truncation of
    their training, which transformers sets aside as well."""
    backend = tokenizers.Tokenizer.from_file(str(path))
    backend.no_truncation()
    backend.no_padding()
    return backend


def add_tokens(backend: Any, tokenizer: Any, folder: Path) -> None:
    """Give `backend`, from tokenizer.json, the tokens that the other files add to it: those that
    `tokenizer` has too.

    Raises CheckpointError when such a token would not get the id that the files promise.
    """
    known = {token.content for token in backend.get_added_tokens_decoder().values()}
    added = tokenizer._tokenizer.get_added_tokens_decoder()
    for index, token in sorted(added.items()):
        if token.content in known:
            continue
        backend.add_tokens([token])
        given = backend.token_to_id(token.content)
        promised = promised_id(folder, token.content)
        wanted = index if promised is None else promised
        if given != wanted:
            raise CheckpointError(
                f"{folder / 'tokenizer.json'} lacks the token {token.content!r}. Other files give "
                f"it the id {wanted}, but its next free id is {given}: tokenizer.json, "
                "tokenizer_config.json and added_tokens.json do not belong together, download "
                "them again"
            )


def promised_id(folder: Path, content: str) -> int | None:
    """The id that tokenizer_config.json or added_tokens.json give a token."""
    decoder = read_optional_json(folder / "tokenizer_config.json").get("added_tokens_decoder")
    for index, token in (decoder or {}).items():
        if (token.get("content") if isinstance(token, dict) else token) == content:
            return int(index)
    return read_optional_json(folder / "added_tokens.json").get(content)


def probe_texts(backend: Any) -> list[str]:
    special = [
        token.content
        for _, token in sorted(backend.get_added_tokens_decoder().items())
        if token.special
    ]
    chosen = [*special[: PROBED_TOKENS // 2], *special[-PROBED_TOKENS // 2 :]]
    after = [f"{token}{text}" for token in chosen[:1] for text in PROBES]
    return [*PROBES, *after, *(f"a{token}b {token} 1\n" for token in dict.fromkeys(chosen))]


def probe_ids(backend: Any) -> dict[tuple[str, bool], list[int]]:
    """(probe text, with the special tokens around it?) -> its ids, by tokenizer.json alone."""
    return {
        (text, around): backend.encode(text, add_special_tokens=around).ids
        for text in probe_texts(backend)
        for around in (False, True)
    }


def compare(tokenizer: Any, wanted: Mapping[tuple[str, bool], list[int]], folder: Path) -> None:
    """Raise CheckpointError unless a tokenizer gives the ids that are wanted."""
    for (text, around), ids in wanted.items():
        found = list(tokenizer.encode(text, add_special_tokens=around))
        if found != ids:
            raise CheckpointError(
                f"the tokenizer in {folder} gives {text!r} the ids {found[:12]}, but "
                f"tokenizer.json gives {ids[:12]} (transformers {transformers.__version__}): "
                "the tokens that tokenizer_config.json, special_tokens_map.json or "
                "added_tokens.json add do not belong to this tokenizer.json; download all of them "
                "again, or remove those three"
            )


assert {"tokenizer.json", "tokenizer_config.json", *NAMED_FILES} <= set(TOKENIZER)
