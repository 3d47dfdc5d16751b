// Keys, and the list of them that `?` shows. One table: what is listed is what works.

import { $, el, fill } from "./dom.js";

export class Keyboard {
  constructor() {
    this.groups = [];
    this.on = true;
    document.addEventListener("keydown", (event) => this._down(event));
    $("keys-on").addEventListener("change", (event) => (this.on = event.target.checked));
    $("keys-close").addEventListener("click", () => $("keys").close());
  }

  /** `bindings`: [keys, what it does, act(event)], with keys like "z", "Shift+A", "Ctrl+Z", "ArrowUp". */
  add(title, bindings) {
    this.groups.push({ title, bindings });
  }

  help() {
    const shown = (key) => key.replace("Arrow", "").replace(" ", "Space").replace("Plus", "+");
    const list = ({ title, bindings }) =>
      el(
        "section", {}, el("h3", {}, title),
        el(
          "dl", {},
          ...bindings.flatMap(([keys, what]) => [
            el("dt", {}, ...keys.flatMap((key, n) => [n ? " " : "", el("kbd", {}, shown(key))])),
            el("dd", {}, what),
          ]),
        ),
      );
    fill($("keys-list"), ...this.groups.map(list));
    if (!$("keys").open) $("keys").showModal();
  }

  _down(event) {
    if (document.querySelector("dialog[open]") || event.altKey || event.isComposing) return;
    const at = event.target;
    const typing = at.matches("input:not([type=checkbox]):not([type=radio]):not([type=range]), select, textarea");
    const modified = event.ctrlKey || event.metaKey;
    if (typing || (!this.on && !modified && event.key.length === 1 && !at.closest("#view"))) return;
    const inView = Boolean(at.closest("#view")) || at === document.body;
    const name = named(event);
    // A key that is held since it opened a case does not act on the images, where the focus is by then.
    if (event.repeat && /^(Enter| )$/.test(name)) return event.preventDefault();
    // On a button or a radio, arrows, Space and Enter are its own.
    if (!inView && /^(Shift\+)?(Arrow|Enter$| $|Page|Home)/.test(name)) return;
    for (const { bindings } of this.groups) {
      for (const [keys, , act] of bindings) {
        if (!keys.includes(name)) continue;
        event.preventDefault();
        act(event);
        return;
      }
    }
  }
}

function named({ key, shiftKey, ctrlKey, metaKey }) {
  const control = ctrlKey || metaKey ? "Ctrl+" : "";
  const letter = /^[a-z]$/i.test(key);
  const shift = shiftKey && (letter || key.length > 1) ? "Shift+" : "";
  if (key === "+") return `${control}Plus`;
  return control + shift + (letter ? (shift || control ? key.toUpperCase() : key.toLowerCase()) : key);
}
