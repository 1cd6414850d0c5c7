// A study's header: how it stands, and the levers on it.

import { code, confirmed, dialog, h, replace } from "./dom.js";
import { act, send } from "./api.js";
import { ago, arrow, duration, number } from "./format.js";
import { set } from "./place.js";
import { bar, pill } from "./parts.js";

const ENDED = ["completed", "cancelled", "failed"];

export function header(page) {
  const node = h("div", { className: "studyhead" });
  const draw = () => {
    const { study } = page;
    const best = study.best_trial;
    const direction = page.columns.directions[0];
    const { progress } = study;
    const ended = progress.done + progress.failed;
    replace(node,
      h("div", { className: "head" },
        h("div", { className: "title" }, h("a", { className: "dim", href: "/" }, "Studies"), h("h1", null, study.name), pill(study.state)),
        h("div", { className: "row levers" }, levers(page))),
      study.reason && h("p", { className: ENDED.includes(study.state) ? "note" : "note warn" }, study.reason),
      study.warnings.map((words) => h("p", { className: "note" }, words)),
      h("div", { className: "card stats" },
        h("div", { className: "stat" }, h("span", { className: "dim" }, `Best ${page.columns.metrics[0]} ${arrow(direction)}`),
          best ? h("button", { type: "button", className: "big link", onclick: () => set({ trial: best.number }, true) }, number(best.value)) : h("span", { className: "big" }, "–"),
          h("span", { className: "dim small" }, best ? `trial #${best.number}` : page.columns.metrics.length > 1 ? "see the Pareto front" : "no trial yet")),
        h("div", { className: "stat grow" }, h("span", { className: "dim" }, "Progress"),
          h("span", { className: "big" }, number(ended), h("span", { className: "of" }, ` of ${number(progress.total)}`)),
          bar(progress), counts(progress)),
        stat("Time left", study.state === "running" && study.eta_seconds !== null ? duration(study.eta_seconds) : "–", `started ${ago(study.started_at)}`),
        stat("Running", number(progress.leased), `at most ${number(study.parallel_trials)} at once`),
        stat("Owner", study.owner || "–", `submitted ${ago(study.created_at)}`)));
  };
  return { node, draw };
}

const stat = (name, value, small) => h("div", { className: "stat" }, h("span", { className: "dim" }, name),
  h("span", { className: "big" }, value), h("span", { className: "dim small" }, small));

const counts = (progress) => h("ul", { className: "legend" },
  [["complete", progress.done - progress.pruned], ["pruned", progress.pruned], ["failed", progress.failed], ["running", progress.leased], ["open", progress.open]]
    .filter(([, count]) => count).map(([word, count]) => h("li", null, h("i", { className: `block ${word}` }), `${number(count)} ${word}`)));

function levers(page) {
  const { study, path } = page;
  const button = (words, onclick, className = "") => h("button", { type: "button", onclick, className }, words);
  const go = (verb, told) => () => act(told, async () => { page.study = await send("POST", `${path}/${verb}`); page.header.draw(); });
  const ended = ENDED.includes(study.state);
  const running = ["running", "queued"].includes(study.state);
  return [
    running && button("Pause", go("pause", "Paused: running trials are handed back with a checkpoint")),
    study.state === "paused" && button("Resume", go("resume", "Resumed"), "primary"),
    !ended && button("Cancel", () => confirmed("Cancel this study?", "No new trial starts, and running ones are thrown away. Finished trials stay.",
      "Cancel the study", go("cancel", "Cancelled"), true)),
    ["running", "queued", "paused", "completed"].includes(study.state) && button("More trials", () => more(page)),
    button("Clone", () => location.assign(`/submit?from=${encodeURIComponent(study.name)}`)),
    button("Copy as…", () => copyAs(page)),
    study.best_trial && h("a", { className: "button primary", href: `${path}/trials/${study.best_trial.number}/model`, download: "",
      title: study.best_trial.has_model ? "A zip: weights, definition, predict.py" : "Its weights were not kept", ariaDisabled: study.best_trial.has_model ? null : "true",
      onclick: (event) => { if (!study.best_trial.has_model) event.preventDefault(); } }, "Get model"),
  ];
}

function more({ study, path }) {
  const total = study.progress.total;
  dialog("More trials", (close) => {
    const input = h("input", { type: "number", id: "total", min: total + 1, value: total + Math.max(10, Math.round(total / 2)), required: true });
    return h("form", { onsubmit: async (event) => {
      event.preventDefault();
      if (await act("The budget is raised", () => send("PATCH", path, { trials: Number(input.value) }))) close();
    } }, h("label", { htmlFor: "total" }, `Trials in all (now ${number(total)})`), input,
      h("div", { className: "row end" }, h("button", { type: "button", onclick: close }, "Keep as it is"), h("button", { className: "primary", type: "submit" }, "Raise")));
  });
}

export const shell = (text) => (/^[A-Za-z0-9._/:@%+=,-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\"'\"'")}'`);

function copyAs({ study }) {
  const url = location.origin, name = study.name;
  const elsewhere = url === "http://127.0.0.1:8000" ? "" : ` --url ${shell(url)}`;
  dialog("The same from elsewhere", () => [
    h("h3", null, "Command line"), code([`tuner status ${shell(name)} --watch${elsewhere}`, `tuner trials ${shell(name)}${elsewhere}`, `tuner model ${shell(name)} --out model${elsewhere}`].join("\n")),
    h("h3", null, "Python"), code(`from tuner_service.client import TunerClient\n\nwith TunerClient(${JSON.stringify(url)}) as client:\n    study = client.study(${JSON.stringify(name)})\n    print(study.best_trial.params)\n    print(study.trials_dataframe())`),
    h("h3", null, "curl"), code(`curl -s ${shell(`${url}/v1/studies/${encodeURIComponent(name)}`)}\ncurl -s ${shell(`${url}/v1/studies/${encodeURIComponent(name)}/export?format=csv`)}`),
  ], true);
}
