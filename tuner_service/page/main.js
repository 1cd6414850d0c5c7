// Which page an address is, and the bar on top of all of them.

import { h, replace } from "./dom.js";
import { send } from "./api.js";
import { home } from "./home.js";
import { study } from "./study.js";
import { submit } from "./submit.js";
import { login } from "./login.js";

const THEMES = ["system", "light", "dark"];
const stored = () => { try { return localStorage.getItem("theme"); } catch { return null; } };

function applyTheme(theme) {
  document.documentElement.dataset.theme = theme;
  try { localStorage.setItem("theme", theme); } catch { /* no storage: for this visit only */ }
}

function top() {
  const here = location.pathname;
  const link = (address, words) =>
    h("a", { href: address, ariaCurrent: here === address ? "page" : null }, words);
  const theme = h("button", { className: "quiet theme", type: "button", onclick: () => {
    const next = THEMES[(THEMES.indexOf(document.documentElement.dataset.theme) + 1) % THEMES.length];
    applyTheme(next);
    label();
  } });
  const label = () => {
    const now = document.documentElement.dataset.theme;
    theme.textContent = { system: "◐", light: "☀", dark: "☾" }[now];
    theme.ariaLabel = theme.title = `Colours: ${now}`;
  };
  label();
  const out = h("button", { className: "quiet", type: "button", hidden: true, onclick: async () => {
    await send("DELETE", "/v1/session");
    location.assign("/login");
  } }, "Log out");
  if (here !== "/login")
    fetch("/v1/session", { credentials: "same-origin" }).then((answer) => answer.ok && answer.json())
      .then((found) => { if (found && found.key) { out.hidden = false; out.title = `Logged in as ${found.name}`; } })
      .catch(() => {});
  replace(document.getElementById("top"),
    h("a", { className: "brand", href: "/" }, h("img", { src: "/page/icon.svg", alt: "", width: 22, height: 22 }), "tuner"),
    h("nav", { ariaLabel: "Pages" }, link("/", "Studies"), link("/submit", "New study"),
      h("a", { href: "/dashboard" }, "Optuna"), h("a", { href: "/docs" }, "API")),
    h("div", { className: "row" }, out, theme));
}

applyTheme(THEMES.includes(stored()) ? stored() : "system");
top();
const main = document.getElementById("main");
const parts = location.pathname.split("/").filter(Boolean);
if (parts[0] === "studies" && parts.length === 2) study(main, decodeURIComponent(parts[1]));
else if (parts[0] === "submit") submit(main);
else if (parts[0] === "login") login(main);
else home(main);
