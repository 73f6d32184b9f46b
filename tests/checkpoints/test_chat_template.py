"""Chat templates give transformers' texts, and none takes the process with it."""

from __future__ import annotations

import copy
import os
import pickle
import signal
import threading
from typing import Any

import pytest
import transformers

from neuralchat_lite.checkpoints import chat_template
from neuralchat_lite.checkpoints.chat_template import TemplateRefusal, render_messages
from neuralchat_lite.checkpoints.tokenizer import load_tokenizer
from neuralchat_lite.errors import ConfigError, PromptError
from neuralchat_lite.generation.prompt import encode_prompt

from . import tokenizer_folders as made

MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " What is <b> 'é' 🙂?\n"},
    {"role": "assistant", "content": "Nothing. "},
    {"role": "user", "content": "And?"},
]
ORDINARY = {
    "chatml": made.CHATML,
    "special tokens": "{{ bos_token }}{{ messages[1].content | trim }}{{ eos_token }}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}"
    "{{ ns.n }}{{ m['content'] }}{% endfor %}",
    "macro": "{% macro say(m) %}[{{ m.role }}] {{ m.content }}{% endmacro %}"
    "{% for m in messages %}{{ say(m) }}{% endfor %}",
    "tojson": "{{ messages | tojson(indent=2) }}{{ messages[1] | tojson }}",
    "loop controls": "{% for m in messages %}{% if loop.index > 2 %}{% break %}{% endif %}"
    "{{ m.content }}{% endfor %}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content }}{% endgeneration %}"
    "{% endfor %}",
    "date": "{{ strftime_now('%Y') }} {{ messages[0].content }}",
    "blocks": "  {% if add_generation_prompt %}\n  yes\n  {% endif %}\n{{ tools }} {{ documents }}",
    "unknown names": "{{ nothing }}{% if nothing is defined %}x{% endif %}{{ dict(a=1) }}",
}
HOSTILE = {
    "memory at once": "{{ 'a' * 10 ** 10 }}",
    "memory by doubling": "{% set ns = namespace(x='aaaa') %}{% for i in range(60) %}"
    "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "memory by formatting": "{{ '%1000000000d' % 1 }}",
    "memory by a filter": "{{ 'a' | center(10 ** 11) }}",
    "memory by replacing": "{{ ('a' * 10 ** 5).replace('a', 'b' * 10 ** 5) }}",
    "time in loops": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}"
    "{% endfor %}",
    "time in one number": "{{ n ** (10 ** 9) if n else 3 ** (10 ** 9) }}",
    "time in compiling": "{{ 7 ** (7 ** 9) }}",
    "too much text": "{{ 'a' * 9000000 }}",
}
BROKEN = {
    "recursion": "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}",
    "parentheses": "{{ " + "(" * 3000 + "1" + ")" * 3000 + " }}",
    "syntax": "{% if",
    "refusal": "{{ raise_exception('no system') }}",
    "python's own": "{{ ''.__class__.__mro__ }}",
    "other files": "{% include '/etc/passwd' %}",
    "half a pair": "{{ '\ud83d' }}",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("template") / "model"
    return made.write_folder(place, made.byte_level_style(), "PreTrainedTokenizerFast")


@pytest.fixture(scope="module")
def tokenizer(folder) -> Any:
    return load_tokenizer(folder)


@pytest.mark.parametrize("template", ORDINARY.values(), ids=ORDINARY)
def test_the_text_is_that_of_transformers(tokenizer, folder, template):
    theirs: Any = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    for options in ({}, {"add_generation_prompt": True}, {"chat_template": template}):
        options = {"chat_template": template, **options}
        want = theirs.apply_chat_template(MESSAGES, tokenize=False, **options)
        assert render_messages(tokenizer, MESSAGES, **options) == want
        assert tokenizer.apply_chat_template(MESSAGES, tokenize=False, **options) == want


@pytest.mark.parametrize(
    "options",
    [
        {"return_dict": False},
        {"return_dict": True, "add_generation_prompt": True},
        {"return_dict": True, "return_tensors": "pt"},
        {"tokenize": False, "continue_final_message": True},
        {"return_dict": False, "truncation": True, "max_length": 5},
    ],
    ids=str,
)
def test_the_tokenizers_method_takes_transformers_options(tokenizer, folder, options):
    theirs: Any = transformers.PreTrainedTokenizerFast.from_pretrained(folder)
    theirs.model_input_names = tokenizer.model_input_names
    want = theirs.apply_chat_template(MESSAGES, **options)
    found = tokenizer.apply_chat_template(MESSAGES, **options)
    assert str(found) == str(want)
    several = tokenizer.apply_chat_template([MESSAGES, MESSAGES[:2]], tokenize=False)
    assert several == theirs.apply_chat_template([MESSAGES, MESSAGES[:2]], tokenize=False)


def test_an_option_for_training_is_refused_by_name(tokenizer):
    with pytest.raises(ConfigError, match="return_assistant_tokens_mask=True"):
        tokenizer.apply_chat_template(MESSAGES, return_assistant_tokens_mask=True)


@pytest.mark.parametrize("template", HOSTILE.values(), ids=HOSTILE)
def test_a_template_beyond_its_limits_is_a_prompt_error(tokenizer, template):
    with pytest.raises(PromptError, match=r"template (takes|makes) more than .*: give token ids"):
        render_messages(tokenizer, MESSAGES, chat_template=template)
    assert render_messages(tokenizer, MESSAGES).startswith("<s>system")


@pytest.mark.parametrize("template", BROKEN.values(), ids=BROKEN)
def test_a_broken_template_is_a_prompt_error(tokenizer, template):
    with pytest.raises(TemplateRefusal, match="refuses these messages"):
        render_messages(tokenizer, MESSAGES, chat_template=template)


def test_every_way_to_a_prompt_has_the_limits(tokenizer):
    hostile = copy.deepcopy(tokenizer)
    hostile.chat_template = HOSTILE["memory at once"]
    with pytest.raises(PromptError, match="512 MB"):
        encode_prompt(MESSAGES[1:2], hostile, 1000)
    with pytest.raises(PromptError, match="512 MB"):
        hostile.apply_chat_template(MESSAGES)


def test_ctrl_c_ends_a_template_at_once(tokenizer, monkeypatch):
    renderer = chat_template.Renderer()
    monkeypatch.setattr(chat_template, "RENDERER", renderer)
    render_messages(tokenizer, MESSAGES)
    assert renderer.process is not None
    rendering = renderer.process
    os.kill(rendering.pid, signal.SIGSTOP)  # whatever it does, it does not answer
    timer = threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        render_messages(tokenizer, MESSAGES)
    timer.join()
    assert rendering.poll() is not None
    assert render_messages(tokenizer, MESSAGES)


def test_a_process_that_was_killed_is_replaced(tokenizer):
    render_messages(tokenizer, MESSAGES)
    process = chat_template.RENDERER.process
    assert process is not None
    process.kill()
    process.wait()
    assert render_messages(tokenizer, MESSAGES)


def test_a_fork_renders_with_a_process_of_its_own(tokenizer):
    render_messages(tokenizer, MESSAGES)
    parents = chat_template.RENDERER.process
    child = os.fork()
    if child == 0:
        try:
            right = bool(render_messages(tokenizer, MESSAGES))
            os._exit(0 if right and chat_template.RENDERER.process is not parents else 1)
        finally:
            os._exit(2)
    assert os.waitpid(child, 0)[1] == 0
    assert parents is not None and parents.poll() is None


def test_threads_take_turns(tokenizer):
    found: list[str] = []

    def ask(number: int) -> None:
        found.append(render_messages(tokenizer, [{"role": "user", "content": f"{number}"}]))

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == [f"<s>user\n{number}</s>\n" for number in range(8)]


def test_the_tokenizer_is_copied_and_pickled(tokenizer):
    for twin in (copy.deepcopy(tokenizer), pickle.loads(pickle.dumps(tokenizer))):
        assert twin.apply_chat_template(MESSAGES, tokenize=False).startswith("<s>system")
