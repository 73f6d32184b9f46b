// A message on the page, with what can be done with it.

import { element } from "./inline.js";
import { show } from "./markdown.js";

const WHO = { user: "You", assistant: "Model" };

function button(words, action, label = words) {
  const made = element("button", [words], { type: "button", "aria-label": label });
  made.addEventListener("click", action);
  return made;
}

// Puts text on the clipboard, and says so on the button for a moment.
export async function copy(text, from) {
  const before = from.textContent;
  try {
    await copied(text);
    from.textContent = "Copied";
  } catch {
    from.textContent = "Not copied";
  }
  setTimeout(() => (from.textContent = before), 1500);
}

// Browsers give the clipboard's own interface to https and localhost alone.
async function copied(text) {
  if (navigator.clipboard) return navigator.clipboard.writeText(text);
  const field = element("textarea", [], { class: "unseen", "aria-hidden": "true" });
  const focused = document.activeElement;
  field.value = text;
  document.body.append(field);
  field.select();
  const done = document.execCommand("copy");
  field.remove();
  focused?.focus();
  if (!done) throw new Error("the browser refused");
}

export class MessageView {
  // actions: {edit(message, text), again(message)}
  constructor(message, actions) {
    this.message = message;
    this.actions = actions;
    this.text = element("div", [], { class: "text" });
    this.reasoning = element("div", [], { class: "text" });
    this.thoughts = element("details", [element("summary", ["Reasoning"]), this.reasoning]);
    this.figures = element("span", [], { class: "figures" });
    this.tools = element("div", [], { class: "tools" });
    const who = element("h2", [WHO[message.role]], { class: "unseen" });
    this.node = element("li", [who, this.thoughts, this.text, this.tools], {
      class: `message ${message.role}`,
    });
    this.tools.append(...this.buttons(), this.figures);
    this.node.addEventListener("click", (event) => {
      const pressed = event.target.closest("[data-copies=code]");
      if (pressed) copy(pressed.closest(".code").querySelector("pre").textContent, pressed);
    });
    this.update();
  }

  buttons() {
    const { message } = this;
    const answers = message.role === "assistant";
    const what = answers ? "the answer" : "your message";
    const copies = button("Copy", () => copy(message.content, copies), `Copy ${what}`);
    const made = [copies, button("Edit", () => this.edit(), `Edit ${what}`)];
    if (answers) made.push(button("Regenerate", () => this.actions.again(message)));
    return made;
  }

  // Shows the message as it is now; gives the number of its blocks.
  update() {
    const { content, reasoning, figures } = this.message;
    this.thoughts.hidden = !reasoning;
    if (reasoning) show(this.reasoning, reasoning);
    this.figures.textContent = figures ?? "";
    if (this.message.role === "assistant") return show(this.text, content);
    this.text.textContent = content;
    return 1;
  }

  busy(is) {
    this.node.setAttribute("aria-busy", String(is));
  }

  edit() {
    const { message } = this;
    const answers = message.role === "assistant";
    const name = answers ? "Edit the answer" : "Edit your message";
    const field = element("textarea", [], { "aria-label": name });
    field.value = message.content;
    const form = element("form", [field], { class: "edit" });
    const close = () => {
      form.replaceWith(this.text);
      this.tools.hidden = false;
      this.tools.querySelector("button:nth-of-type(2)").focus();
    };
    const save = element("button", [answers ? "Save" : "Send"], { type: "submit", class: "main" });
    const after = "What follows in the chat is left out.";
    form.append(
      element("div", [save, button("Cancel", close), element("span", [after], { class: "figures" })], {
        class: "tools",
      }),
    );
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (!field.value.trim()) return;
      close();
      this.actions.edit(message, field.value);
    });
    form.addEventListener("keydown", (event) => {
      if (event.key === "Escape") {
        event.stopPropagation();
        close();
      } else if (sends(event)) {
        event.preventDefault();
        form.requestSubmit();
      }
    });
    this.tools.hidden = true;
    this.text.replaceWith(form);
    field.style.height = `${field.scrollHeight + 4}px`;
    field.focus();
  }
}

// Enter, but not the one that ends the composition of a character.
export const sends = (event) =>
  event.key === "Enter" && !event.shiftKey && !event.isComposing && event.target.localName === "textarea";
