// Markdown as chat models write it, as DOM nodes: paragraphs, headings, lists, quotes, tables, fenced code.
// HTML in it stays text.

import { element, inline } from "./inline.js";

const FENCE = /^ {0,3}(`{3,}|~{3,}) *([^`]*)$/;
const HEADING = /^ {0,3}(#{1,6})(?:\s+(.*?))?(?:\s+#+)?\s*$/;
const RULE = /^ {0,3}(?:(?:\* *){3,}|(?:- *){3,}|(?:_ *){3,})$/;
const ITEM = /^( *)([-*+]|\d{1,9}[.)])(?:( +)(.*)|$)/;
const QUOTE = /^ {0,3}> ?/;
const DIVIDER = /^ {0,3}\|?\s*:?-+:?\s*(?:\|\s*:?-+:?\s*)*\|?\s*$/;
const DEEPEST = 8; // of lists and quotes within each other

const blank = (line) => line === undefined || line.trim() === "";
const indentOf = (line) => line.length - line.trimStart().length;

// `|` between cells, but not behind a backslash or in code
function cells(line) {
  const made = [""];
  let code = false;
  for (let i = 0; i < line.length; i++) {
    if (line[i] === "\\" && line[i + 1] === "|") made[made.length - 1] += line[++i];
    else if (line[i] === "|" && !code) made.push("");
    else {
      if (line[i] === "`") code = !code;
      made[made.length - 1] += line[i];
    }
  }
  if (!made[0].trim()) made.shift();
  if (made.length && !made[made.length - 1].trim()) made.pop();
  return made.map((cell) => cell.trim());
}

// Each reader takes the lines and where it may begin; it gives [where it ended, () => Node], or null.

function fence(lines, at) {
  const found = FENCE.exec(lines[at]);
  if (!found) return null;
  const [, mark, language] = found;
  const indent = indentOf(lines[at]);
  const close = new RegExp(`^ {0,3}${mark[0]}{${mark.length},} *$`);
  let end = at + 1;
  while (end < lines.length && !close.test(lines[end])) end++;
  const code = lines.slice(at + 1, end).map((line) => line.slice(Math.min(indent, indentOf(line))));
  return [end + 1, () => codeBlock(code.join("\n"), language.trim().split(/\s+/)[0])];
}

function codeBlock(code, language) {
  const copy = element("button", ["Copy"], { type: "button", class: "copy" });
  copy.dataset.copies = "code";
  copy.setAttribute("aria-label", language ? `Copy the ${language} code` : "Copy the code");
  const bar = element("div", [element("span", [language]), copy], { class: "bar" });
  // A long line scrolls sideways, by keyboard too.
  const text = element("pre", [element("code", [code])], { tabindex: "0" });
  return element("div", [bar, text], { class: "code" });
}

function heading(lines, at) {
  const found = HEADING.exec(lines[at]);
  if (!found) return null;
  // The page has h1 and h2 of its own.
  const level = Math.min(6, found[1].length + 2);
  return [at + 1, () => element(`h${level}`, inline(found[2] ?? ""))];
}

function rule(lines, at) {
  return RULE.test(lines[at]) ? [at + 1, () => element("hr")] : null;
}

function quote(lines, at, depth) {
  if (!QUOTE.test(lines[at]) || depth >= DEEPEST) return null;
  let end = at;
  while (end < lines.length && QUOTE.test(lines[end])) end++;
  const inner = lines.slice(at, end).map((line) => line.replace(QUOTE, ""));
  return [end, () => element("blockquote", nodes(inner, depth + 1))];
}

function table(lines, at) {
  if (!lines[at].includes("|") || !DIVIDER.test(lines[at + 1] ?? "")) return null;
  const head = cells(lines[at]);
  const sides = cells(lines[at + 1]);
  if (head.length !== sides.length) return null;
  let end = at + 2;
  while (!blank(lines[end]) && lines[end].includes("|")) end++;
  const side = (text) => (text.endsWith(":") ? (text.startsWith(":") ? "center" : "right") : "left");
  const row = (line, name) =>
    element(
      "tr",
      sides.map((way, i) => element(name, inline(line[i] ?? ""), { class: side(way) })),
    );
  return [
    end,
    () => {
      const body = lines.slice(at + 2, end).map((line) => row(cells(line), "td"));
      const parts = [element("thead", [row(head, "th")]), element("tbody", body)];
      return element("div", [element("table", parts)], { class: "table", tabindex: "0" });
    },
  ];
}

function list(lines, at, depth) {
  const first = ITEM.exec(lines[at]);
  if (!first || depth >= DEEPEST || first[1].length > 3) return null;
  const kind = (found) => (/\d/.test(found[2]) ? "ol" : found[2]);
  const items = []; // each: its lines, without the indent
  let inner = 0;
  let end = at;
  let loose = false;
  while (end < lines.length) {
    const line = lines[end];
    const found = ITEM.exec(line);
    const begins = end === at || (found && indentOf(line) <= first[1].length + 1);
    if (begins) {
      if (RULE.test(line) || kind(found) !== kind(first)) break;
      const gap = found[3]?.length ?? 1;
      inner = found[1].length + found[2].length + (gap > 4 ? 1 : gap);
      if (items.length && blank(lines[end - 1])) loose = true;
      items.push([line.slice(inner)]);
    } else if (blank(line)) {
      // The list goes on behind a blank line with another item, or with what is indented.
      if (blank(lines[end + 1])) break;
      const next = ITEM.exec(lines[end + 1]);
      const another = next && kind(next) === kind(first);
      if (indentOf(lines[end + 1]) < Math.min(inner, 2) && !another) break;
      items[items.length - 1].push("");
    } else if (indentOf(line) >= Math.min(inner, 2)) {
      items[items.length - 1].push(line.slice(Math.min(inner, indentOf(line))));
    } else if (!blank(lines[end - 1]) && !starts(lines, end, depth)) {
      items[items.length - 1].push(line);
    } else break;
    end++;
  }
  return [
    end,
    () => {
      const ordered = kind(first) === "ol";
      const start = ordered ? String(parseInt(first[2], 10)) : "1";
      const made = items.map((item) => element("li", itemNodes(item, loose, depth + 1)));
      return element(ordered ? "ol" : "ul", made, start === "1" ? {} : { start });
    },
  ];
}

// An item of a tight list has no paragraph around its text.
function itemNodes(lines, loose, depth) {
  const made = nodes(lines, depth);
  if (loose) return made;
  return made.flatMap((node) => (node.localName === "p" ? [...node.childNodes] : [node]));
}

const READERS = [fence, heading, rule, quote, table, list];

const starts = (lines, at, depth) => READERS.some((read) => read(lines, at, depth));

function paragraph(lines, at, depth) {
  let end = at + 1;
  while (!blank(lines[end]) && !interrupts(lines, end, depth)) end++;
  const text = lines.slice(at, end).map((line) => line.trim());
  return [end, () => element("p", inline(text.join("\n")))];
}

// A number amid a paragraph ("… in\n1984. It …") begins a list only where it is 1.
function interrupts(lines, at, depth) {
  const item = ITEM.exec(lines[at]);
  if (item && /\d/.test(item[2]) && parseInt(item[2], 10) !== 1) return false;
  if (item && !item[4]) return false;
  return starts(lines, at, depth);
}

// lines -> [{source, build: () => Node}]
function blocks(lines, depth) {
  const made = [];
  for (let at = 0; at < lines.length; ) {
    if (blank(lines[at])) {
      at++;
      continue;
    }
    let found = null;
    for (const read of READERS) if ((found = read(lines, at, depth))) break;
    const [end, build] = found ?? paragraph(lines, at, depth);
    made.push({ source: lines.slice(at, end).join("\n"), build });
    at = end;
  }
  return made;
}

const nodes = (lines, depth) => blocks(lines, depth).map(({ build }) => build());

const linesOf = (text) => text.replace(/\r\n?/g, "\n").replace(/\t/g, "    ").split("\n");

// Makes `container` show `text`. Blocks that are there already stay, with their selection and focus, so that
// an answer that grows is not built anew with each token. Gives the number of blocks.
export function show(container, text) {
  const wanted = blocks(linesOf(text), 0);
  const shown = container.sources ?? [];
  let same = 0;
  while (same < wanted.length && same < shown.length && wanted[same].source === shown[same]) same++;
  while (container.childNodes.length > same) container.lastChild.remove();
  container.append(...wanted.slice(same).map(({ build }) => build()));
  container.sources = wanted.map(({ source }) => source);
  return wanted.length;
}
