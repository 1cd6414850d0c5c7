// Numbers, times and words as a person reads them.

export function number(value, digits = 5) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "boolean") return value ? "true" : "false";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value) && Math.abs(value) < 1e9) return value.toLocaleString("en-US");
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e7)) return value.toExponential(2).replace("e-", "e−");
  return String(Number(value.toPrecision(digits)));
}

export function tick(value) {
  if (value === 0) return "0";
  const size = Math.abs(value);
  if (size >= 1e5 || size < 1e-3) return value.toExponential(0).replace("e+", "e").replace("e-", "e−");
  return String(Number(value.toPrecision(4)));
}

export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 10) return `${seconds.toFixed(1)} s`;
  const whole = Math.round(seconds);
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min ${whole % 60} s`;
  if (whole < 172800) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 86400)} days`;
}

export function ago(time) {
  if (!time) return "–";
  const seconds = Math.max(0, (Date.now() - Date.parse(time)) / 1000);
  if (seconds < 5) return "now";
  if (seconds < 60) return `${Math.round(seconds)} s ago`;
  if (seconds < 3600) return `${Math.round(seconds / 60)} min ago`;
  if (seconds < 86400) return `${Math.round(seconds / 3600)} h ago`;
  return `${Math.round(seconds / 86400)} d ago`;
}

export const WORDS = { COMPLETE: "complete", PRUNED: "pruned", FAIL: "failed", RUNNING: "running", WAITING: "waiting" };

export const better = (direction, a, b) => (direction === "maximize" ? a > b : a < b);

export const arrow = (direction) => (direction === "maximize" ? "↑" : direction === "minimize" ? "↓" : "");

// A definition as YAML: blocks outside, one line for what is small.
export function yaml(value, indent = "") {
  return Object.entries(value)
    .filter(([, member]) => !(Array.isArray(member) && !member.length) && !(member && typeof member === "object" && !Object.keys(member).length))
    .map(([name, member]) => {
      const flat = flow(member);
      const isMap = member && typeof member === "object" && !Array.isArray(member);
      const isList = Array.isArray(member) && member.some((one) => one && typeof one === "object");
      if (isList) return `${indent}${plain(name)}:\n${member.map((one) => `${indent}  - ${flow(one)}`).join("\n")}`;
      if (isMap && Object.keys(member).length && (flat.length > 88 || indent === "" && name === "parameters"))
        return `${indent}${plain(name)}:\n${yaml(member, `${indent}  `)}`;
      return `${indent}${plain(name)}: ${flat}`;
    })
    .join("\n");
}

function flow(value) {
  if (Array.isArray(value)) return `[${value.map(flow).join(", ")}]`;
  if (value && typeof value === "object")
    return `{${Object.entries(value).map(([name, member]) => `${plain(name)}: ${flow(member)}`).join(", ")}}`;
  return typeof value === "string" ? plain(value) : JSON.stringify(value);
}

function plain(text) {
  const bare = /^[A-Za-z_][A-Za-z0-9_.-]*$/.test(text) && !/^(true|false|null|yes|no|on|off|y|n)$/i.test(text);
  return bare ? text : JSON.stringify(text);
}
