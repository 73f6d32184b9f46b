// The page: a chat with the server that it comes from.

import { answer, models, Refusal } from "./client.js";
import { Conversation } from "./conversation.js";
import { element } from "./inline.js";
import { Settings } from "./settings.js";
import { kept } from "./storage.js";
import { MessageView, sends } from "./view.js";

const at = (name) => document.getElementById(name);
const chat = new Conversation();
const settings = new Settings(findModels);
let views = [];
let limits = {}; // model -> tokens of its context, where the server says them
let running = null; // the AbortController of the answer that is being written

// --- The list of messages

const actions = {
  again(message) {
    chat.cut(chat.messages.indexOf(message));
    drawAll();
    respond();
  },
  edit(message, text) {
    chat.cut(chat.messages.indexOf(message));
    chat.add({ role: message.role, content: text });
    drawAll();
    if (message.role === "user") respond();
    else at("question").focus();
  },
};

function draw(message) {
  const view = new MessageView(message, actions);
  views.push(view);
  at("messages").append(view.node);
  at("empty").hidden = true;
  return view;
}

function drawAll() {
  at("messages").replaceChildren();
  views = [];
  at("empty").hidden = false;
  at("restore").hidden = !chat.last.length;
  chat.messages.forEach(draw);
  trouble();
}

// Follows the answer as it grows, unless the reader has scrolled away from the end.
function follow(change) {
  const room = at("scroll");
  const follows = room.scrollHeight - room.scrollTop - room.clientHeight < 60;
  change();
  if (follows) room.scrollTop = room.scrollHeight;
}

function trouble(words = "", again = null) {
  at("trouble").replaceChildren();
  if (!words) return;
  at("trouble").append(element("p", [words]));
  if (again) {
    const retry = element("button", ["Try again"], { type: "button" });
    retry.addEventListener("click", () => again());
    at("trouble").append(retry);
  }
  at("trouble").scrollIntoView({ block: "end" });
}

// --- Models

async function findModels() {
  try {
    const found = await models(settings.key);
    limits = Object.fromEntries(found.map(({ id, max_model_len }) => [id, max_model_len]));
    at("model").replaceChildren(...found.map(({ id }) => element("option", [id], { value: id })));
    const wanted = kept.read("model", "");
    if (wanted in limits) at("model").value = wanted;
    trouble();
    return true;
  } catch (problem) {
    if (!(problem instanceof Refusal)) throw problem;
    refused(problem, findModels);
    return false;
  }
}

function refused(problem, again) {
  trouble(problem.message, again);
  if (problem.status === 401 || problem.status === 403) settings.open(true, "key");
}

// --- Answers

function ask(text) {
  chat.add({ role: "user", content: text });
  follow(() => draw(chat.messages.at(-1)));
  at("scroll").scrollTop = at("scroll").scrollHeight;
  respond();
}

function occupied(is) {
  at("send").hidden = is;
  at("stop").hidden = !is;
  at("new").disabled = is;
  at("messages").classList.toggle("occupied", is); // the other messages cannot be changed meanwhile
}

const STOPPED = {
  length: "cut at the limit of tokens",
  content_filter: "held back by a filter",
};

async function respond() {
  if (settings.wrong) return refuseSetting(settings.wrong);
  if (!at("model").value && !(await findModels())) return;
  trouble();
  const body = {
    model: at("model").value,
    messages: chat.request(settings.system),
    ...settings.sampling,
  };
  const message = chat.add({ role: "assistant", content: "" });
  let view;
  follow(() => (view = draw(message)));
  view.busy(true);
  const writer = new Writer(view);
  running = new AbortController();
  occupied(true);
  at("status").textContent = "The model reads the chat …";
  let problem = null;
  try {
    for await (const piece of answer(body, settings.key, running.signal)) writer.take(piece);
  } catch (caught) {
    problem = caught;
  }
  running = null;
  writer.end(problem?.name === "AbortError");
  view.busy(false);
  occupied(false);
  if (!message.content && !message.reasoning && problem) {
    chat.cut(chat.messages.indexOf(message));
    view.node.remove();
    views.pop();
  }
  chat.save();
  if (problem instanceof Refusal) refused(problem, message.content ? null : respond);
  else if (problem && problem.name !== "AbortError") trouble(`The page failed: ${problem.message}`);
  if (document.activeElement === document.body) at("question").focus();
}

function refuseSetting(input) {
  settings.open(true, input.id);
  input.reportValidity();
}

// Writes the pieces of an answer into its message, at most once a frame.
class Writer {
  constructor(view) {
    this.view = view;
    this.asked = performance.now();
    this.frame = 0;
    this.spoken = 0; // blocks that screen readers were told
    this.told = {};
    at("spoken").replaceChildren();
  }

  take({ text, reasoning, finish, usage, timings }) {
    const { message } = this.view;
    if (text || reasoning) this.first ??= performance.now();
    message.content += text;
    if (reasoning) message.reasoning = (message.reasoning ?? "") + reasoning;
    if (text || reasoning) this.last = performance.now();
    this.told = {
      finish: finish ?? this.told.finish,
      usage: usage ?? this.told.usage,
      timings: timings ?? this.told.timings,
    };
    this.frame ||= requestAnimationFrame(() => this.write());
  }

  write() {
    this.frame = 0;
    const { message } = this.view;
    follow(() => this.speak(this.view.update() - 1));
    if (!message.content && message.reasoning) at("status").textContent = "The model reasons …";
    else if (message.content) at("status").textContent = "The model answers …";
    if (performance.now() - (this.saved ?? 0) > 1000) {
      this.saved = performance.now();
      chat.save();
    }
  }

  // Tells screen readers each block once, when it is whole.
  speak(whole) {
    for (; this.spoken < whole; this.spoken++) {
      const block = this.view.text.childNodes[this.spoken];
      at("spoken").append(element("p", [block.textContent]));
    }
  }

  end(stopped) {
    cancelAnimationFrame(this.frame);
    this.view.message.figures = this.figures(stopped);
    follow(() => this.speak(this.view.update()));
    const saved = chat.save();
    at("status").textContent = saved ? this.context() : "The browser keeps no more: this chat is lost with the tab.";
  }

  figures(stopped) {
    const { finish, usage } = this.told;
    const parts = [];
    if (usage) parts.push(`${usage.completion_tokens} tokens`);
    const speed = this.speed();
    if (speed) parts.push(`${speed.toFixed(speed < 10 ? 1 : 0)} tokens/s`);
    if (this.first) parts.push(`first after ${((this.first - this.asked) / 1000).toFixed(1)} s`);
    if (stopped) parts.push("stopped");
    else if (STOPPED[finish]) parts.push(STOPPED[finish]);
    return parts.join(" · ");
  }

  // Tokens a second: the server's own figure, else what the page saw.
  speed() {
    const { usage, timings } = this.told;
    if (timings?.tokens_per_second) return timings.tokens_per_second;
    const seconds = (this.last - this.first) / 1000;
    return usage && usage.completion_tokens > 1 && seconds > 0
      ? (usage.completion_tokens - 1) / seconds
      : null;
  }

  context() {
    const { usage } = this.told;
    if (usage) chat.used = usage.total_tokens;
    return contextUsed();
  }
}

function contextUsed() {
  const limit = limits[at("model").value];
  if (!chat.used) return "Enter sends, Shift+Enter begins a new line, Escape stops.";
  const used = chat.used.toLocaleString("en");
  if (!limit) return `Context: ${used} tokens`;
  const share = Math.round((100 * chat.used) / limit);
  return `Context: ${used} of ${limit.toLocaleString("en")} tokens (${share} %)`;
}

// --- Keys and buttons

function grow() {
  const field = at("question");
  field.style.height = "auto";
  field.style.height = `${field.scrollHeight + 2}px`; // the border
}

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = at("question").value;
  if (!text.trim() || running) return;
  if (settings.wrong) return refuseSetting(settings.wrong);
  at("question").value = "";
  grow();
  ask(text);
});
at("question").addEventListener("input", grow);
at("question").addEventListener("keydown", (event) => {
  if (!sends(event)) return;
  event.preventDefault();
  at("ask").requestSubmit();
});
at("stop").addEventListener("click", () => {
  running?.abort();
  at("question").focus();
});
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
});
at("new").addEventListener("click", () => {
  chat.clear();
  drawAll();
  at("status").textContent = contextUsed();
  at("question").focus();
});
at("restore").addEventListener("click", () => {
  chat.restore();
  drawAll();
  at("question").focus();
});
at("model").addEventListener("change", () => kept.write("model", at("model").value));
window.addEventListener("pagehide", () => chat.save());

drawAll();
at("scroll").scrollTop = at("scroll").scrollHeight;
findModels().then(() => {
  if (chat.used) at("status").textContent = contextUsed();
});
