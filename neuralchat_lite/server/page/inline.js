// Markdown inside a line: code, emphasis, links. Nodes are built with text content alone, so that
// what a model writes can never become markup.

const DEEPEST = 12; // of emphasis within emphasis and links
const SCHEMES = ["http:", "https:"];
const BARE = /^https?:\/\/[^\s<>"'`]+/i;
const PUNCTUATION = /[!-/:-@[-`{-~]/;
const WORD = /[\p{L}\p{N}_]/u;

export function element(name, children = [], attributes = {}) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  made.append(...children);
  return made;
}

function link(target, children) {
  let url = null;
  try {
    url = new URL(target);
  } catch {
    // relative addresses lead nowhere in a chat
  }
  if (!url || !SCHEMES.includes(url.protocol)) return null;
  const attributes = { href: url.href, target: "_blank", rel: "noopener noreferrer" };
  return element("a", children, attributes);
}

// [text](target "title"): {text, target, end}, or null
function linkAt(text, at) {
  let depth = 0;
  for (let i = at; i < Math.min(text.length, at + 1000); i++) {
    if (text[i] === "\\") i++;
    else if (text[i] === "[") depth++;
    else if (text[i] === "]" && --depth === 0) {
      if (text[i + 1] !== "(") return null;
      const [whole, target] = /^\(\s*<?((?:[^\s()<>]|\([^\s()<>]*\))*)>?(?:\s+"[^"]*")?\s*\)/.exec(
        text.slice(i + 1, i + 2001),
      ) ?? [null];
      if (whole === null) return null;
      return { text: text.slice(at + 1, i), target, end: i + 1 + whole.length };
    }
  }
  return null;
}

function opens(text, at, mark) {
  const next = text[at + mark.length];
  if (!next || /\s/.test(next)) return false;
  return mark[0] !== "_" || at === 0 || !WORD.test(text[at - 1]);
}

// Where `mark` closes what opened before `from`, or -1: then nothing that opens later is closed either.
function closing(text, from, mark) {
  for (let end = text.indexOf(mark, from); end >= 0; end = text.indexOf(mark, end + 1)) {
    const after = text[end + mark.length];
    if (/\s/.test(text[end - 1]) || text[end - 1] === "\\") continue;
    if (mark.length === 1 && (after === mark || text[end - 1] === mark)) continue;
    if (mark.length === 2 && after === mark[0]) end++; // ***: the inner one closes first
    if (mark[0] === "_" && after && WORD.test(after)) continue;
    return end;
  }
  return -1;
}

const EMPHASIS = [
  ["**", "strong"],
  ["__", "strong"],
  ["~~", "del"],
  ["*", "em"],
  ["_", "em"],
];

// text -> [Node]
export function inline(text, depth = 0) {
  const nodes = [];
  const hopeless = new Set(); // marks that close nowhere: searched for once
  let plain = "";
  const put = (node) => {
    if (plain) nodes.push(document.createTextNode(plain));
    plain = "";
    nodes.push(node);
  };
  let at = 0;

  const code = () => {
    const [ticks] = /^`+/.exec(text.slice(at, at + 64));
    if (hopeless.has(ticks)) return 0;
    for (let end = text.indexOf(ticks, at + ticks.length); end >= 0; ) {
      let run = end;
      while (text[run] === "`") run++;
      if (run - end === ticks.length) {
        const inner = text.slice(at + ticks.length, end).replace(/\n/g, " ");
        put(element("code", [/^ .*[^ ].* $/.test(inner) ? inner.slice(1, -1) : inner]));
        return run - at;
      }
      end = text.indexOf(ticks, run);
    }
    hopeless.add(ticks);
    return 0;
  };

  const linked = () => {
    const image = text[at] === "!"; // shown as a link: nothing is loaded from elsewhere
    const found = linkAt(text, image ? at + 1 : at);
    if (!found) return 0;
    const made = link(found.target, inline(found.text || found.target, depth + 1));
    if (!made) return 0;
    put(made);
    return found.end - at;
  };

  const bare = () => {
    if (at > 0 && WORD.test(text[at - 1])) return 0;
    const [found] = BARE.exec(text.slice(at, at + 2000)) ?? [""];
    let target = found.replace(/[.,;:!?*_~]+$/, "");
    if (target.endsWith(")") && !target.includes("(")) target = target.slice(0, -1);
    const made = target && link(target, [target]);
    if (!made) return 0;
    put(made);
    return target.length;
  };

  const emphasised = () => {
    for (const [mark, name] of EMPHASIS) {
      if (hopeless.has(mark) || !text.startsWith(mark, at) || !opens(text, at, mark)) continue;
      const end = closing(text, at + mark.length + 1, mark);
      if (end < 0) {
        hopeless.add(mark);
        continue;
      }
      put(element(name, inline(text.slice(at + mark.length, end), depth + 1)));
      return end + mark.length - at;
    }
    return 0;
  };

  const escape = () => {
    if (text[at + 1] === "\n") put(element("br"));
    else if (PUNCTUATION.test(text[at + 1] ?? "")) plain += text[at + 1];
    else return 0;
    return 2;
  };

  const line = () => {
    put(element("br"));
    return 1;
  };

  const nested = (read) => (depth < DEEPEST ? read : () => 0);
  const readers = {
    "\\": escape,
    "`": code,
    "[": nested(linked),
    "!": nested(linked),
    "*": nested(emphasised),
    _: nested(emphasised),
    "~": nested(emphasised),
    h: bare,
    "\n": line,
  };
  while (at < text.length) {
    const taken = readers[text[at]]?.() ?? 0;
    if (!taken) plain += text[at];
    at += taken || 1;
  }
  if (plain) nodes.push(document.createTextNode(plain));
  return nodes;
}
