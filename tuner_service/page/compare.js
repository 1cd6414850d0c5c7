// Two to five trials beside each other: what differs first, their curves, and what they reached.

import { h, replace } from "./dom.js";
import { get } from "./api.js";
import { number } from "./format.js";
import { param, set } from "./place.js";
import { card } from "./parts.js";
import { axes, canvas, extent, hover, line } from "./plot.js";

export function compare(page) {
  const node = h("div");
  let shown = [];
  const wanted = () => param("compare").split(",").filter((text) => /^\d+$/.test(text)).slice(0, 5);
  const load = async () => {
    shown = wanted().length < 2 ? [] : await Promise.all(wanted().map((n) => get(`${page.path}/trials/${n}`)));
    draw();
  };
  const draw = () => {
    if (wanted().length === 1) return replace(node, h("p", { className: "note" }, "One more trial to compare: select it in the table."));
    if (shown.length < 2 || wanted().length < 2) return replace(node);
    const names = [...new Set(shown.flatMap((trial) => Object.keys(trial.parameters)))];
    const reached = [...new Set(shown.flatMap((trial) => Object.entries(trial.record).filter(([, value]) => typeof value === "number").map(([name]) => name)))];
    const differs = (read) => new Set(shown.map((trial) => JSON.stringify(read(trial) ?? null))).size > 1;
    const row = (name, read) => h("tr", { className: differs(read) ? "differs" : "" }, h("th", { scope: "row" }, name), shown.map((trial) => h("td", { className: "num" }, number(read(trial)))));
    const ordered = [...names].sort((a, b) => differs((t) => t.parameters[b]) - differs((t) => t.parameters[a]));
    replace(node, card("Comparison", h("button", { type: "button", onclick: () => set({ compare: null }) }, "Close"),
      canvas("small", (holder, width) => overlay(holder, width, page.columns.metrics[0], shown)),
      h("div", { className: "scroll", tabIndex: 0, role: "region", ariaLabel: "Comparison" }, h("table", null,
        h("thead", null, h("tr", null, h("th"), shown.map((trial, k) => h("th", { className: "num" }, h("i", { className: `swatch series${k}` }), ` #${trial.number}`)))),
        h("tbody", null, page.columns.metrics.map((metric, i) => row(metric, (trial) => (trial.values || [])[i])), ordered.map((name) => row(name, (trial) => trial.parameters[name])),
          reached.map((name) => row(name, (trial) => trial.record[name])), row("seconds", (trial) => trial.seconds)))))); 
  };
  return { node, load, draw };
}

function overlay(holder, width, metric, shown) {
  const read = (one) => (typeof one[metric] === "number" ? one[metric] : null);
  const range = extent(shown.flatMap((trial) => (trial.epochs || []).map(read)));
  if (!range) return;
  const longest = Math.max(...shown.map((trial) => (trial.epochs || []).length), 2);
  const plot = axes({ width, height: 240, label: `${metric} of ${shown.length} trials`, x: { domain: [1, longest], label: "epoch", whole: true }, y: { domain: range } });
  const points = [];
  shown.forEach((trial, k) => {
    const marks = (trial.epochs || []).map((one, i) => [plot.X(one.step ?? i + 1), read(one) === null ? NaN : plot.Y(read(one))]);
    plot.plot.append(line(marks, `series${k}`));
    marks.forEach(([x, y], i) => Number.isFinite(y) && points.push([x, y, `#${trial.number} · ${number(read(trial.epochs[i]))}`, trial.number]));
  });
  holder.append(plot.svg);
  hover(holder, plot.svg, points, null);
}
