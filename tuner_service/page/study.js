// `/studies/NAME`: one study, live, with its levers.

import { h, replace } from "./dom.js";
import { Refused, follow, get, paced, studyPath } from "./api.js";
import { number } from "./format.js";
import { param, query, set } from "./place.js";
import { card, choice, nothing } from "./parts.js";
import { canvas } from "./plot.js";
import { drawCurves, drawHistory, drawParallel, drawPareto, drawScatter } from "./charts.js";
import { failures } from "./failures.js";
import { header } from "./header.js";
import { table } from "./table.js";
import { trial } from "./trial.js";
import { compare } from "./compare.js";

const CHARTS = ["curves", "history", "parallel", "scatter", "pareto"];
const filtered = () => param("filter");
const part = (name) => `${name}?${new URLSearchParams(filtered() ? { filter: filtered() } : {})}`;

export async function study(main, name) {
  document.title = `${name} · tuner`;
  const path = studyPath(name);
  const page = { name, path, study: null, columns: null, curves: null, importances: {}, failures: null };
  try {
    [page.study, page.columns] = await Promise.all([get(path), get(`${path}/columns`)]);
  } catch (error) {
    const missing = error instanceof Refused && error.status === 404;
    return replace(main, h("div", { className: "card empty" }, h("h1", null, missing ? "There is no such study" : "The study cannot be shown"),
      h("p", null, missing ? name : error.message), h("a", { className: "button", href: "/" }, "All studies")));
  }
  build(main, page);
  const load = loaders(page);
  load.all();
  addEventListener("place", () => { page.drawAll(); load.onPlace(); });
  follow(`${path}/events`, "study", (now) => { page.study = now; page.header.draw(); load.all(); }, (now) => {
    document.body.classList.toggle("away", now === "away");
    if (now === "deleted") location.assign("/");
  });
}

function build(main, page) {
  const pick = (n) => set({ trial: n }, true);
  const objective = () => Math.max(0, page.columns.metrics.indexOf(param("objective", page.columns.metrics[0])));
  const best = () => page.study.best_trial && page.study.best_trial.number;
  const names = () => [...Object.keys(page.columns.parameters), ...page.columns.metrics];
  const ranked = () => Object.keys(page.columns.parameters).sort((a, b) => (page.importances[b] || 0) - (page.importances[a] || 0));
  const chosen = () => param("compare").split(",").filter(Boolean).map(Number);
  const axisOf = (which, i) => (names().includes(param(which)) ? param(which) : ranked()[i] || page.columns.metrics[0]);
  const several = page.columns.metrics.length > 1;

  const draw = {
    curves: canvas("curves", (holder, width) => page.curves
      ? drawCurves(holder, width, page.curves, { best: best(), direction: page.columns.directions[0], pick, chosen: chosen() }) : holder.append(nothing("…"))),
    history: canvas("history", (holder, width) => drawHistory(holder, width, page.columns, { objective: objective(), pick })),
    parallel: canvas("parallel", (holder, width) => drawParallel(holder, width, page.columns, { importances: page.importances, objective: objective(), brush })),
    scatter: canvas("scatter", (holder, width) => drawScatter(holder, width, page.columns, { x: axisOf("x", 0), y: axisOf("y", 1), objective: objective(), pick })),
    pareto: several && canvas("pareto", (holder, width) => drawPareto(holder, width, page.columns, { pick })),
  };
  const metric = h("span"), objectives = h("span"), axisX = h("span"), axisY = h("span"), filterNote = h("div");
  const failed = h("div");
  page.header = header(page);
  page.table = table(page);
  page.trial = trial(page);
  page.compare = compare(page);
  page.draw = draw;
  page.drawOne = (name) => draw[name] && draw[name].draw();
  page.drawControls = () => {
    replace(metric, page.curves && choice("Metric", page.curves.metrics, page.curves.metric, (value) => set({ metric: value === page.columns.metrics[0] ? null : value })));
    replace(objectives, several && choice("Objective", page.columns.metrics, page.columns.metrics[objective()], (value) => set({ objective: value })));
    replace(axisX, choice("Across", names(), axisOf("x", 0), (value) => set({ x: value })));
    replace(axisY, choice("Upright", names(), axisOf("y", 1), (value) => set({ y: value })));
    replace(filterNote, filtered() && h("p", { className: "filternote" }, "Only trials that fit ", h("code", null, filtered()), ` (${number(page.columns.total)}) `,
      h("button", { type: "button", onclick: () => set({ filter: null }) }, "Show all")));
  };
  page.drawFailures = () => replace(failed, failures(page.failures));
  page.drawAll = () => {
    page.drawControls();
    CHARTS.forEach(page.drawOne);
    page.header.draw();
    page.table.draw();
    page.trial.draw();
    page.compare.draw();
  };
  replace(main, page.header.node, filterNote,
    h("div", { className: "grid" },
      h("div", { className: "span7" }, card("Curves", metric, draw.curves)),
      h("div", { className: "span5" }, card("History", objectives, draw.history)),
      several && h("div", { className: "span12" }, card("Pareto front", null, draw.pareto)),
      h("div", { className: "span12" }, card("Parameters", null, draw.parallel)),
      h("div", { className: "span6" }, card("Two parameters", [axisX, h("span", { className: "dim" }, "×"), axisY], draw.scatter)),
      h("div", { className: "span6" }, card("Failures", null, failed)),
      h("div", { className: "span12" }, page.compare.node),
      h("div", { className: "span12" }, page.table.node)),
    page.trial.node);
  page.drawAll();
}

// Takes an interval of one parameter into the filter, in place of an earlier one.
function brush(terms, name) {
  const kept = filtered().match(/(?:[^\s'"]|'[^']*'|"[^"]*")+/g) || [];
  set({ filter: [...kept.filter((term) => !new RegExp(`^${name}(<|>|=|:|!)`).test(term)), ...terms].join(" ") });
}

// What is read when: curves and trials with each change, the dear ones when trials have ended.
function loaders(page) {
  let ended = -1, asked = "";
  const metricQuery = () => new URLSearchParams(param("metric") ? { metric: param("metric") } : {});
  const curves = paced(async () => {
    const wanted = metricQuery();
    const since = page.curves && asked === wanted.toString() ? page.curves.revision : null;
    if (since !== null) wanted.set("since", since);
    const found = await get(`${page.path}/curves?${wanted}`);
    page.curves = since === null ? found : merged(page.curves, found);
    asked = metricQuery().toString();
    page.drawControls();
    page.drawOne("curves");
  });
  const columns = paced(async () => {
    try {
      page.columns = await get(`${page.path}/${part("columns")}`);
      page.table.wrong("");
    } catch (error) {
      if (error instanceof Refused && error.status === 422) return page.table.wrong(error.message);
      throw error;
    }
    page.drawControls();
    ["history", "parallel", "scatter", "pareto"].forEach(page.drawOne);
  }, 500);
  const statistics = paced(async () => {
    const [found, failed] = await Promise.all([get(`${page.path}/importances`), get(`${page.path}/failures`)]);
    page.importances = found.importances;
    page.failures = failed;
    page.drawControls();
    page.drawFailures();
    ["parallel", "scatter"].forEach(page.drawOne);
  }, 2000);
  const rows = paced(() => page.table.load(), 500);
  const one = paced(() => Promise.all([page.trial.load(), page.compare.load()]), 400);
  let before = query().toString();
  return {
    all() {
      curves(); columns(); rows(); one();
      const { done, failed } = page.study.progress;
      if (done + failed !== ended) { ended = done + failed; statistics(); }
    },
    onPlace() {
      const now = query().toString(), old = new URLSearchParams(before), fresh = query();
      before = now;
      const changed = (name) => old.get(name) !== fresh.get(name);
      if (changed("metric")) curves();
      if (changed("filter")) columns();
      if (changed("filter") || changed("sort")) rows();
      if (changed("trial") || changed("compare")) one();
    },
  };
}

function merged(old, fresh) {
  const byNumber = new Map(old.curves.map((curve) => [curve.number, curve]));
  fresh.curves.forEach((curve) => byNumber.set(curve.number, curve));
  const newest = [...byNumber.values()].sort((a, b) => a.number - b.number);
  return { ...fresh, metrics: fresh.metrics.length > 1 ? fresh.metrics : old.metrics, curves: newest };
}
