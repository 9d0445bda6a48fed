import { el, field, number, problemBox, table, when } from "./dom.js";
import { more } from "./jobs.js";
import { get, sendFile } from "./service.js";

const FILTERS = [
  ["task", "Task", "ioi"], ["method", "Method", "eap-ig-inputs"], ["model", "Model", "reference or fingerprint"],
  ["metric", "Metric", "logit_diff"], ["node", "Has node", "9.6 or mlp3"], ["edge", "Has edge", "5.5->9.6.q"], ["tag", "Tag", ""],
];

export async function circuitsPage(query) {
  const params = Object.fromEntries(new URLSearchParams(query));
  const page = await get("/v1/circuits", params);
  const columns = [
    ["Circuit", (row) => el("a", { href: `#/circuits/${row.id}` }, row.name ?? row.id)],
    ["Task", (row) => row.task], ["Method", (row) => row.method], ["Model", (row) => row.model_reference],
    ["Edges", (row) => `${number(row.n_edges)} of ${number(row.n_edges_total)}`, true],
    ["f", (row) => number(row.f), true], ["KL share", (row) => number(row.kl_share), true],
    ["Tags", (row) => row.tags.join(", ")], ["Stored", (row) => when(row.created_at)],
  ];
  const submit = (event) => {
    event.preventDefault();
    const given = [...new FormData(event.target)].filter(([, value]) => value !== "");
    location.hash = `#/circuits?${new URLSearchParams(given)}`;
  };
  const controls = FILTERS.map(([name, label, placeholder]) =>
    field(label, el("input", { name, placeholder, value: params[name] ?? "" })));
  return el("div", {},
    el("h2", {}, "Circuits"),
    el("form", { class: "filters", onsubmit: submit, role: "search" }, controls, el("button", {}, "Filter")),
    page.items.length
      ? table(`${page.items.length} circuits, newest first; f and KL share on held-out prompts`, columns, page.items)
      : el("p", {}, "No such circuits. ", el("a", { href: "#/new" }, "Start a search"), "."),
    more("#/circuits", params, page.next_cursor),
    importForm());
}

function importForm() {
  const input = el("input", { type: "file", name: "file", accept: ".safetensors", required: true });
  const answer = el("div", {});
  const submit = async (event) => {
    event.preventDefault();
    try {
      location.hash = `#/circuits/${(await sendFile("/v1/circuits", input.files[0])).id}`;
    } catch (error) {
      answer.replaceChildren(problemBox(error));
    }
  };
  return el("details", {}, el("summary", {}, "Import an exported circuit"),
    el("form", { onsubmit: submit }, field("Circuit file (.safetensors)", input), el("button", {}, "Import"), answer));
}
