// Elements by text and attributes only: whatever a user names stays text, and no string is markup.

const SVG = "http://www.w3.org/2000/svg";

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name === "style") Object.assign(element.style, value);
    else if (name in element && !(element instanceof SVGElement) && name !== "list") element[name] = value;
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

export const h = (tag, attributes, ...children) =>
  fill(document.createElement(tag), attributes, children);

export const s = (tag, attributes, ...children) =>
  fill(document.createElementNS(SVG, tag), attributes, children);

export function replace(element, ...children) {
  element.replaceChildren(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

let hiding = 0;

// A sentence at the bottom of the screen, for a moment.
export function tell(text, wrong = false) {
  const told = document.getElementById("told");
  told.textContent = text;
  told.className = `told shown${wrong ? " wrong" : ""}`;
  clearTimeout(hiding);
  hiding = setTimeout(() => (told.className = "told"), wrong ? 8000 : 3500);
}

// Opens a dialog; `body(close)` returns its children. Escape and the backdrop close it.
export function dialog(title, body, wide = false) {
  const box = h("dialog", { className: wide ? "wide" : "" });
  const close = () => box.close();
  box.append(
    h("header", null, h("h2", null, title),
      h("button", { className: "quiet", type: "button", ariaLabel: "Close", onclick: close }, "✕")),
    h("div", { className: "body" }, body(close)),
  );
  box.addEventListener("close", () => box.remove());
  box.addEventListener("click", (event) => event.target === box && close());
  document.body.append(box);
  box.showModal();
  return box;
}

export function confirmed(title, text, action, run, dangerous = false) {
  dialog(title, (close) => [
    h("p", null, text),
    h("div", { className: "row end" },
      h("button", { type: "button", onclick: close }, "Keep as it is"),
      h("button", { type: "button", className: dangerous ? "danger" : "primary", autofocus: true,
        onclick: () => { close(); run(); } }, action)),
  ]);
}

export async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    tell("Copied");
  } catch {  // the clipboard is for secure contexts only
    const area = h("textarea", { value: text });
    document.body.append(area);
    area.select();
    tell(document.execCommand("copy") ? "Copied" : "Select the text, and copy it yourself", false);
    area.remove();
  }
}

export const code = (text) => h("div", { className: "code" }, h("pre", { tabIndex: 0 }, text),
  h("button", { className: "quiet", type: "button", ariaLabel: "Copy", onclick: () => copied(text) }, "Copy"));
