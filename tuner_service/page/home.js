// `/`: what is going on. Studies that need a person come first.

import { h, replace, code } from "./dom.js";
import { get, follow, paced, studyPath } from "./api.js";
import { ago, arrow, better, duration, number } from "./format.js";
import { param, set } from "./place.js";
import { sparkline } from "./plot.js";
import { bar, pill } from "./parts.js";

const lines = new Map();  // sparklines by study and revision

export function home(main) {
  document.title = "Studies · tuner";
  const list = h("section", { ariaLabel: "Studies" });
  const workers = h("section", { ariaLabel: "Workers" });
  const search = h("input", { type: "search", placeholder: "Search by name, tag or owner", value: param("q"), ariaLabel: "Search studies",
    oninput: () => set({ q: search.value }) });
  const state = h("select", { ariaLabel: "State", onchange: () => set({ state: state.value }) },
    ["", "running", "queued", "paused", "completed", "failed", "cancelled"].map((word) =>
      h("option", { value: word, selected: word === param("state") }, word || "every state")));
  replace(main, h("div", { className: "head" }, h("h1", null, "Studies"),
    h("div", { className: "row" }, search, state, h("a", { className: "button primary", href: "/submit" }, "New study"))), list, workers);
  let shown = { items: [] }, known = { items: [] };
  const draw = () => { drawList(list, shown.items, shown.next_cursor); drawWorkers(workers, known.items); };
  const load = paced(async () => {
    [shown, known] = await Promise.all([get(`/v1/studies?limit=100${param("state") ? `&state=${param("state")}` : ""}`), get("/v1/workers")]);
    draw();
  }, 800);
  load();
  addEventListener("place", load);
  follow("/v1/events", "studies", load, (now) => document.body.classList.toggle("away", now === "away"));
  setInterval(load, 10000);  // workers come and go without an event
}

// Why a study needs a person; empty if it does not.
function trouble(study) {
  const { failed, done, total } = study.progress;
  if (study.state === "failed") return study.reason || "failed";
  if (["queued", "running"].includes(study.state) && study.reason) return study.reason;
  if (failed >= 3 && failed * 3 >= failed + done) return `${failed} of ${failed + done} ended trials failed`;
  return study.state === "paused" ? "" : total === 0 ? "no trials" : "";
}

function fits(study) {
  const words = param("q").toLowerCase().split(/\s+/).filter(Boolean);
  const text = [study.name, study.owner || "", ...Object.entries(study.tags).map(([k, v]) => `${k}=${v}`)].join(" ").toLowerCase();
  return words.every((word) => text.includes(word));
}

function drawList(list, items, more) {
  if (!items.length && !param("state")) return replace(list, empty());
  const found = items.filter(fits);
  const active = (study) => ["running", "queued", "paused"].includes(study.state);
  const order = (study) => (active(study) && trouble(study) ? 0 : active(study) ? 1 : 2);
  found.sort((a, b) => order(a) - order(b));
  if (!found.length) return replace(list, h("p", { className: "card empty" }, "No study fits. ",
    h("button", { type: "button", onclick: () => location.assign("/") }, "Show all")));
  replace(list, h("div", { className: "card flush scroll", tabIndex: 0, role: "region", ariaLabel: "List of studies" },
    h("table", { className: "studies" },
      h("thead", null, h("tr", null, ["Study", "State", "Progress", "Best", "", "Owner", "Age"].map((name, i) =>
        h("th", { className: i === 3 ? "num" : "" }, name || h("span", { className: "hidden" }, "Best so far"))))),
      h("tbody", null, found.map(row)))),
    more && h("p", { className: "dim" }, `The newest ${items.length} are shown.`));
}

function row(study) {
  const best = study.best_trial;
  const spark = h("td", { className: "spark" });
  const direction = h("span", { className: "dim" });
  fillSpark(study, spark, direction);
  const why = trouble(study);
  return h("tr", null,
    h("td", { className: "name" }, h("a", { href: `/studies/${encodeURIComponent(study.name)}` }, study.name),
      Object.entries(study.tags).slice(0, 3).map(([key, value]) => h("span", { className: "tag" }, value ? `${key}: ${value}` : key)),
      why && h("div", { className: "why" }, why)),
    h("td", null, pill(study.state)),
    h("td", { className: "wide" }, bar(study.progress), h("div", { className: "dim small" },
      `${study.progress.done + study.progress.failed} of ${number(study.progress.total)}`,
      study.eta_seconds !== null && study.state === "running" ? ` · ${duration(study.eta_seconds)} left` : "")),
    h("td", { className: "num strong" }, best ? number(best.value) : "–", " ", direction),
    spark, h("td", { className: "dim" }, study.owner || "–"), h("td", { className: "dim nowrap" }, ago(study.created_at)));
}

async function fillSpark(study, cell, direction) {
  if (!study.progress.done) return;
  const key = study.id, kept = lines.get(key);
  const put = (found) => { replace(cell, sparkline(found.line)); direction.textContent = arrow(found.direction); };
  if (kept) put(kept);
  if (kept && kept.revision === study.revision) return;
  try {
    const columns = await get(`${studyPath(study.id)}/columns?most=400`);
    const several = columns.metrics.length > 1;
    const found = { revision: study.revision, direction: several ? "" : columns.directions[0], line: several ? [] : bestSoFar(columns) };
    lines.set(key, found);
    put(found);
  } catch { /* it was deleted a moment ago */ }
}

function bestSoFar(columns) {
  const line = [];
  let best = null;
  (columns.values[0] || []).forEach((value, i) => {
    if (value === null || columns.state[i] !== "COMPLETE") return;
    if (best === null || better(columns.directions[0], value, best)) best = value;
    line.push(best);
  });
  return line;
}

const empty = () => h("div", { className: "card empty" }, h("h2", null, "No studies yet"),
  h("p", { className: "dim" }, "A study is a search: data, a network, what to vary, and how many trials. Submit one from a terminal, or write it here."),
  code("tuner submit examples/digits-tpe.yaml --watch"),
  h("p", null, h("a", { className: "button primary", href: "/submit" }, "Write a study")));

function drawWorkers(section, workers) {
  replace(section, h("h2", null, "Workers"), workers.length
    ? h("div", { className: "tiles" }, workers.map((worker) => h("article", { className: "card tile" },
        h("div", { className: "row between" }, h("strong", null, worker.device || worker.queue), pill(worker.state)),
        h("div", { className: "dim small" }, `${worker.host} · ${worker.queue} · pid ${worker.pid}`),
        h("div", { className: "load" }, h("span", { style: { width: `${Math.min(100, (100 * worker.current_trials.length) / Math.max(1, worker.lanes))}%` } })),
        h("div", { className: "dim small" }, `${worker.current_trials.length} trials on board${worker.lanes ? `, ${worker.lanes} lanes` : ""} · heard of ${ago(worker.heartbeat_at)}`))))
    : h("div", { className: "card empty slim" }, h("p", null, "No worker is running: nothing will be trained."), code("tuner worker --queue cpu")));
}
