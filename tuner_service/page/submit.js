// `/submit`: a study in YAML, checked by the service while it is written.

import { h, replace, tell } from "./dom.js";
import { get, paced, sendYaml, studyPath } from "./api.js";
import { number, yaml } from "./format.js";
import { param } from "./place.js";

const EXAMPLE = `name: first
dataset: {name: digits, split: {validation: 0.2, test: 0.2, seed: 0}}
network: {type: mlp, hidden_layers: 2}
objective: {metric: val_accuracy}
parameters:
  learning_rate: {type: float, low: 1e-4, high: 1e-1, log: true}
  batch_size: {type: categorical, choices: [32, 64, 128]}
  hidden_units: {type: int, low: 16, high: 64, log: true}
sampler: {type: tpe, seed: 42}
pruner: {type: median}
training: {epochs: 10}
budget: {trials: 50}
`;

export async function submit(main) {
  document.title = "New study · tuner";
  const area = h("textarea", { className: "editor", spellcheck: false, ariaLabel: "Study definition (YAML)", value: await start() });
  const found = h("div", { className: "found", role: "status" });
  const words = h("ul", { className: "words", hidden: true, role: "listbox", ariaLabel: "Completions" });
  const send = h("button", { className: "primary", type: "button" }, "Submit");
  replace(main, h("div", { className: "head" }, h("h1", null, param("from") ? `Clone of ${param("from")}` : "New study"), h("div", { className: "row" }, send)),
    h("div", { className: "grid" }, h("div", { className: "span8" }, h("div", { className: "card flush edit" }, area, words),
      h("p", { className: "dim small" }, "Ctrl-Space completes. Ctrl-Enter submits.")), h("div", { className: "span4" }, h("div", { className: "card" }, h("h2", null, "Check"), found))));
  const check = paced(async () => {
    try {
      drawPlan(found, await sendYaml("/v1/studies/validate", area.value));
      send.disabled = false;
    } catch (error) {
      send.disabled = true;
      drawFaults(found, error);
    }
  }, 400);
  const go = async () => {
    try {
      const study = await sendYaml("/v1/studies", area.value);
      location.assign(`/studies/${encodeURIComponent(study.name)}`);
    } catch (error) {
      drawFaults(found, error);
      tell("It was not submitted", true);
    }
  };
  send.addEventListener("click", go);
  area.addEventListener("input", check);
  const complete = completion(area, words, await get("/v1/schema/study").catch(() => null));
  area.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && event.ctrlKey) { event.preventDefault(); if (!send.disabled) go(); return; }
    complete(event);
  });
  area.focus();
  check();
}

async function start() {
  const from = param("from");
  if (!from) return EXAMPLE;
  const study = await get(studyPath(from)).catch(() => null);
  if (!study) return EXAMPLE;
  const definition = { ...study.definition, name: `${study.name}-copy`.slice(0, 128) };
  if (/^\d+$/.test(param("trial"))) {
    const trial = await get(`${studyPath(from)}/trials/${param("trial")}`).catch(() => null);
    if (trial) definition.enqueue = [trial.parameters, ...(definition.enqueue || [])];
  }
  return `${yaml(definition)}\n`;
}

function drawFaults(found, error) {
  const faults = (error.problem && error.problem.errors) || [];
  replace(found, h("p", { className: "wrong" }, faults.length ? `Wrong in ${faults.length === 1 ? "one place" : `${faults.length} places`}` : error.message),
    h("ul", { className: "faults" }, faults.map((fault) => h("li", null, h("code", null, fault.pointer || "/"), " ", fault.detail))));
}

function drawPlan(found, plan) {
  const line = (name, value) => h("div", null, h("dt", null, name), h("dd", null, value));
  replace(found, h("p", { className: "good" }, "It can be submitted."), h("dl", { className: "pairs" }, line("trials", number(plan.slots)), line("at once", number(plan.parallel_trials)),
    plan.grid_size !== null && line("grid points", number(plan.grid_size)), line("parameters", number(plan.parameters.length)), line("trained together", plan.fusible.join(", ") || "–"),
    line("split groups", plan.structural.join(", ") || "–")), plan.warnings.map((text) => h("p", { className: "note warn" }, text)));
}

// Offers the keys and words that the schema knows where the cursor is.
function completion(area, list, schema) {
  let chosen = 0, offers = [];
  const hide = () => { list.hidden = true; };
  const put = (text) => {
    const at = area.selectionStart, before = area.value.slice(0, at);
    const word = before.match(/[\w.-]*$/)[0];
    area.setRangeText(text, at - word.length, at, "end");
    hide();
    area.dispatchEvent(new Event("input"));
  };
  const draw = () => replace(list, offers.slice(0, 12).map(([text, about], i) => h("li", { role: "option", ariaSelected: i === chosen ? "true" : "false",
    onmousedown: (event) => { event.preventDefault(); put(text); } }, h("strong", null, text), h("span", { className: "dim" }, about))));
  return (event) => {
    if (!list.hidden && ["ArrowDown", "ArrowUp", "Enter", "Tab", "Escape"].includes(event.key)) {
      event.preventDefault();
      if (event.key === "Escape") return hide();
      if (event.key === "Enter" || event.key === "Tab") return put(offers[chosen][0]);
      chosen = (chosen + (event.key === "ArrowDown" ? 1 : -1) + Math.min(12, offers.length)) % Math.min(12, offers.length);
      return draw();
    }
    if (event.key === " " && event.ctrlKey && schema) {
      event.preventDefault();
      offers = offered(schema, area.value.slice(0, area.selectionStart));
      chosen = 0;
      list.hidden = !offers.length;
      return draw();
    }
    hide();
  };
}

function offered(schema, before) {
  const word = before.match(/[\w.-]*$/)[0].toLowerCase();
  const path = pathTo(before);
  let node = resolve(schema, schema);
  for (const key of path) node = resolve(schema, step(schema, node, key));
  const value = before.slice(0, before.length - word.length).match(/([\w.-]+):\s*$/);
  const found = value ? words(schema, resolve(schema, step(schema, node, value[1]))) : keys(schema, node);
  return found.filter(([text]) => text.toLowerCase().startsWith(word));
}

// The keys above the cursor: by indentation, then by the braces that are open on its line.
function pathTo(before) {
  const rows = before.split("\n"), last = rows.pop();
  const path = [];
  let indent = last.match(/^\s*/)[0].length;
  for (const row of rows.reverse()) {
    const head = row.match(/^(\s*)(?:- )?([\w.-]+):\s*$/);
    if (head && head[1].length < indent) { path.unshift(head[2]); indent = head[1].length; }
  }
  const open = [];
  for (const mark of last.matchAll(/([\w.-]+):\s*\{|\}/g)) if (mark[1]) open.push(mark[1]); else open.pop();
  return [...path, ...open];
}

const branches = (schema, node) => (node ? [node, ...[...(node.anyOf || []), ...(node.oneOf || []), ...(node.allOf || [])].map((one) => resolve(schema, one))] : []);

function resolve(schema, node) {
  let now = node;
  while (now && now.$ref) now = now.$ref.replace("#/", "").split("/").reduce((at, key) => at && at[key], schema);
  return now || null;
}

function step(schema, node, key) {
  for (const one of branches(schema, node)) {
    if (one && one.properties && one.properties[key]) return one.properties[key];
  }
  for (const one of branches(schema, node)) {
    const inner = one && (typeof one.additionalProperties === "object" ? one.additionalProperties : one.patternProperties && Object.values(one.patternProperties)[0]);
    if (inner) return inner;
  }
  return null;
}

const keys = (schema, node) => [...new Map(branches(schema, node).flatMap((one) => Object.entries((one && one.properties) || {})).map(([name, inner]) => [name, [name, (inner.description || "").slice(0, 70)]])).values()];

const words = (schema, node) => branches(schema, node).flatMap((one) => [...((one && one.enum) || []), ...(one && one.const !== undefined ? [one.const] : []), ...((one && one.examples) || [])])
  .filter((one) => typeof one === "string").map((one) => [one, ""]);
