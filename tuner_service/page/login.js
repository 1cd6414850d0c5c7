// Logging in with an API key: the service answers with a cookie that no script can read.

import { h, replace } from "./dom.js";
import { send } from "./api.js";
import { param } from "./place.js";

export function login(main) {
  document.title = "Log in · tuner";
  const wrong = h("p", { className: "wrong", role: "alert" });
  const key = h("input", { type: "password", id: "key", required: true, autocomplete: "current-password", autofocus: true });
  const next = param("next", "/");
  const enter = async (event) => {
    event.preventDefault();
    wrong.textContent = "";
    try {
      await send("POST", "/v1/session", { key: key.value });
      // Only a path of this site: "//host" would be another.
      location.assign(/^\/(?![\/\\])/.test(next) ? next : "/");
    } catch (error) {
      wrong.textContent = error.message;
      key.select();
    }
  };
  replace(main, h("form", { className: "card narrow", onsubmit: enter },
    h("h1", null, "Log in"),
    h("p", { className: "dim" }, "This service has API keys. ", h("code", null, "tuner keys create NAME"), " makes one."),
    h("label", { htmlFor: "key" }, "API key"), key, wrong,
    h("button", { className: "primary", type: "submit" }, "Log in")));
}
