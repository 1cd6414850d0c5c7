// The trials: filtered, sorted and read by the page, so that 100,000 of them scroll.

import { h, replace } from "./dom.js";
import { Refused, get } from "./api.js";
import { WORDS, arrow, duration, number } from "./format.js";
import { param, set } from "./place.js";
import { card, nothing, pill } from "./parts.js";

const MOST_COMPARED = 5;

export function table(page) {
  const body = h("div"), wrongs = h("p", { className: "wrong", role: "alert" });
  const filter = h("input", { type: "search", className: "filter", ariaLabel: "Filter of trials", placeholder: "lr<1e-2 state:running optimizer:adam", spellcheck: false });
  filter.addEventListener("change", () => set({ filter: filter.value.trim() }));
  const node = card("Trials", filter, wrongs, body);
  const direction = page.columns.directions[0];
  const sort = () => param("sort", "best");
  const order = () => ({ best: direction === "maximize" ? "-value" : "value", newest: "-number", oldest: "number" })[sort()] || "-number";
  let items = [], next = null, pages = 1;

  const readPages = async () => {
    const found = [];
    let cursor = null;
    // By value those without one are left out: running trials come first all the same.
    if (sort() === "best") found.push(...(await running()));
    for (let i = 0; i < pages; i++) {
      const wanted = new URLSearchParams({ limit: 50, sort: order() });
      if (param("filter")) wanted.set("filter", param("filter"));
      if (cursor) wanted.set("cursor", cursor);
      const answer = await get(`${page.path}/trials?${wanted}`);
      found.push(...answer.items);
      cursor = answer.next_cursor;
      if (!cursor) break;
    }
    return [[...new Map(found.map((trial) => [trial.number, trial])).values()], cursor];
  };
  const running = async () => {
    const words = [param("filter"), "state:running"].filter(Boolean).join(" ");
    return (await get(`${page.path}/trials?${new URLSearchParams({ limit: 50, sort: "number", filter: words })}`)).items;
  };
  const load = async () => {
    try {
      [items, next] = await readPages();
      wrongs.textContent = "";
    } catch (error) {
      if (!(error instanceof Refused && error.status === 422)) throw error;
      wrongs.textContent = error.message;
    }
    draw();
  };
  const draw = () => {
    if (document.activeElement !== filter) filter.value = param("filter");
    const chosen = new Set(param("compare").split(",").filter(Boolean).map(Number));
    const names = Object.keys(page.columns.parameters);
    const metrics = page.columns.metrics;
    if (!items.length) return replace(body, nothing(param("filter") ? "No trial fits the filter." : "No trials yet. They appear when a worker starts the first."));
    const column = (words, key, className = "") => h("th", { className, ariaSort: key && sort() === key ? "descending" : null },
      key ? h("button", { type: "button", className: "link", onclick: () => set({ sort: key === "newest" && sort() === "newest" ? "oldest" : key === "best" ? null : key }) }, words, sort() === key ? " ▾" : key === "newest" && sort() === "oldest" ? " ▴" : "") : words);
    replace(body, h("div", { className: "scroll tall", tabIndex: 0, role: "region", ariaLabel: "Table of trials" }, h("table", { className: "trials" },
      h("thead", null, h("tr", null, h("th", null, h("span", { className: "hidden" }, "Compare")), column("#", "newest", "num"), column("State"),
        metrics.map((metric, i) => column(`${metric} ${arrow(page.columns.directions[i])}`, i === 0 ? "best" : "", "num")), names.map((name) => column(name, "", "num")), column("Time", "", "num"), column("Failure"))),
      h("tbody", null, items.map((trial) => row(trial, names, metrics, chosen))))),
      next && h("button", { type: "button", onclick: () => { pages += 1; load(); } }, "More"));
  };
  const row = (trial, names, metrics, chosen) => {
    const isBest = page.study.best_trial && page.study.best_trial.number === trial.number;
    const open = () => set({ trial: trial.number }, true);
    const mark = h("input", { type: "checkbox", checked: chosen.has(trial.number), ariaLabel: `Compare trial ${trial.number}`,
      disabled: !chosen.has(trial.number) && chosen.size >= MOST_COMPARED, onchange: () => {
        if (mark.checked) chosen.add(trial.number); else chosen.delete(trial.number);
        set({ compare: [...chosen].join(",") });
      } });
    return h("tr", { className: `${isBest ? "isbest" : ""} ${param("trial") === String(trial.number) ? "open" : ""}`, onclick: (event) => { if (!event.target.closest("input,button,a")) open(); } },
      h("td", null, mark), h("td", { className: "num" }, h("button", { type: "button", className: "link", onclick: open }, String(trial.number))),
      h("td", null, pill(WORDS[trial.state])),
      metrics.map((metric, i) => h("td", { className: `num ${isBest ? "gold" : ""}` }, valueOf(trial, metric, i))),
      names.map((name) => h("td", { className: "num" }, name in trial.parameters ? number(trial.parameters[name]) : h("span", { className: "faint" }, "n/a"))),
      h("td", { className: "num dim nowrap" }, trial.seconds === null ? (trial.last_step ? `epoch ${trial.last_step}` : "–") : duration(trial.seconds)),
      h("td", { className: "cut", title: trial.failure ? trial.failure.message : "" }, trial.failure ? trial.failure.message.split("\n")[0] : ""));
  };
  return { node, load, draw, wrong: (words) => { wrongs.textContent = words; } };
}

export function valueOf(trial, metric, index) {
  if (trial.values && trial.values[index] !== undefined) return number(trial.values[index]);
  if (trial.latest && typeof trial.latest[metric] === "number") return h("em", { title: "latest" }, number(trial.latest[metric]));
  return "–";
}
