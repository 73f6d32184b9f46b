// The panel of settings: its fields, kept in the browser, and its opening and closing.

import { kept, thisTab } from "./storage.js";

const field = (name) => document.getElementById(name);
const KEPT = ["system", "temperature", "top_p", "top_k", "max_completion_tokens", "seed", "theme"];
const NUMBERS = KEPT.slice(1, -1); // of the request, under the names of the server's fields
const narrow = window.matchMedia("(max-width: 46rem)");

export class Settings {
  constructor(changedKey) {
    const values = kept.read("settings", {});
    for (const name of KEPT) {
      field(name).value = values[name] ?? "";
      field(name).addEventListener("change", () => this.save());
    }
    field("key").value = thisTab.read("key", "");
    field("key").addEventListener("change", () => {
      thisTab.write("key", this.key);
      changedKey();
    });
    field("settings-switch").addEventListener("click", () => this.open(field("settings").hidden));
    field("settings-close").addEventListener("click", () => this.open(false));
    field("settings").addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation();
      this.open(false);
    });
    narrow.addEventListener("change", () => this.cover());
  }

  save() {
    kept.write("settings", Object.fromEntries(KEPT.map((name) => [name, field(name).value])));
    const theme = field("theme").value;
    kept.write("theme", theme);
    if (theme) document.documentElement.dataset.theme = theme;
    else delete document.documentElement.dataset.theme;
  }

  open(wanted, focused = "system") {
    field("settings").hidden = !wanted;
    field("settings-switch").setAttribute("aria-expanded", String(wanted));
    this.cover();
    if (!wanted) field("settings-switch").focus();
    else field(narrow.matches && focused === "system" ? "settings-close" : focused).focus();
  }

  // On a narrow screen the panel lies over the chat, which then takes no focus.
  cover() {
    const covers = narrow.matches && !field("settings").hidden;
    field("chat").inert = covers;
    document.querySelector("header").inert = covers;
  }

  get key() {
    return field("key").value.trim();
  }

  get system() {
    return field("system").value.trim();
  }

  // The first field whose value is none that it takes, or null.
  get wrong() {
    return NUMBERS.map(field).find((input) => !input.checkValidity()) ?? null;
  }

  // Only what was filled in: the server has defaults of its own.
  get sampling() {
    const filled = NUMBERS.filter((name) => field(name).value !== "");
    return Object.fromEntries(filled.map((name) => [name, field(name).valueAsNumber]));
  }
}
