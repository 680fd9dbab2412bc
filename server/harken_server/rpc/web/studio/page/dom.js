// Elements. Whatever a text holds, it only ever becomes a text node or the value of an attribute that is no code.

const SVG = "http://www.w3.org/2000/svg";

export const $ = (id) => document.getElementById(id);

/** An element with these attributes (`class`, `title`, ...), listeners (`on`) and children; strings become text. */
export function make(name, { on = {}, ...attributes } = {}, ...children) {
  const element = document.createElement(name);
  for (const [event, act] of Object.entries(on)) element.addEventListener(event, act);
  for (const [key, value] of Object.entries(attributes)) set(element, key, value);
  element.append(...children);
  return element;
}

/** An element of SVG. */
export function makeSvg(name, attributes = {}, ...children) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) set(element, key, value);
  element.append(...children);
  return element;
}

/** A bar that is filled by a share of 0 to 1. What it shows stands beside it in words. */
export function bar(share) {
  const filled = make("i");
  filled.style.width = `${100 * Math.min(Math.max(share, 0), 1)}%`;
  return make("span", { class: "bar", "aria-hidden": "true" }, filled);
}

/** Say something in a place for it; `wrong` marks an error. An empty text says nothing. */
export function say(place, text, wrong = false) {
  place.classList.toggle("wrong", wrong);
  if (place.textContent !== text) place.textContent = text;
}

/** Call `send` at Ctrl+Enter, or Cmd+Enter, in a field of several lines. */
export function sentByKeys(field, send) {
  field.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      event.preventDefault();
      send();
    }
  });
}

/** The colours that canvases draw with, as they are now, by the names of their custom properties. */
export function colours() {
  const style = getComputedStyle(document.documentElement);
  return (name) => style.getPropertyValue(`--${name}`).trim();
}

/** A canvas' context in CSS pixels, cleared, `height` high and as wide as the page lets it be; and that width. */
export function surface(canvas, height) {
  const width = Math.max(canvas.clientWidth, 1);
  const scale = window.devicePixelRatio || 1;
  canvas.width = Math.round(width * scale);
  canvas.height = Math.round(height * scale);
  const context = canvas.getContext("2d");
  context.setTransform(scale, 0, 0, scale, 0, 0);
  return [context, width];
}

/** Call `draw` whenever what canvases look like changes: the theme, or the width of the window. */
export function redrawn(draw) {
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
  window.addEventListener("resize", draw);
}

function set(element, key, value) {
  if (value === false || value === null || value === undefined) return;
  element.setAttribute(key, value === true ? "" : String(value));
}
