// The chat: its messages, kept in the browser at each change.

import { kept } from "./storage.js";

// A message: {role: "user" | "assistant", content, reasoning?, figures?}
export class Conversation {
  constructor() {
    this.messages = kept.read("chat", []);
    this.used = kept.read("used", 0); // tokens of the last request and its answer
  }

  add(message) {
    this.messages.push(message);
    this.save();
    return message;
  }

  // Leaves out the message at `index` and what follows.
  cut(index) {
    this.messages.length = index;
    this.save();
  }

  // A new chat. The old one can be taken back until the next.
  clear() {
    if (this.messages.length) kept.write("last-chat", this.messages);
    this.messages = [];
    this.used = 0;
    this.save();
  }

  get last() {
    return kept.read("last-chat", []);
  }

  restore() {
    this.messages = this.last;
    this.save();
  }

  save() {
    kept.write("used", this.used);
    return kept.write("chat", this.messages);
  }

  // What is sent. Reasoning stays here: templates of models that reason leave out that of earlier turns.
  request(system) {
    const said = this.messages.map(({ role, content }) => ({ role, content }));
    return system ? [{ role: "system", content: system }, ...said] : said;
  }
}
