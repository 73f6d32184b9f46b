"""The arguments that commands share, each defined once.

An argument of several commands is an `Annotated` type. A group of options that belong together is
a dataclass: a command takes it as one parameter, and `with_groups` shows its fields to typer.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, is_dataclass
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

from neuralchat_lite.cli.terminal import unescaped
from neuralchat_lite.errors import ConfigError


def option(panel: str, help: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help, rich_help_panel=panel, **more)


TEXT, SAMPLING, WEIGHTS, RUN = "Text", "Sampling", "Weights", "Running"

ModelArgument = Annotated[
    str, typer.Argument(metavar="MODEL", help="Folder, GGUF file or hub name.")
]
MaxNewTokens = Annotated[int, option(TEXT, "Tokens to generate at most.")]
System = Annotated[str | None, option(TEXT, "The system message.")]
Adapter = Annotated[
    list[str] | None,
    option(WEIGHTS, "Merge this LoRA adapter first (folder or hub name; repeatable, in order)."),
]
Calibration = Annotated[
    Path | None,
    option(WEIGHTS, 'Texts to calibrate with: text, or JSONL with "text" or "messages".'),
]
CalibrationSamples = Annotated[
    int | None,
    option(WEIGHTS, "How many pieces of it to take (128; sensitivity: 4, and 4 to check)."),
]
CalibrationLength = Annotated[
    int | None, option(WEIGHTS, "Tokens of a piece (512; sensitivity: 128).")
]
CalibrationSeed = Annotated[int | None, option(WEIGHTS, "Which pieces are taken (0).")]
Revision = Annotated[str | None, option(RUN, "Branch, tag or commit of a hub name.")]
ShowTimings = Annotated[bool, option(RUN, "Say on stderr what it took.", "--timings")]


@dataclass(frozen=True)
class GenerationGroup:
    """How tokens are chosen and where the text ends."""

    stop: Annotated[
        list[str] | None,
        option(
            TEXT, "End at this text (repeatable); \\n is a newline, \\t a tab, \\\\ a backslash."
        ),
    ] = None
    temperature: Annotated[
        float | None,
        option(SAMPLING, "0 (default) takes the likeliest token; chat asks the model's makers."),
    ] = None
    top_k: Annotated[int | None, option(SAMPLING, "Sample from the k likeliest (0: off).")] = None
    top_p: Annotated[
        float | None, option(SAMPLING, "Sample from the likeliest that sum to p (1: off).")
    ] = None
    min_p: Annotated[
        float | None, option(SAMPLING, "Drop tokens below p times the likeliest (0: off).")
    ] = None
    repetition_penalty: Annotated[
        float | None, option(SAMPLING, "Penalise what has occurred (1: off).")
    ] = None
    presence_penalty: Annotated[
        float | None, option(SAMPLING, "Lower what the answer has, -2 to 2 (0: off).")
    ] = None
    frequency_penalty: Annotated[
        float | None,
        option(SAMPLING, "Lower it as often as the answer has it, -2 to 2 (0: off)."),
    ] = None
    logit_bias: Annotated[
        list[str] | None,
        option(SAMPLING, "ID=BIAS: add -100 to 100 to the logit of a token (repeatable)."),
    ] = None
    seed: Annotated[int | None, option(SAMPLING, "Make sampling repeatable.")] = None
    min_new_tokens: Annotated[
        int | None, option(TEXT, "Tokens before the answer may end (0: off).")
    ] = None
    draft: Annotated[
        str | None,
        option(
            TEXT,
            "Guess several tokens at once; no answer changes. ngram: what came after the same "
            "tokens before; or a smaller model with the same vocabulary (folder or hub name).",
        ),
    ] = None
    json_schema: Annotated[
        Path | None, option(TEXT, "The answer is JSON that the schema in this file allows.")
    ] = None
    regex: Annotated[
        str | None, option(TEXT, "The answer as a whole matches this regular expression.")
    ] = None
    template_arg: Annotated[
        list[str] | None,
        option(TEXT, "NAME=VALUE: a variable of the chat template, such as enable_thinking=false."),
    ] = None

    def options(self, max_new_tokens: int, **assumed: Any) -> dict[str, Any]:
        """The arguments of `GenerationOptions` that were given. Raises ConfigError for a bad value,
        so that it is reported before a model is loaded.

        assumed: values for that check of options that were not given
        """
        from neuralchat_lite import GenerationOptions
        from neuralchat_lite.generation.speculation import DRAFTS

        stop = tuple(unescaped(text, "--stop") for text in self.stop or ())
        given = {name: value for name, value in asdict(self).items() if value is not None}
        given |= {"stop": stop, "max_new_tokens": max_new_tokens}
        if self.json_schema:
            given["json_schema"] = read_schema(self.json_schema)
        if self.logit_bias:
            given["logit_bias"] = pairs(self.logit_bias, "--logit-bias", "42=-5")
        if variables := given.pop("template_arg", None):
            given["chat_template_kwargs"] = pairs(
                variables, "--template-arg", "enable_thinking=false"
            )
        named = given.get("draft") not in DRAFTS  # a model, which `load_draft` loads
        checked = {k: v for k, v in given.items() if not (named and k == "draft")}
        GenerationOptions.of({**assumed, **checked})
        return given


def read_schema(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise ConfigError(
            f"--json-schema {str(path)!r} cannot be read ({why}): give a file with a JSON schema"
        ) from None


def pairs(texts: list[str], option: str, example: str) -> dict[str, Any]:
    """NAME=VALUE as it is typed: a value is JSON, or where it is none a text."""
    found = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise ConfigError(
                f"{option} {text!r} needs a name and a value: write it as {example!r}"
            )
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


@dataclass(frozen=True)
class WeightsGroup:
    """How weights are quantized, and the precision that activations have."""

    config_file: Annotated[
        Path | None,
        option(
            WEIGHTS,
            "A JSON file with a quantization configuration; the other options replace its own.",
            "--config",
        ),
    ] = None
    weight_dtype: Annotated[
        str | None, option(WEIGHTS, "int4 (default), int4_fullrange or int8.")
    ] = None
    group_size: Annotated[
        int | None,
        option(WEIGHTS, "Columns that share a scale: 32 (default), 64, 128, -1 (a row)."),
    ] = None
    scheme: Annotated[
        str | None,
        option(WEIGHTS, "sym, asym, affine or affine8. Default: affine8 for int4, else sym."),
    ] = None
    scale_dtype: Annotated[str | None, option(WEIGHTS, "fp16 (default), bf16 or fp32.")] = None
    override: Annotated[
        list[str] | None,
        option(
            WEIGHTS,
            "PATTERN=int8, or PATTERN=int8,group_size=64,scheme=asym: other settings for modules "
            "whose full name matches (repeatable; the first match counts).",
        ),
    ] = None
    compute_dtype: Annotated[
        str | None,
        option(
            WEIGHTS,
            "Precision of activations: bf16, fp32, int8, or auto, which is int8 for int4 weights "
            "and bf16 for int8 ones. Default: of a quantized folder what it names, of a checkpoint "
            "auto; `quantize` writes bf16.",
        ),
    ] = None

    def config(self) -> dict[str, Any] | None:
        """The options that were given. None if there were none: the configuration that is stored
        in a quantized folder then applies. Raises ConfigError for a bad value."""
        from neuralchat_lite import WeightOnlyQuantConfig

        given = {name: value for name, value in asdict(self).items() if value is not None}
        noted = {} if self.config_file is None else options_in(given.pop("config_file"))
        if "override" in given:
            overrides = [override_of(text) for text in given.pop("override")]
            replaced = {pattern for pattern, _ in overrides}
            kept = WeightOnlyQuantConfig(**noted).overrides
            overrides += [(e.pattern, e.given()) for e in kept if e.pattern not in replaced]
            given["overrides"] = overrides
        given = {**noted, **given}
        WeightOnlyQuantConfig(**given)
        return given or None


def override_of(text: str) -> tuple[str, dict[str, Any]]:
    """An override as it is typed, such as "lm_head=int8" or "*.down_proj=group_size=64"; its values
    are checked elsewhere."""
    pattern, _, rest = text.partition("=")
    options = matrix_options(rest)
    if not pattern or not options:
        raise ConfigError(
            f"--override {text!r} needs a pattern and its settings: write it as 'lm_head=int8'"
        )
    return pattern, options


def matrix_options(text: str) -> dict[str, Any]:
    """Settings of a matrix as they are typed, such as "int8,group_size=64"."""
    options: dict[str, Any] = {}
    for part in filter(None, text.split(",")):
        name, equals, value = part.partition("=")
        if not equals:
            name, value = "weight_dtype", name
        number = name == "group_size" and value.lstrip("-").isdecimal()
        options[name] = int(value) if number else value
    return options


def options_in(file: Path) -> dict[str, Any]:
    """The options in a configuration file. Raises ConfigError when it has none that can be used."""
    from neuralchat_lite.files.json_file import JSON_LIMIT
    from neuralchat_lite.files.regular import read_regular, remedy_of
    from neuralchat_lite.quantization.config import WeightOnlyQuantConfig, options_of_json

    try:
        options = options_of_json(read_regular(file, JSON_LIMIT).decode("utf-8"))
        WeightOnlyQuantConfig(**options)
    except OSError as error:
        raise ConfigError(
            f"the configuration {file} cannot be read ({error.strerror or error}): "
            f"{remedy_of(error)}"
        ) from None
    except ValueError as error:  # ConfigError too
        raise ConfigError(f"{file}: {error}") from None
    return options


def calibration_option(
    file: Path | None, samples: int | None, length: int | None, seed: int | None
) -> dict[str, Any] | None:
    """The options of `calibration`. Raises ConfigError when they are given without a file."""
    given = {"samples": samples, "length": length, "seed": seed}
    given = {name: value for name, value in given.items() if value is not None}
    if file is None:
        if given:
            name = next(iter(given))
            raise ConfigError(
                f"--calibration-{name} {given[name]} needs texts: give --calibration FILE too"
            )
        return None
    return {"file": str(file), **given}


@dataclass(frozen=True)
class LoadingGroup:
    """What is loaded besides the model's name, and what runs it."""

    dtype: Annotated[str | None, option(WEIGHTS, "fp32 or bf16: do not quantize.")] = None
    adapter: Adapter = None
    engine: Annotated[
        str, option(RUN, "native; torch, ipex and itrex are for comparison (see `engines list`).")
    ] = "native"
    threads: Annotated[int | None, option(RUN, "Default: the physical cores that we may use.")] = (
        None
    )
    context_length: Annotated[int | None, option(RUN, "Positions to allow.")] = None
    kv_cache_dtype: Annotated[
        str | None, option(RUN, "Keys and values in bf16, fp32, or int8 for half the memory.")
    ] = None
    revision: Revision = None


def with_groups(command: Callable[..., None]) -> Callable[..., None]:
    """Give typer a signature in which the fields of a group stand in place of the group.

    A parameter whose type is a dataclass is a group. The command gets it filled in.
    """
    types = get_type_hints(command, include_extras=True)
    flat: list[inspect.Parameter] = []
    groups: dict[str, Any] = {}
    for parameter in inspect.signature(command).parameters.values():
        kind = types[parameter.name]
        if is_dataclass(kind):
            groups[parameter.name] = kind
            flat += group_parameters(kind)
        else:
            flat.append(parameter.replace(annotation=kind, kind=parameter.KEYWORD_ONLY))

    @wraps(command)
    def flattened(**given: Any) -> None:
        for name, group in groups.items():
            given[name] = group(**{field.name: given.pop(field.name) for field in fields(group)})
        command(**given)

    flattened.__signature__ = inspect.Signature(flat)  # type: ignore[attr-defined]
    flattened.__annotations__ = {parameter.name: parameter.annotation for parameter in flat}
    return flattened


def group_parameters(group: Any) -> list[inspect.Parameter]:
    types = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=types[field.name],
        )
        for field in fields(group)
    ]
