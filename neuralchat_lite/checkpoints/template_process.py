"""The process that renders chat templates. It reads requests as lines of JSON, and answers so: a
template with variables is rendered, and of one without the names of its variables are said.

It runs as a script with jinja2 and the standard library alone, so that it starts quickly. A
template is a program from a model folder: here it has a limit of memory and of CPU time, and where
it takes more than either, or ends the process in another way, the caller goes on.
"""

from __future__ import annotations

import json
import resource
import signal
import sys
from datetime import datetime
from functools import lru_cache
from typing import Any

# Jinja itself takes some 30 MB. Beyond that a template works with copies of what it is given.
BASE_BYTES = 512 << 20
BYTES_PER_BYTE = 32
# Of the text: a template repeats what it is given once or twice, and adds a system message.
BASE_TEXT = 4 << 20
TEXT_PER_BYTE = 8


@lru_cache(maxsize=1)
def environment() -> Any:
    """What transformers compiles templates in."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """{% generation %} marks what a model has said, which only a training needs."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    class Namespace(jinja2.utils.Namespace):
        """Without names of Python's internals."""

        def __setitem__(self, name: str, value: Any) -> None:
            if name.startswith("_"):
                raise jinja2.exceptions.SecurityError(f"a namespace has no {name!r}")
            super().__setitem__(name, value)

    def raise_exception(message: str) -> None:
        raise jinja2.exceptions.TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value,
            ensure_ascii=ensure_ascii,
            indent=indent,
            separators=separators,
            sort_keys=sort_keys,
        )

    made = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    made.filters["tojson"] = tojson
    made.globals.update(
        raise_exception=raise_exception,
        strftime_now=lambda form: datetime.now().strftime(form),
        dict=lambda *values, **named: dict(*values, **named),
        namespace=Namespace,
    )
    return made


@lru_cache(maxsize=8)
def compiled(source: str) -> Any:
    return environment().from_string(source)


def names(source: str) -> list[str]:
    """The variables that a template reads and does not set itself."""
    from jinja2.meta import find_undeclared_variables

    read = find_undeclared_variables(environment().parse(source))
    return sorted(read - set(environment().globals))


def answer(line: bytes) -> dict[str, Any]:
    request = json.loads(line)
    try:
        if "variables" not in request:
            return {"names": names(request["template"])}
        text = compiled(request["template"]).render(**request["variables"])
        text.encode()  # half a surrogate pair has no tokens
    except MemoryError:
        return {"limit": "memory"}
    # A template may raise anything.
    except Exception as error:
        return {"error": [type(error).__name__, str(error)[:2000]]}
    if len(text) > BASE_TEXT + TEXT_PER_BYTE * len(line):
        return {"limit": "text"}
    return {"text": text}


def allowed(asked: int) -> int:
    """Bytes of address space to allow: fewer where the user has set a lower limit."""
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    return asked if hard == resource.RLIM_INFINITY else min(asked, hard)


def serve(cpu_seconds: float) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    while line := sys.stdin.buffer.readline():
        # A spent timer ends the process: nothing inside it can hold that up.
        signal.setitimer(signal.ITIMER_PROF, cpu_seconds)
        most = allowed(BASE_BYTES + BYTES_PER_BYTE * len(line))
        resource.setrlimit(resource.RLIMIT_AS, (most, hard))
        reply = answer(line)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
        signal.setitimer(signal.ITIMER_PROF, 0)
        sys.stdout.buffer.write(json.dumps(reply).encode() + b"\n")
        sys.stdout.buffer.flush()


if __name__ == "__main__":
    sys.path[:] = [*sys.path[1:], *sys.argv[2:]]
    serve(float(sys.argv[1]))
