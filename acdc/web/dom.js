// Builds elements. Text only ever becomes a text node, so nothing that a person or a file says is read as HTML.

export function el(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && typeof value !== "string") element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((child) => child !== null && child !== undefined));
  return element;
}

export function number(value) {
  if (value === null || value === undefined) return "–";
  if (typeof value !== "number") return String(value);
  if (Number.isInteger(value)) return value.toLocaleString("en");
  return Math.abs(value) >= 0.001 && Math.abs(value) < 1e6 ? String(Number(value.toPrecision(4))) : value.toExponential(2);
}

// A number of edges or a share of them, as it was typed: 1 is one edge and 1.0 is all, which are one number here, so all
// edges are sent as the word. What is no number goes as it is: the service says what it wants.
export function sizeOf(text) {
  if (/^1\.0*$/.test(text.trim())) return "all";
  return Number.isFinite(Number(text)) ? Number(text) : text.trim();
}

export function when(text) {
  return text ? el("time", { datetime: text }, new Date(text).toLocaleString()) : "–";
}

// columns: [title, row => cell, isNumber]
export function table(caption, columns, rows) {
  const side = (isNumber) => (isNumber ? { class: "number" } : {});
  const head = columns.map(([title, , isNumber]) => el("th", { scope: "col", ...side(isNumber) }, title));
  const body = rows.map((row) => el("tr", {}, columns.map(([, cell, isNumber]) => el("td", side(isNumber), cell(row)))));
  return el("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption },
    el("table", {}, el("caption", {}, caption), el("thead", {}, el("tr", {}, head)), el("tbody", {}, body)));
}

export function facts(pairs) {
  return el("dl", {}, pairs.map(([name, value]) => [el("dt", {}, name), el("dd", {}, value ?? "–")]));
}

export function field(label, control, hint = null) {
  return el("label", {}, label, control, hint && el("span", { class: "hint" }, hint));
}

export function select(name, values, chosen = "") {
  return el("select", { name }, values.map(([value, text]) => el("option", { value, selected: value === chosen }, text)));
}

export function problemBox(error) {
  const faults = (error.errors ?? []).map((fault) => el("li", {}, fault.where ? `${fault.where}: ` : "", fault.message));
  return el("div", { class: "problem", role: "alert" },
    el("p", {}, el("strong", {}, error.message)), faults.length ? el("ul", {}, faults) : null);
}

export function say(text) {
  const status = document.getElementById("status");
  status.textContent = text;
  setTimeout(() => { if (status.textContent === text) status.textContent = ""; }, 4000);
}
