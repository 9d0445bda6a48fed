// Which page the address names. Pages are functions (arguments, signal) => element; the signal ends with the page.

import { circuitPage } from "./circuit.js";
import { circuitsPage } from "./circuits.js";
import { el, field, problemBox } from "./dom.js";
import { jobPage, jobsPage } from "./jobs.js";
import { mapPage, mapsPage } from "./maps.js";
import { newPage } from "./new.js";
import { useKey } from "./service.js";

const PAGES = [
  [/^#\/circuits(?:\?(.*))?$/, circuitsPage, "Circuits"],
  [/^#\/circuits\/([a-z0-9_]+)$/, circuitPage, "Circuit"],
  [/^#\/maps(?:\?(.*))?$/, mapsPage, "Maps"],
  [/^#\/maps\/([a-z0-9_]+)$/, mapPage, "Map"],
  [/^#\/jobs(?:\?(.*))?$/, jobsPage, "Jobs"],
  [/^#\/jobs\/([a-z0-9_]+)$/, jobPage, "Job"],
  [/^#\/new$/, newPage, "New search"],
];
const main = document.getElementById("main");
let leave = new AbortController();

async function show() {
  if (location.hash === "#main") return main.focus();
  leave.abort();
  leave = new AbortController();
  const { signal } = leave;
  const found = PAGES.map(([pattern, page, title]) => [location.hash.match(pattern), page, title]).find(([match]) => match);
  if (!found) return location.replace("#/circuits");
  const [match, page, title] = found;
  document.title = `${title} – acdc`;
  for (const link of document.querySelectorAll("nav a")) {
    const isHere = location.hash.startsWith(link.getAttribute("href"));
    if (isHere) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  try {
    const content = await page(match[1] ?? "", signal);
    if (!signal.aborted) main.replaceChildren(content);
  } catch (error) {
    if (signal.aborted) return;
    if (error.status === undefined) console.error(error);
    main.replaceChildren(error.status === 401 ? keyForm() : problemBox(error));
  }
  main.focus({ preventScroll: true });
}

function keyForm() {
  const input = el("input", { type: "password", name: "key", autocomplete: "off", required: true });
  const submit = (event) => {
    event.preventDefault();
    useKey(input.value);
    show();
  };
  return el("form", { onsubmit: submit },
    el("h2", {}, "This service wants its key"), field("Key (ACDC_API_KEY of the server)", input),
    el("button", { class: "main" }, "Continue"));
}

addEventListener("hashchange", show);
show();
