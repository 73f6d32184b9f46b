"""`neuralchat-lite serve`: models behind HTTP, in OpenAI's form."""

from __future__ import annotations

import ipaddress
import logging
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from neuralchat_lite.cli.options import LoadingGroup, WeightsGroup, option, with_groups
from neuralchat_lite.cli.replies import load_model, warn_without_template
from neuralchat_lite.cli.terminal import warn
from neuralchat_lite.errors import ConfigError

if TYPE_CHECKING:
    from neuralchat_lite.server.settings import Settings

EXAMPLE = "Example: [bold]neuralchat-lite serve Intel/neural-chat-7b-v3-2[/bold]"
SERVING, GUARDING, ANSWERS = "Serving", "Guarding", "Answers"
KEYS_LIMIT = 1 << 20  # bytes of a file with keys
LARGEST = 2**62  # bytes
LONGEST_GRACE = 1e6  # seconds
UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
SIZE = re.compile(r"(\d+(?:\.\d+)?) ?([KMGT]?)(?:iB|B)?", re.IGNORECASE)


@dataclass(frozen=True)
class GuardingGroup:
    """Who may ask, and for how much."""

    api_key_file: Annotated[
        Path | None,
        option(GUARDING, "A file with a key in each line; requests must bring one of them."),
    ] = None
    cors_origin: Annotated[
        list[str] | None,
        option(GUARDING, "Web pages of this origin may ask, or * (repeatable)."),
    ] = None
    allowed_host: Annotated[
        list[str] | None,
        option(
            GUARDING,
            "A name by which requests may reach it, behind a proxy (repeatable). Without keys, a "
            "server at a loopback address answers to addresses and private names alone.",
        ),
    ] = None
    max_queue: Annotated[
        int, option(GUARDING, "Answers of a model that may wait; then requests get a 429.")
    ] = 256
    max_batch: Annotated[
        int, option(GUARDING, "Answers of a model that are computed together.")
    ] = 64
    request_timeout: Annotated[float, option(GUARDING, "Seconds that a request may take.")] = 600.0
    max_body: Annotated[str, option(GUARDING, "Size of a request, such as 8M.")] = "8M"

    def settings(self, host: str, sampling: dict[str, Any]) -> Settings:
        from neuralchat_lite.server.settings import Settings

        named = tuple(self.allowed_host or ())
        return Settings(
            api_keys=() if self.api_key_file is None else keys_in(self.api_key_file),
            cors_origins=tuple(self.cors_origin or ()),
            allowed_hosts=named if named or is_loopback(host) else None,
            max_queue=self.max_queue,
            max_batch=self.max_batch,
            request_timeout=self.request_timeout,
            max_body_bytes=bytes_of(self.max_body, "--max-body"),
            sampling=sampling,
        )


@with_groups
def serve(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Folders, GGUF files or hub names.")
    ],
    *,
    model_name: Annotated[
        list[str] | None,
        option(SERVING, "What requests call a model (repeatable, in order). Default: its name."),
    ] = None,
    host: Annotated[str, option(SERVING, "Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, option(SERVING, "Port to listen at; 0: any that is free.")] = 8000,
    grace: Annotated[float, option(SERVING, "Seconds for running answers after SIGTERM.")] = 30.0,
    kv_memory: Annotated[
        str | None,
        option(SERVING, "Memory for keys and values of a model, such as 4G. Default: half of it."),
    ] = None,
    otlp_traces_endpoint: Annotated[
        str | None,
        option(SERVING, "Where OpenTelemetry's spans go, such as http://localhost:4318/v1/traces."),
    ] = None,
    guarding: GuardingGroup,
    temperature: Annotated[
        float | None,
        option(ANSWERS, "Where a request says none. Default: the model's makers', else 1."),
    ] = None,
    draft: Annotated[
        str | None, option(ANSWERS, "ngram: guess several tokens at once; no answer changes.")
    ] = None,
    weights: WeightsGroup,
    loading: LoadingGroup,
) -> None:
    """Answer requests over HTTP, in the form of OpenAI's API.

    The base URL for clients is [bold]http://localhost:8000/v1[/bold].

    SIGTERM ends it when the running answers are done.
    """
    require_packages()
    sampling = {"temperature": temperature, "draft": draft}
    settings = guarding.settings(host, {k: v for k, v in sampling.items() if v is not None})
    names = names_of(models, model_name)
    memory = None if kv_memory is None else bytes_of(kv_memory, "--kv-memory")
    if not 1 <= grace <= LONGEST_GRACE:
        raise ConfigError(f"--grace {grace:g} must be from 1 to {LONGEST_GRACE:g} seconds")
    from neuralchat_lite.server.app import create_app
    from neuralchat_lite.server.run import listen, run
    from neuralchat_lite.server.tracing import trace_requests, tracer_provider

    traces = None if otlp_traces_endpoint is None else tracer_provider(otlp_traces_endpoint)
    listening = listen(host, port)  # before a model is loaded
    loaded = {}
    for name, model in zip(names, models, strict=True):
        loaded[name] = load_model(model, weights, loading, kv_memory=memory)
        warn_without_template(loaded[name])
    show_log()
    app = create_app(loaded, settings)
    if traces is not None:
        trace_requests(app, traces)
    warn_if_open(host, settings.api_keys)
    address = f"[{host}]" if ":" in host else host
    warn(
        f"Listening at http://{address}:{listening.getsockname()[1]}/v1 "
        f"(models: {', '.join(names)})"
    )
    try:
        run(app, listening, grace)
    finally:
        if traces is not None:
            traces.shutdown()  # sends the last ones


def require_packages() -> None:
    try:
        import fastapi  # noqa: F401
        import openai  # noqa: F401
        import prometheus_client  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"serve needs packages that are not installed ({error.name}): "
            "run `pip install 'neuralchat_lite[serve]'`"
        ) from None


def names_of(models: list[str], given: list[str] | None) -> list[str]:
    """What requests call the models. Raises ConfigError for names that are not one for each."""
    if given and len(given) != len(models):
        raise ConfigError(
            f"{len(models)} models have {len(given)} names: give --model-name once for each model"
        )
    names = given or [name_of(model) for model in models]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(f"two models are called {name!r}: name each with --model-name")
        if not name or not name.isprintable():
            raise ConfigError(f"{name!r} is no name for a model: give another --model-name")
    return names


def name_of(model: str) -> str:
    """A hub name as it is; the last part of a path."""
    path = Path(model)
    if not path.exists():
        return model
    return path.stem if path.suffix == ".gguf" else path.resolve().name


def keys_in(file: Path) -> tuple[str, ...]:
    """The keys of a file, one in each line; lines that begin with # are notes."""
    from neuralchat_lite.files.regular import read_regular, remedy_of

    try:
        text = read_regular(file, KEYS_LIMIT).decode()
    except OSError as error:
        raise ConfigError(
            f"the keys in {file} cannot be read ({error.strerror or error}): {remedy_of(error)}"
        ) from None
    except UnicodeDecodeError:
        raise ConfigError(f"{file} is no text: give a file with a key in each line") from None
    lines = [line.strip() for line in text.splitlines()]
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise ConfigError(
            f"{file} has no keys: write one in each line, or leave --api-key-file out"
        )
    if file.stat().st_mode & 0o077:
        warn(f"{file} can be read by others: run `chmod 600 {file}`")
    return keys


def bytes_of(text: str, name: str) -> int:
    found = SIZE.fullmatch(text.strip())
    size = float(found[1]) * UNITS[found[2].upper()] if found else 0.0
    if not 1 <= size <= LARGEST:
        raise ConfigError(f"{name} {text!r} is no size: give bytes, or a number with K, M or G")
    return int(size)


def warn_if_open(host: str, keys: tuple[str, ...]) -> None:
    if keys or is_loopback(host):
        return
    warn(
        f"WARNING: everybody who reaches {host} may use this server: give --api-key-file, or "
        "listen at 127.0.0.1"
    )


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def show_log() -> None:
    """One line a request on stderr, and what goes wrong."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    for name in ("neuralchat_lite.server", "uvicorn.error"):
        logger = logging.getLogger(name)
        logger.addHandler(handler)
        logger.propagate = False
    logging.getLogger("neuralchat_lite.server").setLevel(logging.INFO)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
