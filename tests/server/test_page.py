"""The page, in a browser: what it shows and sends, and that nothing a model writes is markup."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import neuralchat_lite as ncl

from ..patience import patience
from .page_server import MODEL, PAGE, Chunk, Refused, Stub, delta, stub_server, written

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SECONDS = 20


# --- Without a browser


@pytest.mark.parametrize("file", sorted(PAGE.iterdir()), ids=lambda file: file.name)
def test_nothing_comes_from_elsewhere_and_no_text_becomes_markup(file: Any) -> None:
    text = file.read_text(encoding="utf-8")
    addresses = set(re.findall(r"https?://[\w.]+", text)) - {"http://www.w3.org"}  # a namespace
    assert not addresses
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b", text)


def test_the_document_has_no_code_or_style_of_its_own() -> None:
    document = (PAGE / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<style|\sstyle=|\son\w+=|javascript:", document)
    assert all("src=" in tag for tag in re.findall(r"<script[^>]*>", document))


def test_every_file_that_is_named_is_there() -> None:
    document = (PAGE / "index.html").read_text(encoding="utf-8")
    named = set(re.findall(r'(?:src|href)="page/([^"]+)"', document))
    for file in PAGE.glob("*.js"):
        named |= set(re.findall(r'from "\./([^"]+)"', file.read_text(encoding="utf-8")))
    assert named | {"index.html"} == {file.name for file in PAGE.iterdir()}


# --- In a browser


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    sync_api = pytest.importorskip("playwright.sync_api", reason="the test extra has it")
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip("no Chromium: apt-get install chromium")
    # Chromium has no sandbox for root, and little shared memory in containers.
    flags = ["--disable-dev-shm-usage", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=found, args=flags)
        yield running
        running.close()


@pytest.fixture
def stub() -> Iterator[Stub]:
    with stub_server() as made:
        yield made


class Tab:
    """The page, and the steps that tests share."""

    def __init__(self, page: Any, stub: Stub) -> None:
        self.page, self.stub = page, stub
        page.set_default_timeout(1000 * patience(SECONDS))

    def open(self) -> Tab:
        self.page.goto(self.stub.address)
        return self

    def ask(self, text: str, end: bool = True) -> Tab:
        self.page.fill("#question", text)
        self.page.press("#question", "Enter")
        return self.ended() if end else self

    def ended(self) -> Tab:
        """Waits for the end of the answer that was asked for."""
        return self.until(
            "!document.querySelector('#send').hidden"
            " && !document.querySelector('[aria-busy=true]')"
            " && document.querySelector('#trouble p, .message:last-child.assistant .figures')"
            "?.textContent"
        )

    def until(self, condition: str) -> Tab:
        """Playwright's own waiting evaluates text inside the page, which the policy forbids."""
        limit = time.monotonic() + patience(SECONDS)
        while not self.page.evaluate(condition):
            assert time.monotonic() < limit, f"{condition} in {self.page.inner_text('body')}"
            time.sleep(0.02)
        return self

    def sees(self, words: str) -> Tab:
        return self.until(f"document.body.innerText.includes({json.dumps(words)})")

    def texts(self) -> list[str]:
        return [text.strip() for text in self.page.locator(".message > .text").all_inner_texts()]

    def press(self, words: str, within: str = "body") -> Tab:
        self.page.locator(within).get_by_role("button", name=words, exact=True).last.click()
        return self

    def trouble(self) -> str:
        self.page.wait_for_selector("#trouble p")
        return str(self.page.inner_text("#trouble p"))

    def set(self, **values: str) -> Tab:
        for name, value in values.items():
            self.page.eval_on_selector(
                f"#{name}",
                "(f, value) => { f.value = value; f.dispatchEvent(new Event('change')); }",
                value,
            )
        return self


@pytest.fixture
def tab(browser: Any, stub: Stub) -> Iterator[Tab]:
    """A tab of a browser that has seen nothing. Fails if the page broke its policy or threw."""
    context = browser.new_context(viewport={"width": 1000, "height": 700}, color_scheme="light")
    context.grant_permissions(["clipboard-read", "clipboard-write"])
    page = context.new_page()
    broken: list[str] = []
    page.on("pageerror", lambda error: broken.append(str(error)))
    page.on("console", lambda said: broken.append(said.text) if "olicy" in said.text else None)
    page.on(
        "request",
        lambda asked: None if asked.url.startswith(stub.address) else broken.append(asked.url),
    )
    yield Tab(page, stub)
    context.close()
    assert not broken


def held(text: str, until: threading.Event) -> Iterator[Chunk]:
    """An answer that goes on only when the test says so."""
    yield delta(role="assistant", content=None)
    yield delta(content=text)
    until.wait(patience(SECONDS))
    # A connection that was closed is noticed by the second write.
    for _ in range(200):
        yield delta(content=".")
        time.sleep(0.01)


def test_an_answer_appears_while_it_is_written(tab: Tab, stub: Stub) -> None:
    until = threading.Event()
    stub.answer = lambda body: held("The first words", until)
    tab.open().ask("Hello", end=False)
    tab.sees("The first words")
    assert tab.page.locator("[aria-busy=true]").count() == 1
    until.set()


def test_an_answer_has_its_figures_and_the_context_its_share(tab: Tab, stub: Stub) -> None:
    stub.answer = lambda body: written("x" * 70)  # ten pieces
    tab.open().ask("Hello")
    figures = tab.page.inner_text(".message:last-child .figures")
    assert figures.startswith("10 tokens · 13 tokens/s · first after")
    assert tab.page.inner_text("#status") == "Context: 20 of 200 tokens (10 %)"
    assert stub.requests[0]["stream_options"] == {"include_usage": True}


def test_an_answer_that_reached_its_limit_says_so(tab: Tab, stub: Stub) -> None:
    stub.answer = lambda body: written("Once upon", finish="length")
    tab.open().ask("Hello")
    assert "cut at the limit of tokens" in tab.page.inner_text(".message:last-child .figures")


@pytest.mark.parametrize("way", ["Escape", "button"])
def test_a_stopped_answer_keeps_its_beginning_and_frees_the_server(
    tab: Tab, stub: Stub, way: str
) -> None:
    until = threading.Event()
    stub.answer = lambda body: held("A long story", until)
    tab.open().ask("Hello", end=False)
    tab.sees("A long story")
    if way == "Escape":
        tab.page.keyboard.press("Escape")
    else:
        tab.press("Stop")
    tab.ended()
    until.set()
    assert stub.left.wait(patience(SECONDS))
    assert tab.texts() == ["Hello", "A long story"]
    assert "stopped" in tab.page.inner_text(".message:last-child .figures")
    assert tab.page.evaluate("document.activeElement.id") == "question"


def test_regenerate_asks_the_same_again(tab: Tab, stub: Stub) -> None:
    answers = iter(["One", "Two"])
    stub.answer = lambda body: written(next(answers))
    tab.open().ask("Say a number").press("Regenerate")
    tab.sees("Two")
    assert tab.ended().texts() == ["Say a number", "Two"]
    assert stub.requests[0]["messages"] == stub.requests[1]["messages"]


def test_an_edited_question_goes_on_from_there(tab: Tab, stub: Stub) -> None:
    stub.answer = lambda body: written(f"to {body['messages'][-1]['content']}")
    tab.open().ask("one").ask("two")
    tab.page.locator(".message").first.get_by_role("button", name="Edit your message").click()
    tab.page.fill(".edit textarea", "three")
    tab.page.press(".edit textarea", "Enter")
    tab.sees("to three")
    assert tab.ended().texts() == ["three", "to three"]
    assert stub.requests[-1]["messages"] == [{"role": "user", "content": "three"}]


def test_an_edited_answer_is_what_the_model_said(tab: Tab, stub: Stub) -> None:
    tab.open().ask("one").press("Edit the answer")
    tab.page.fill(".edit textarea", "Good day.")
    tab.press("Save").ask("two")
    assert [m["content"] for m in stub.requests[-1]["messages"]] == ["one", "Good day.", "two"]


def test_an_edit_that_is_cancelled_changes_nothing(tab: Tab, stub: Stub) -> None:
    tab.open().ask("one").press("Edit your message")
    tab.page.fill(".edit textarea", "other")
    tab.page.press(".edit textarea", "Escape")
    assert tab.texts() == ["one", "Hello."]
    assert len(stub.requests) == 1


def test_only_settings_that_are_filled_in_are_sent(tab: Tab, stub: Stub) -> None:
    tab.open().ask("one")
    assert set(stub.requests[0]) == {"model", "messages", "stream", "stream_options"}
    tab.set(system="Be brief.", temperature="0", top_k="40", seed="7", max_completion_tokens="9")
    tab.set(model="other").ask("two")
    sent = stub.requests[1]
    assert sent["messages"][0] == {"role": "system", "content": "Be brief."}
    wanted = {"temperature": 0, "top_k": 40, "seed": 7, "max_completion_tokens": 9}
    assert wanted.items() <= sent.items() and "top_p" not in sent
    assert sent["model"] == "other" and stub.requests[0]["model"] == MODEL


def test_a_setting_that_cannot_be_is_not_sent(tab: Tab, stub: Stub) -> None:
    tab.open().set(top_p="3")
    tab.ask("one", end=False)
    tab.page.wait_for_selector("#top_p:focus")
    assert not stub.requests


def test_a_server_with_a_key_gets_it_and_only_this_tab_keeps_it(tab: Tab, stub: Stub) -> None:
    stub.key = "secret"
    tab.open()
    assert tab.trouble() == "This server wants an API key."
    tab.page.wait_for_selector("#key:focus")
    tab.page.keyboard.type("secret")
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_selector("#model option", state="attached")
    tab.ask("Hello")
    assert tab.texts() == ["Hello", "Hello."]
    assert "secret" in tab.page.evaluate("JSON.stringify(sessionStorage)")
    assert "secret" not in tab.page.evaluate("JSON.stringify(localStorage)")


def refusing(*arguments: Any, **headers: str) -> Any:
    def answer(body: Chunk) -> Iterator[Chunk]:
        raise Refused(*arguments, **headers)

    return answer


def test_a_refusal_is_shown_in_the_words_of_the_server(tab: Tab, stub: Stub) -> None:
    stub.answer = refusing(400, "the prompt has 9,000 tokens: shorten it")
    tab.open().ask("Hello")
    assert tab.trouble() == "the prompt has 9,000 tokens: shorten it"
    stub.answer = lambda body: written("Now it works")
    tab.press("Try again").sees("Now it works")
    assert tab.ended().texts() == ["Hello", "Now it works"]
    assert not tab.page.locator("#trouble p").count()


def test_a_full_server_says_when_to_come_back(tab: Tab, stub: Stub) -> None:
    stub.answer = refusing(429, "256 answers wait.", Retry_After="3")
    tab.open().ask("Hello")
    assert tab.trouble() == "256 answers wait. Try again in 3 s."


def test_an_error_amid_an_answer_keeps_what_was_written(tab: Tab, stub: Stub) -> None:
    broken = {"error": {"message": "the answer took longer than 600 s"}}
    stub.answer = lambda body: iter([delta(content="It begins"), broken])
    tab.open().ask("Hello")
    assert tab.trouble() == "the answer took longer than 600 s"
    assert tab.texts() == ["Hello", "It begins"]


def test_a_server_that_is_gone_is_said_to_be(tab: Tab, stub: Stub) -> None:
    tab.open()
    tab.page.wait_for_selector("#model option", state="attached")
    tab.page.context.set_offline(True)
    tab.ask("Hello")
    assert "does not answer" in tab.trouble()


def test_a_chat_survives_reloading_and_a_new_chat_can_be_taken_back(tab: Tab) -> None:
    tab.open().ask("Remember me").open()
    assert tab.texts() == ["Remember me", "Hello."]
    tab.press("New chat")
    assert tab.texts() == []
    assert tab.page.evaluate("document.activeElement.id") == "question"
    tab.press("Back to the last chat")
    assert tab.texts() == ["Remember me", "Hello."]


def test_reasoning_is_folded_and_not_sent_back(tab: Tab, stub: Stub) -> None:
    stub.answer = lambda body: [delta(reasoning_content="Hmm, let me see"), *written("Yes.")]
    tab.open().ask("one")
    thoughts = tab.page.locator("details", has_text="Reasoning").last
    assert not thoughts.evaluate("node => node.open")
    assert "Hmm, let me see" in thoughts.text_content()
    tab.ask("two")
    assert "Hmm" not in str(stub.requests[-1])


def test_code_is_copied_as_it_was_written(tab: Tab, stub: Stub) -> None:
    code = "if a < b:\n    print('<b>')\n"
    stub.answer = lambda body: written(f"Like this:\n\n```python\n{code}```\n")
    tab.open().ask("Hello").press("Copy the python code")
    tab.until("document.querySelector('.copy').textContent === 'Copied'")
    assert tab.page.evaluate("navigator.clipboard.readText()") == code.rstrip("\n")


def test_shift_enter_begins_a_line_and_enter_sends(tab: Tab, stub: Stub) -> None:
    tab.open().page.focus("#question")
    for key in ("a", "Shift+Enter", "b"):
        tab.page.keyboard.press(key)
    assert not stub.requests
    tab.page.keyboard.press("Enter")
    tab.ended()
    assert stub.requests[0]["messages"][-1]["content"] == "a\nb"


def test_the_keyboard_reaches_everything_and_focus_is_seen(tab: Tab) -> None:
    tab.open().ask("Hello")
    reached = set()
    for _ in range(16):
        tab.page.keyboard.press("Tab")
        name, width = tab.page.evaluate(
            "[document.activeElement.getAttribute('aria-label') || document.activeElement.id,"
            " getComputedStyle(document.activeElement).outlineWidth]"
        )
        assert not name or width == "2px", name
        reached.add(name)
    wanted = {
        "model",
        "new",
        "settings-switch",
        "Edit your message",
        "Regenerate",
        "question",
        "send",
    }
    assert wanted <= reached


def test_screen_readers_are_told_each_part_of_an_answer_once(tab: Tab, stub: Stub) -> None:
    stub.answer = lambda body: written("First part.\n\nSecond part.\n\n- an item")
    tab.open().ask("Hello")
    parts = tab.page.locator("#spoken[aria-live=polite] p").all_text_contents()
    assert parts == ["First part.", "Second part.", "an item"]


def ground(tab: Tab) -> str:
    return str(tab.page.evaluate("getComputedStyle(document.body).backgroundColor"))


def test_colours_follow_the_system_until_they_are_chosen(tab: Tab) -> None:
    light = ground(tab.open())
    tab.page.emulate_media(color_scheme="dark")
    dark = ground(tab)
    assert light != dark
    assert ground(tab.set(theme="light")) == light
    assert ground(tab.open()) == light  # kept
    assert ground(tab.set(theme="")) == dark


LONG = "word " * 40 + "`" + "x" * 200 + "`\n\n```\n" + "y" * 300 + "\n```\n\n"
WIDE = "|" + "column |" * 12 + "\n|" + "-|" * 12 + "\n|" + "value |" * 12


def test_a_phone_shows_everything_without_scrolling_sideways(tab: Tab, stub: Stub) -> None:
    tab.page.set_viewport_size({"width": 360, "height": 640})
    stub.answer = lambda body: written(LONG + WIDE)
    tab.open().ask("z" * 100)
    assert tab.page.evaluate("document.documentElement.scrollWidth") == 360
    room = "node => node.scrollWidth <= node.clientWidth"
    assert tab.page.eval_on_selector("#scroll", room)
    tab.press("Settings").page.wait_for_selector("#settings-close:focus")
    box = tab.page.locator("#settings").bounding_box()
    assert (box["x"], box["width"]) == (0, 360)
    tab.page.keyboard.press("Escape")
    tab.page.wait_for_selector("#settings", state="hidden")
    tab.press("New chat")  # not beneath anything


# --- With the real server


def test_the_page_chats_with_a_model(
    tab: Tab, serving: Callable[..., str], nano: ncl.Model
) -> None:
    tab.stub.address = serving(api_keys=("secret",)) + "/"
    tab.open().set(key="secret", temperature="0", max_completion_tokens="30")
    tab.page.wait_for_selector("#model option[value=nano]", state="attached")
    tab.ask("calculate 100 + 520 + 60")
    asked = [{"role": "user", "content": "calculate 100 + 520 + 60"}]
    wanted = nano.generate(asked, temperature=0, max_new_tokens=30).text
    assert tab.page.evaluate("JSON.parse(localStorage['neuralchat.chat'])[1].content") == wanted
    assert re.search(r"\d tokens · [\d.]+ tokens/s", tab.page.inner_text("#messages"))
    assert re.match(r"Context: \d+ of [\d,]+ tokens", tab.page.inner_text("#status"))


# --- Markdown

SHOW = """async ([text, sizes]) => {
  const { show } = await import('/page/markdown.js');
  const container = document.createElement('div');
  for (const size of sizes) show(container, text.slice(0, size));
  show(container, text);
  return container.innerHTML;
}"""


def rendered(tab: Tab, text: str, sizes: tuple[int, ...] = ()) -> str:
    return str(tab.page.evaluate(SHOW, [text, list(sizes)]))


LINK = 'target="_blank" rel="noopener noreferrer"'


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("one\ntwo\n\nthree", "<p>one<br>two</p><p>three</p>"),
        ("# A\n## B *c*", "<h3>A</h3><h4>B <em>c</em></h4>"),
        ("**a** __b__ *c* _d_ ~~e~~", "<p><strong>a</strong> <strong>b</strong> <em>c</em> "
         "<em>d</em> <del>e</del></p>"),
        ("***both*** **a *b* c**", "<p><strong><em>both</em></strong> "
         "<strong>a <em>b</em> c</strong></p>"),
        ("2 * 3 * 4, snake_case_name, **open", "<p>2 * 3 * 4, snake_case_name, **open</p>"),
        (r"\*not\* \`code\`", "<p>*not* `code`</p>"),
        ("`a*b*` and ``c`d``", "<p><code>a*b*</code> and <code>c`d</code></p>"),
        ("- a\n- b\n  - c\n  - d\n- e",
         "<ul><li>a</li><li>b<ul><li>c</li><li>d</li></ul></li><li>e</li></ul>"),
        ("1. a\n2. b\n\ntext", "<ol><li>a</li><li>b</li></ol><p>text</p>"),
        ("3) a\n\n4) b", '<ol start="3"><li><p>a</p></li><li><p>b</p></li></ol>'),
        ("Steps:\n1. a\n   more\n2. b", "<p>Steps:</p><ol><li>a<br>more</li><li>b</li></ol>"),
        ("in\n1984. It was", "<p>in<br>1984. It was</p>"),
        ("> a\n> > b\n\nc", "<blockquote><p>a</p><blockquote><p>b</p></blockquote></blockquote>"
         "<p>c</p>"),
        ("---", "<hr>"),
        ("[a](https://x.org/b_(c) \"t\")", f'<p><a href="https://x.org/b_(c)" {LINK}>a</a></p>'),
        ("see https://x.org/a_b. Yes", f'<p>see <a href="https://x.org/a_b" {LINK}>'
         "https://x.org/a_b</a>. Yes</p>"),
        ("![a](http://x.org/i.png)", f'<p><a href="http://x.org/i.png" {LINK}>a</a></p>'),
        ("|a|b|\n|:-:|-:|\n|1|`x|y`|\n|2", '<div class="table" tabindex="0"><table><thead><tr>'
         '<th class="center">a</th><th class="right">b</th></tr></thead><tbody><tr>'
         '<td class="center">1</td><td class="right"><code>x|y</code></td></tr><tr>'
         '<td class="center">2</td><td class="right"></td></tr></tbody></table></div>'),
        # What a model writes is text.
        ("<b>a</b><script>alert(1)</script>",
         "<p>&lt;b&gt;a&lt;/b&gt;&lt;script&gt;alert(1)&lt;/script&gt;</p>"),
        ("[a](javascript:alert(1)) [b](data:text/html,x) [c](/d)",
         "<p>[a](javascript:alert(1)) [b](data:text/html,x) [c](/d)</p>"),
        ('[a](https://x.org/"onclick="y)', '<p><a href="https://x.org/%22onclick=%22y" '
         f'{LINK}>a</a></p>'),
    ],
)  # fmt: skip
def test_markdown_becomes(tab: Tab, text: str, wanted: str) -> None:
    assert rendered(tab.open(), text) == wanted


def test_fenced_code_is_text_even_while_it_is_open(tab: Tab) -> None:
    tab.open()
    for text in (
        "```html\n<b>**a**</b>\n```",
        "```html\n<b>**a**</b>",
        "- x\n  ```html\n  <b>**a**</b>",
    ):
        assert '<pre tabindex="0"><code>&lt;b&gt;**a**&lt;/b&gt;</code></pre>' in rendered(
            tab, text
        )


PIECES = [
    "text *em*",
    "- item",
    "  - inner",
    "1. one",
    "",
    "```",
    "# head",
    "> said",
    "|a|b|",
    "|-|-|",
    "---",
]


def test_an_answer_that_grows_ends_as_if_it_came_whole(tab: Tab) -> None:
    draw = random.Random(0)
    tab.open()
    for _ in range(60):
        text = "\n".join(draw.choice(PIECES) for _ in range(draw.randint(1, 14)))
        assert rendered(tab, text, tuple(range(len(text)))) == rendered(tab, text), repr(text)


@pytest.mark.parametrize(
    "text",
    [
        *("[" * 50_000, "[a](" * 20_000, "(" * 50_000, "[a](" + "(" * 50_000, "https://" * 10_000),
        *("*a " * 30_000, "**a *b " * 10_000, "_a" * 30_000, "* " * 30_000 + "a", "#" * 50_000),
        *("`" * 50_000, "` `` " * 20_000, "-:" * 30_000, "|a" * 20_000 + "\n" + "|-" * 20_000),
        *("> " * 20_000, "- " * 20_000, "- a\n" * 10_000, "a\n- " * 5_000, "```\n~~~\n" * 5_000),
        "\n".join("  " * i + "- a" for i in range(1000)),
    ],
    ids=lambda text: text[:8].replace("\n", " "),
)  # fmt: skip
def test_hostile_text_is_shown_in_little_time(tab: Tab, text: str) -> None:
    tab.open()
    started = time.monotonic()
    rendered(tab, text)
    assert time.monotonic() - started < patience(5)
