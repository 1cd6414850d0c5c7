// The service: requests, events, and what to do where a key is needed.

import { tell } from "./dom.js";

// A form of another site cannot send this header, and without it a cookie may change nothing.
const HEADERS = { "X-Tuner-Page": "1" };

export class Refused extends Error {
  constructor(status, problem) {
    super(problem.detail || problem.title || `the service answered ${status}`);
    this.status = status;
    this.problem = problem;
  }
}

async function ask(method, path, body, type) {
  const headers = { ...HEADERS, ...(body === undefined ? {} : { "Content-Type": type }) };
  const answer = await fetch(path, { method, headers, body, credentials: "same-origin", cache: "no-cache" });
  if (answer.status === 401 && !path.startsWith("/v1/session")) {
    const back = encodeURIComponent(location.pathname + location.search);
    if (location.pathname !== "/login") location.assign(`/login?next=${back}`);
  }
  if (!answer.ok) {
    const problem = await answer.json().catch(() => ({}));
    throw new Refused(answer.status, problem);
  }
  return answer;
}

export const get = async (path) => (await ask("GET", path)).json();
export const text = async (path) => (await ask("GET", path)).text();

export async function send(method, path, body) {
  const answer = await ask(method, path, body === undefined ? undefined : JSON.stringify(body), "application/json");
  return answer.status === 204 ? null : answer.json();
}

export async function sendYaml(path, body) {
  return (await ask("POST", path, body, "application/yaml")).json();
}

// Does what a button says; what the service refuses is told.
export async function act(words, run) {
  try {
    const done = await run();
    if (words) tell(words);
    return done;
  } catch (error) {
    tell(error.message, true);
    return null;
  }
}

export const studyPath = (name) => `/v1/studies/${encodeURIComponent(name)}`;

// Follows server-sent events; the browser comes back with the last id by itself.
export function follow(path, kind, onEvent, onState) {
  const source = new EventSource(path);
  source.addEventListener(kind, (event) => onEvent(JSON.parse(event.data)));
  source.addEventListener("deleted", () => onState("deleted"));
  source.onopen = () => onState("live");
  source.onerror = () => onState("away");
  return () => source.close();
}

// Calls `run` at once or soon: never twice at a time, and with pauses as long as it takes thrice,
// so that a large study neither floods the service nor freezes the page.
export function paced(run, least = 250) {
  let timer = 0, busy = false, again = false, ready = 0;
  const go = async () => {
    timer = 0;
    busy = true;
    again = false;
    const begun = performance.now();
    try {
      await run();
    } catch (error) {
      if (error.status !== 401) console.warn(error.message);
    }
    const took = performance.now() - begun;
    ready = performance.now() + Math.max(least, 3 * took);
    busy = false;
    if (again) soon();
  };
  const soon = () => {
    again = true;
    if (!busy && !timer) timer = setTimeout(go, Math.max(0, ready - performance.now()));
  };
  soon.stop = () => { clearTimeout(timer); timer = -1; };
  return soon;
}
