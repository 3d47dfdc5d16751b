// Elements are made here and nowhere else. Text is set as text, never as HTML: what a case or a person is called can
// therefore never become part of the page's code.

export const $ = (id) => document.getElementById(id);

/** An element with attributes and children; a string child is text. */
export function el(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "class") made.className = value;
    else if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Put `children` in place of all that `parent` holds. */
export function fill(parent, ...children) {
  parent.replaceChildren(...children.filter((child) => child !== null && child !== undefined));
}

/** Say something to those who do not see the screen, and in the line at its foot. */
export function say(text) {
  $("said").textContent = text;
}

/** A colour like #rrggbb as three numbers. */
export function rgb(colour) {
  const value = parseInt(colour.slice(1), 16);
  return [value >> 16, (value >> 8) & 255, value & 255];
}

/** A small square of a colour. Its colour is set by property, which the policy of the page allows. */
export function swatch(colour) {
  const made = el("span", { class: "swatch", "aria-hidden": "true" });
  made.style.backgroundColor = colour;
  return made;
}

/** Run `act` once, at the next frame, however often it is asked for until then. */
export function oncePerFrame(act) {
  let asked = false;
  return () => {
    if (asked) return;
    asked = true;
    requestAnimationFrame(() => {
      asked = false;
      act();
    });
  };
}
