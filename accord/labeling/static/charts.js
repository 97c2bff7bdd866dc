// Small pictures of figures, as SVG elements.  Every picture repeats numbers that stand beside it as text.

const SVG = "http://www.w3.org/2000/svg";

export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (key === "text") made.textContent = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

function shape(name, attributes) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

function picture(height) {
  return shape("svg", { class: "chart", viewBox: `0 0 100 ${height}`, preserveAspectRatio: "none", "aria-hidden": "true" });
}

/** A track from `from` to `to` with an interval, its value, and a tick where `at` is. */
export function interval({ value, low, high }, { from = 0, to = 1, at = null } = {}) {
  const place = (x) => Math.min(100, Math.max(0, (100 * (x - from)) / (to - from)));
  const made = picture(8);
  made.append(shape("rect", { class: "track", x: 0, y: 3, width: 100, height: 2 }));
  if (low !== null && high !== null) {
    made.append(shape("rect", { class: "range", x: place(low), y: 2, width: Math.max(0.6, place(high) - place(low)), height: 4 }));
  }
  if (at !== null) made.append(shape("rect", { class: "tick", x: place(at) - 0.25, y: 0, width: 0.5, height: 8 }));
  if (value !== null) made.append(shape("rect", { class: "value", x: Math.min(99, Math.max(0, place(value) - 0.5)), y: 0, width: 1, height: 8 }));
  return made;
}

/** Shares of a whole, side by side; `parts`: [[class, amount]]. */
export function shares(parts) {
  const whole = parts.reduce((sum, [, amount]) => sum + amount, 0) || 1;
  const made = picture(10);
  let x = 0;
  for (const [name, amount] of parts) {
    const width = (100 * amount) / whole;
    if (width > 0) made.append(shape("rect", { class: `share ${name}`, x, y: 0, width: Math.max(0, width - 0.4), height: 10 }));
    x += width;
  }
  return made;
}
