// Small parts that several pages show.

import { h, s } from "./dom.js";

export const pill = (state) => h("span", { className: `pill ${state}` }, state);

export function bar(progress) {
  const complete = progress.done - progress.pruned;
  const parts = [["complete", complete], ["pruned", progress.pruned], ["failed", progress.failed],
    ["running", progress.leased], ["cancelled", progress.cancelled]];
  const total = Math.max(progress.total, 1);
  const words = parts.filter(([, count]) => count).map(([word, count]) => `${count} ${word}`).join(", ") || "nothing yet";
  return h("div", { className: "bar", role: "img", ariaLabel: `${words} of ${progress.total}`, title: words },
    parts.map(([word, count]) => count > 0 && h("span", { className: word, style: { width: `${(100 * count) / total}%` } })));
}

export const card = (title, aside, ...body) =>
  h("section", { className: "card" }, h("div", { className: "cardhead" }, h("h2", null, title), h("div", { className: "row" }, aside)), body);

export const nothing = (text) => h("p", { className: "nothing" }, text);

export const choice = (label, names, chosen, onchange) =>
  h("select", { ariaLabel: label, onchange: (event) => onchange(event.target.value) },
    names.map((name) => h("option", { value: name, selected: name === chosen }, name)));

export const dot = (className) => s("svg", { viewBox: "0 0 8 8", width: 8, height: 8, "aria-hidden": "true" }, s("circle", { cx: 4, cy: 4, r: 4, class: className }));
