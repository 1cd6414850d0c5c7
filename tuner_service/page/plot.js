// Scales, axes and marks in SVG. A mark of thousands of points is one path, so that the page
// stays quick: drawing 5,000 points takes some milliseconds.

import { h, s } from "./dom.js";
import { tick } from "./format.js";

export function extent(values) {
  let low = Infinity, high = -Infinity;
  for (const value of values) if (value !== null && Number.isFinite(value)) {
    if (value < low) low = value;
    if (value > high) high = value;
  }
  return low <= high ? [low, high] : null;
}

export function scale(domain, range, log = false) {
  let [low, high] = domain;
  if (low === high) { const pad = Math.abs(low) * 0.05 || 1; low -= log ? low / 2 : pad; high += log ? high : pad; }
  const f = log ? Math.log10 : (value) => value;
  const from = f(low), span = f(high) - from, [a, b] = range;
  const at = (value) => a + ((f(value) - from) / span) * (b - a);
  at.inverse = (pixel) => { const v = from + ((pixel - a) / (b - a)) * span; return log ? 10 ** v : v; };
  at.ticks = (count) => (log ? logTicks(low, high, count) : ticks(low, high, count));
  at.domain = [low, high];
  return at;
}

function ticks(low, high, count) {
  const raw = (high - low) / Math.max(count, 1);
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].find((m) => m * power >= raw) * power;
  const found = [];
  for (let i = Math.ceil(low / step); i * step <= high + step * 1e-9; i++) found.push(Number((i * step).toPrecision(12)));
  return found;
}

function logTicks(low, high, count) {
  const first = Math.ceil(Math.log10(low) - 1e-9), last = Math.floor(Math.log10(high) + 1e-9);
  if (last - first < 1) return ticks(low, high, count).filter((value) => value > 0);
  const step = Math.max(1, Math.ceil((last - first) / count));
  const found = [];
  for (let power = first; power <= last; power += step) found.push(10 ** power);
  return found;
}

// Cuts off what would press the rest flat: values far outside the middle of them.
export function robust(values) {
  const sorted = values.filter((v) => v !== null && Number.isFinite(v)).sort((a, b) => a - b);
  if (sorted.length < 8) return extent(sorted);
  const at = (share) => sorted[Math.min(sorted.length - 1, Math.floor(share * sorted.length))];
  const spread = at(0.75) - at(0.25) || (at(0.9) - at(0.1)) / 2 || Math.abs(at(0.5)) || 1;
  const low = Math.max(sorted[0], at(0.25) - 3 * spread), high = Math.min(sorted[sorted.length - 1], at(0.75) + 3 * spread);
  return [low, high];
}

const pad = ([low, high]) => { const p = (high - low) * 0.04; return [low - p, high + p]; };

// An SVG with axes. Returns its group to draw into, and the scales.
export function axes({ width, height, x, y, label, left = 52, bottom = 34 }) {
  const X = scale(x.domain, [left, width - 12], x.log);
  const Y = scale(y.log || y.exact ? y.domain : pad(y.domain), [height - bottom, 10], y.log);
  const svg = s("svg", { width, height, viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
  const grid = s("g", { class: "axis", "aria-hidden": "true" });
  for (const value of Y.ticks(5)) {
    const at = Y(value);
    grid.append(s("line", { x1: left, x2: width - 12, y1: at, y2: at, class: "gridline" }),
      s("text", { x: left - 8, y: at + 4, "text-anchor": "end" }, tick(value)));
  }
  const room = Math.max(2, Math.floor((width - left) / 84));
  for (const value of X.ticks(room)) {
    if (x.whole && !Number.isInteger(value)) continue;
    grid.append(s("text", { x: X(value), y: height - bottom + 17, "text-anchor": "middle" }, tick(value)));
  }
  grid.append(s("line", { x1: left, x2: width - 12, y1: height - bottom, y2: height - bottom, class: "baseline" }),
    s("text", { x: width - 12, y: height - 3, "text-anchor": "end", class: "label" }, x.label || ""));
  const plot = s("g", null);
  svg.append(grid, plot);
  return { svg, plot, X, Y, left, bottom, width, height };
}

// Many points as one path of dots.
export const dots = (points, className) =>
  s("path", { class: `dots ${className}`, d: points.map(([x, y]) => `M${x.toFixed(1)} ${y.toFixed(1)}h0`).join("") });

export function line(points, className, attributes = {}) {
  let d = "", open = false;
  for (const [x, y] of points) {
    if (!Number.isFinite(x) || !Number.isFinite(y)) { open = false; continue; }
    d += `${open ? "L" : "M"}${x.toFixed(1)} ${y.toFixed(1)}`;
    open = true;
  }
  return s("path", { class: `line ${className}`, d, ...attributes });
}

export function steps(points, className) {
  let d = "";
  points.forEach(([x, y], i) => { d += i ? `H${x.toFixed(1)}V${y.toFixed(1)}` : `M${x.toFixed(1)} ${y.toFixed(1)}`; });
  return s("path", { class: `line ${className}`, d });
}

// Shows what is nearest to the pointer: `points` are [x, y, words, trial number].
export function hover(holder, svg, points, onPick) {
  const tip = h("div", { className: "tip", hidden: true });
  const ring = s("circle", { r: 6, class: "ring", visibility: "hidden" });
  svg.append(ring);
  let nearest = null;
  const find = (event) => {
    const box = svg.getBoundingClientRect();
    const mx = event.clientX - box.left, my = event.clientY - box.top;
    let best = 900;
    nearest = null;
    for (const point of points) {
      const distance = (point[0] - mx) ** 2 + (point[1] - my) ** 2;
      if (distance < best) { best = distance; nearest = point; }
    }
    tip.hidden = !nearest;
    ring.setAttribute("visibility", nearest ? "visible" : "hidden");
    svg.style.cursor = nearest && onPick ? "pointer" : "";
    if (!nearest) return;
    ring.setAttribute("cx", nearest[0]);
    ring.setAttribute("cy", nearest[1]);
    tip.textContent = nearest[2];
    const right = nearest[0] > box.width / 2;
    Object.assign(tip.style, { top: `${Math.max(0, nearest[1] - 12)}px`, left: right ? "" : `${nearest[0] + 14}px`,
      right: right ? `${box.width - nearest[0] + 14}px` : "" });
  };
  svg.addEventListener("pointermove", find);
  svg.addEventListener("pointerleave", () => { tip.hidden = true; ring.setAttribute("visibility", "hidden"); });
  svg.addEventListener("click", (event) => { find(event); if (nearest && onPick) onPick(nearest[3]); });
  holder.append(tip);
}

export function sparkline(values, width = 96, height = 26) {
  const svg = s("svg", { width, height, viewBox: `0 0 ${width} ${height}`, class: "sparkline", role: "img", "aria-label": "best value so far" });
  const range = extent(values);
  if (!range || values.length < 2) return svg;
  const X = scale([0, values.length - 1], [2, width - 4]), Y = scale(range, [height - 4, 4]);
  svg.append(steps(values.map((value, i) => [X(i), Y(value)]), "best"),
    s("circle", { cx: X(values.length - 1), cy: Y(values[values.length - 1]), r: 2.5, class: "best" }));
  return svg;
}

// A place for a chart that is drawn anew when its width changes.
export function canvas(className, draw) {
  const holder = h("div", { className: `chart ${className}` });
  let width = 0;
  holder.draw = () => { if (holder.clientWidth) { width = holder.clientWidth; holder.replaceChildren(); draw(holder, width); } };
  new ResizeObserver(() => { if (Math.abs(holder.clientWidth - width) > 1) holder.draw(); }).observe(holder);
  return holder;
}
