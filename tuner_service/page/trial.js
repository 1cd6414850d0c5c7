// One trial, beside the page: its values, curve, log and levers.

import { code, confirmed, h, replace } from "./dom.js";
import { act, get, send, text } from "./api.js";
import { WORDS, duration, number } from "./format.js";
import { param, set } from "./place.js";
import { nothing, pill } from "./parts.js";
import { axes, canvas, extent, hover, line } from "./plot.js";
import { valueOf } from "./table.js";

export function trial(page) {
  const node = h("aside", { className: "drawer", hidden: true, ariaLabel: "Trial" });
  let shown = null, log = "";
  const close = () => set({ trial: null }, true);
  addEventListener("keydown", (event) => { if (event.key === "Escape" && !node.hidden && !document.querySelector("dialog")) close(); });

  const load = async () => {
    const wanted = param("trial");
    if (!/^\d+$/.test(wanted)) { shown = null; return draw(); }
    if (shown && shown.state !== "RUNNING" && String(shown.number) === wanted) return;
    try {
      [shown, log] = await Promise.all([get(`${page.path}/trials/${wanted}`), text(`${page.path}/trials/${wanted}/logs?tail=400`).catch(() => "")]);
    } catch (error) {
      shown = null;
      if (error.status === 404) return set({ trial: null });
      throw error;
    }
    draw();
  };
  const draw = () => {
    const wanted = param("trial");
    node.hidden = !wanted || !shown || String(shown.number) !== wanted;
    document.body.classList.toggle("drawn", !node.hidden);
    if (node.hidden) return;
    const old = node.querySelector(".log pre");
    const atEnd = !old || old.scrollHeight - old.scrollTop - old.clientHeight < 30;
    const where = node.scrollTop, focus = node.contains(document.activeElement) ? document.activeElement.textContent : null;
    replace(node, h("div", { className: "drawerhead" }, h("h2", null, `Trial #${shown.number}`), pill(WORDS[shown.state]),
      h("button", { type: "button", className: "quiet", ariaLabel: "Close", onclick: close }, "✕")), body());
    node.scrollTop = where;
    const fresh = node.querySelector(".log pre");
    if (fresh && atEnd) fresh.scrollTop = fresh.scrollHeight;
    if (focus !== null) [...node.querySelectorAll("button,a")].find((one) => one.textContent === focus)?.focus();
  };
  const body = () => {
    const metrics = page.columns.metrics;
    return [
      h("div", { className: "row levers" }, levers(page, shown)),
      h("dl", { className: "pairs" }, metrics.map((metric, i) => pair(metric, valueOf(shown, metric, i))), pair("rank", rank(page, shown)),
        pair("time", shown.seconds === null ? "running" : duration(shown.seconds)), pair("epochs", number(shown.last_step)), pair("device", shown.device || "–"),
        pair("trained", shown.backend ? `${shown.backend}${shown.backend_reason ? ` (${shown.backend_reason})` : ""}` : "–"), pair("attempt", number(shown.attempt))),
      h("h3", null, "Parameters"), h("dl", { className: "pairs" }, Object.entries(shown.parameters).map(([name, value]) => pair(name, number(value)))),
      h("h3", null, "Curves"), curves(shown),
      reached(shown),
      shown.failure && [h("h3", null, "Failure"), h("p", { className: "message wrong" }, `${shown.failure.kind}: ${shown.failure.message}`), shown.failure.traceback && code(shown.failure.traceback)],
      h("h3", null, "Log"), log ? h("div", { className: "log" }, h("pre", { tabIndex: 0 }, log)) : nothing("It printed nothing."),
    ];
  };
  return { node, load, draw };
}

const pair = (name, value) => h("div", null, h("dt", null, name), h("dd", null, value));

function rank(page, shown) {
  if (shown.value === null || shown.state !== "COMPLETE") return "–";
  const up = page.columns.directions[0] === "maximize";
  const all = (page.columns.values[0] || []).filter((value, i) => value !== null && page.columns.state[i] === "COMPLETE");
  const ahead = all.filter((value) => (up ? value > shown.value : value < shown.value)).length;
  return `${ahead + 1} of ${all.length}`;
}

function curves(shown) {
  const epochs = shown.epochs || [];
  const names = Object.keys(epochs[epochs.length - 1] || {}).filter((name) => !["step", "epoch", "learning_rate", "seconds"].includes(name) && typeof epochs[epochs.length - 1][name] === "number");
  if (!names.length) return nothing("It has not reported yet.");
  const groups = [names.filter((name) => /loss/.test(name)), names.filter((name) => !/loss/.test(name))].filter((group) => group.length);
  return groups.map((group) => canvas("small", (holder, width) => {
    const values = epochs.flatMap((one) => group.map((name) => one[name] ?? null));
    const range = extent(values);
    if (!range) return;
    const steps = epochs.map((one, i) => one.step ?? one.epoch ?? i + 1);
    const plot = axes({ width, height: 170, label: group.join(", "), x: { domain: extent(steps), label: "epoch", whole: true }, y: { domain: range } });
    const points = [];
    group.slice(0, 4).forEach((name, k) => {
      const marks = epochs.map((one, i) => [plot.X(steps[i]), typeof one[name] === "number" ? plot.Y(one[name]) : NaN]);
      plot.plot.append(line(marks, `series${k}`));
      marks.forEach(([x, y], i) => Number.isFinite(y) && points.push([x, y, `${name} · epoch ${steps[i]} · ${number(epochs[i][name])}`, 0]));
    });
    holder.append(plot.svg, h("ul", { className: "legend" }, group.slice(0, 4).map((name, k) => h("li", null, h("i", { className: `series${k}` }), name))));
    hover(holder, plot.svg, points, null);
  }));
}

function reached(shown) {
  const numbers = Object.entries(shown.record).filter(([, value]) => typeof value === "number");
  if (!numbers.length) return null;
  return [h("h3", null, "Reached"), h("dl", { className: "pairs" }, numbers.map(([name, value]) => pair(name, number(value))))];
}

function levers(page, shown) {
  const address = `${page.path}/trials/${shown.number}`;
  const button = (words, onclick) => h("button", { type: "button", onclick }, words);
  const ended = ["cancelled", "failed"].includes(page.study.state);
  return [
    shown.state === "RUNNING" && button("Stop, keep value", () => confirmed("Stop this trial?", "It ends as pruned at its next report, with the value it has then.", "Stop it",
      () => act("It stops at its next report", () => send("POST", `${address}/stop`)))),
    shown.state !== "RUNNING" && !ended && page.study.definition.sampler?.type !== "grid" && button("Run again",
      () => act("Its parameters are tried once more, with another seed", () => send("POST", `${address}/rerun`))),
    button("Clone point", () => location.assign(`/submit?from=${encodeURIComponent(page.name)}&trial=${shown.number}`)),
    shown.has_model && h("a", { className: "button", href: `${address}/model`, download: "" }, "Get model"),
  ];
}
