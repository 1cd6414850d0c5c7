// Failures by what they say, with the region of the search space that holds them.

import { h } from "./dom.js";
import { number } from "./format.js";
import { set } from "./place.js";
import { nothing } from "./parts.js";

export function failures(found) {
  if (!found) return nothing("…");
  if (!found.groups.length) return nothing("No trial has failed.");
  return h("ul", { className: "failures" }, found.groups.map((group) => h("li", null,
    h("div", { className: "row between" }, h("span", { className: "pill failed" }, group.kind.replaceAll("_", " ")), h("strong", null, `${number(group.count)}×`)),
    h("p", { className: "message" }, group.message || "no message"),
    group.region.length > 0 && h("p", { className: "region" }, h("span", { className: "dim" }, "where "), group.region.map(side).join(" and "),
      h("span", { className: "dim" }, ` – ${number(group.inside)} of the ${number(group.region_trials)} trials there fail so`)),
    h("div", { className: "row" }, h("button", { type: "button", className: "link", onclick: () => set({ trial: group.numbers[0] }, true) }, `trial #${group.numbers[0]}`),
      h("button", { type: "button", className: "link", onclick: () => set({ filter: [`failure:${group.kind}`, ...group.region.flatMap(term)].join(" ") }) }, "filter to these")))));
}

function side(one) {
  if (one.choices) return `${one.parameter} is ${one.choices.map((value) => (value === null ? "n/a" : String(value))).join(" or ")}`;
  return one.low !== null ? `${one.parameter} ≥ ${number(one.low)}` : `${one.parameter} ≤ ${number(one.high)}`;
}

function term(one) {
  if (one.choices) return one.choices.length === 1 && /^[\w.-]+$/.test(String(one.choices[0])) ? [`${one.parameter}:${one.choices[0] === null ? "n/a" : one.choices[0]}`] : [];
  return [one.low !== null ? `${one.parameter}>=${one.low}` : `${one.parameter}<=${one.high}`];
}
