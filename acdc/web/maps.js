import { el, facts, field, number, select, table, when } from "./dom.js";
import { naturalSize, picture, saveButtons } from "./files.js";
import { more } from "./jobs.js";
import { get } from "./service.js";

const KINDS = ["activation_patching", "path_patching", "causal_tracing", "attention_knockout"];
const FILTERS = [["task", "Task", "ioi"], ["model", "Model", "reference or fingerprint"], ["metric", "Metric", "logit_diff"], ["tag", "Tag", ""]];

const words = (name) => name.replaceAll("_", " ");
const sizes = (map) => map.axes.map((axis) => `${axis.labels.length} ${axis.name}`).join(" × ");
const places = (map, cell) => map.axes.map((axis) => `${axis.name} ${cell[axis.name]}`).join(", ");

export async function mapsPage(query) {
  const params = Object.fromEntries(new URLSearchParams(query));
  const page = await get("/v1/maps", params);
  const columns = [
    ["Map", (row) => el("a", { href: `#/maps/${row.id}` }, row.name ?? row.id)],
    ["Kind", (row) => words(row.kind)], ["Task", (row) => row.task], ["Model", (row) => row.model_reference],
    ["Axes", sizes], ["Metric", (row) => row.metric], ["Strongest cell", (row) => (row.strongest.length ? places(row, row.strongest[0]) : "–")],
    ["Its effect", (row) => number(row.strongest[0]?.effect), true],
    ["Tags", (row) => row.tags.join(", ")], ["Stored", (row) => when(row.created_at)],
  ];
  const submit = (event) => {
    event.preventDefault();
    const given = [...new FormData(event.target)].filter(([, value]) => value !== "");
    location.hash = `#/maps?${new URLSearchParams(given)}`;
  };
  const kinds = select("kind", [["", "any"], ...KINDS.map((kind) => [kind, words(kind)])], params.kind ?? "");
  const controls = FILTERS.map(([name, label, placeholder]) =>
    field(label, el("input", { name, placeholder, value: params[name] ?? "" })));
  return el("div", {},
    el("h2", {}, "Patching maps"),
    el("form", { class: "filters", onsubmit: submit, role: "search" }, field("Kind", kinds), controls, el("button", {}, "Filter")),
    page.items.length
      ? table(`${page.items.length} maps, newest first`, columns, page.items)
      : el("p", {}, "No such maps. ", el("code", {}, "acdc submit ioi --map activations"), " makes one."),
    more("#/maps", params, page.next_cursor));
}

export async function mapPage(mapId, signal) {
  const root = `/v1/maps/${mapId}`;
  const map = await get(root);
  const description = `Heat map, ${sizes(map)}; the strongest cells are in the table below`;
  const drawing = el("div", {}, picture(`${root}/heatmap.svg`, description, signal));
  return el("div", {},
    el("h2", {}, map.name ?? map.id),
    headline(map),
    el("h3", {}, "Picture"), el("div", { class: "row" }, naturalSize(drawing)), drawing,
    el("h3", {}, "Strongest cells"), strongest(map),
    el("h3", {}, "What the numbers depend on"), choices(map.provenance),
    el("h3", {}, "Take it away"),
    saveButtons(root, map.id, [
      ["Everything (safetensors)", "/export?format=safetensors", "safetensors"], ["Every cell (CSV)", "/export?format=csv", "csv"],
      ["Axes and numbers (JSON)", "/export?format=json", "json"], ["Picture (SVG)", "/heatmap.svg", "svg"],
    ]));
}

function headline(map) {
  return facts([
    ["Kind", words(map.kind)], ["Task", map.task], ["Model", map.provenance.model.title], ["Axes", sizes(map)],
    ["Changed run", map.base], ["Metric", map.metric],
    ["Unchanged", `${number(map.clean)} clean, ${number(map.corrupt)} corrupt, over ${number(map.n_examples)} prompts`],
    ["Cells", `${number(map.n_cells)}; ${map.too_few || `${number(map.n_clear)} have a 95 % interval without 0, and 5 % of all would by chance`}`],
    ["Id", map.id], ["Tags", map.tags.join(", ") || null], ["Notes", map.notes],
    ["Job", map.job_id && el("a", { href: `#/jobs/${map.job_id}` }, map.job_id)], ["Stored", when(map.created_at)],
  ]);
}

function strongest(map) {
  const columns = [
    ...map.axes.map((axis) => [axis.name, (cell) => cell[axis.name]]),
    ["Effect", (cell) => number(cell.effect), true], ["95 % interval", (cell) => `${number(cell.low)} to ${number(cell.high)}`, true],
    ["Normalised", (cell) => number(cell.normalised), true],
  ];
  return table("Largest |effect| first; normalised, 1 is all the way to the other run", columns, map.strongest);
}

function choices({ model, task, choices: made, run }) {
  const list = (object, names) => names.filter((name) => object[name] !== null && object[name] !== "")
    .map((name) => [words(name), typeof object[name] === "object" ? JSON.stringify(object[name]) : number(object[name])]);
  return facts([
    ...list(made, ["direction", "ablation", "parameters", "positions"]),
    ...list(model, ["reference", "fingerprint", "quantisation", "tuning", "parity"]),
    ...list(task, ["corruption", "n_search", "n_dropped", "sha256", "groups_search"]),
    ...list(run, ["code_version", "engine_version", "torch_version", "dtype", "device", "threads", "seed", "wall_time_s", "notes"]),
  ]);
}
