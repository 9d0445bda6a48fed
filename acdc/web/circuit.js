import { el, facts, field, number, problemBox, say, select, table, when, sizeOf } from "./dom.js";
import { naturalSize, picture, saveButtons } from "./files.js";
import { dataView } from "./jobs.js";
import { follow, get, send } from "./service.js";

const METRICS = ["logit_diff", "prob_diff", "kl_divergence", "answer_logprob", "accuracy"];
const EDGES_PER_PAGE = 50;
const EDGES_DRAWN = 300;

export async function circuitPage(circuitId, signal) {
  const root = `/v1/circuits/${circuitId}`;
  const circuit = await get(`${root}/card`);
  const [edges, evaluations] = await Promise.all([get(`${root}/edges`, { limit: EDGES_PER_PAGE }), get(`${root}/evaluations`)]);
  return el("div", {},
    el("h2", {}, circuit.name ?? circuit.id),
    headline(circuit),
    el("h3", {}, "Picture"), graph(root, circuit, signal),
    circuit.report ? [el("h3", {}, "Faithfulness"), picture(`${root}/curve.svg`, "Faithfulness curve; the numbers are in the tables below", signal)] : null,
    circuit.report ? null : el("p", {}, "Not evaluated yet: use the form below."),
    circuit.lead.map((line) => el("p", {}, line)),
    circuit.sections.some(({ title }) => title === "Challenge") ? picture(`${root}/challenge.svg`, "f in every setting that was tried; the numbers are in the table below", signal) : null,
    circuit.sections.filter(({ title }) => title !== EDGES).map(section),
    circuit.report ? el("details", {}, el("summary", {}, `Every point of the curve (${circuit.report.points.length})`), table("Points", POINT, circuit.report.points)) : null,
    el("h3", {}, "Edges"), hints(circuit), edgeTable(root, circuit, edges),
    isSplit(circuit) ? null : [el("h3", {}, "Try it on a prompt"), tryForm(root, signal)],
    el("h3", {}, "Evaluate it again"), evaluateForm(root, circuit), evaluationTable(evaluations.items),
    el("h3", {}, "Try to break it"), challengeForm(root),
    el("h3", {}, "Take it away"), exportButtons(root, circuit.id),
    el("h3", {}, "Labels"), labelForm(root, circuit));
}

const isSplit = (circuit) => circuit.provenance.choices.positions !== "all";

function headline(circuit) {
  return facts([
    ["Task", circuit.task], ["Method", circuit.method], ["Model", circuit.provenance.model.title],
    ["Edges", `${number(circuit.n_edges)} of ${number(circuit.n_edges_total)} (${number(circuit.fraction * 100)} %), rule ${circuit.rule}`],
    ...(isSplit(circuit) ? [["Split by role", circuit.provenance.choices.positions]] : []),
    ["f, held out", number(circuit.f)], ["KL share, held out", number(circuit.kl_share)],
    ["Id", circuit.id], ["Tags", circuit.tags.join(", ") || null], ["Notes", circuit.notes],
    ["Job", circuit.job_id ? el("a", { href: `#/jobs/${circuit.job_id}` }, circuit.job_id) : "imported"],
    ["Derived from", circuit.derived_from && el("a", { href: `#/circuits/${circuit.derived_from}` }, circuit.derived_from)],
    ["Stored", when(circuit.created_at)],
  ]);
}

function graph(root, circuit, signal) {
  const limits = [30, 100, EDGES_DRAWN, 1000];
  const chosen = String(Math.min(EDGES_DRAWN, ...limits.filter((n) => n >= circuit.n_edges)));
  const place = el("div", {});
  const control = select("max_edges", limits.map((n) => [String(n), `at most ${n} edges`]), chosen);
  const draw = () => {
    const shown = Math.min(Number(control.value), circuit.n_edges);
    const hidden = circuit.n_edges - shown;
    const drawing = picture(`${root}/graph.svg?max_edges=${control.value}`, `Circuit of ${shown} edges, layers from bottom to top`, signal);
    place.replaceChildren(
      el("p", { class: "hint" }, `${number(hidden)} edges hidden by the threshold; the table below lists all of them.`), drawing);
  };
  control.addEventListener("change", draw);
  draw();
  return el("div", {}, el("div", { class: "row" }, field("Threshold", control), naturalSize(place)), place);
}

const POINT = [
  ["Prompts", (p) => p.split.replace("_", " ")], ["Rule", (p) => p.rule], ["Edges asked", (p) => number(p.asked_for), true],
  ["Connected", (p) => number(p.connected), true], ["f", (p) => number(p.f), true], ["Metric", (p) => number(p.metric), true],
  ["KL", (p) => number(p.kl), true], ["KL share", (p) => number(p.kl_share), true], ["Accuracy", (p) => number(p.accuracy), true],
];

// As the card has it; what speaks of model, prompts and run is folded.
const FOLDED = ["Model", "Prompts", "Run"];

// Listed whole further down, where what the card says of them stands too.
const EDGES = "Its edges";
const hints = (circuit) => circuit.sections.find(({ title }) => title === EDGES).text.slice(1).map((line) => el("p", { class: "hint" }, line));

function section({ title, text, columns, rows, is_part: isPart }) {
  if (!text.length && !rows?.length) return null; // a picture alone, which stands further up
  const cells = columns?.map((name, place) => [name.replace(/^#/, ""), (row) => row[place], name.startsWith("#")]);
  const said = [...text.map((line) => el("p", {}, line)), rows?.length ? table(title, cells, rows) : null];
  return FOLDED.includes(title)
    ? el("details", {}, el("summary", {}, title), said)
    : el("section", {}, el(isPart ? "h4" : "h3", {}, title), said);
}

function edgeTable(root, circuit, first) {
  const columns = [
    ["Rank", (edge) => number(edge.rank), true], ["Sender", (edge) => edge.sender], ["Receiver", (edge) => edge.receiver],
    ["Score", (edge) => number(edge.score), true],
  ];
  const rows = [...first.items];
  let cursor = first.next_cursor;
  const place = el("div", {});
  const draw = () => {
    const button = el("button", { onclick: next }, "Show more");
    place.replaceChildren(table(`${number(rows.length)} of ${number(circuit.n_edges)} edges, the largest |score| first`, columns, rows), ...(cursor ? [button] : []));
  };
  async function next() {
    const page = await get(`${root}/edges`, { limit: EDGES_PER_PAGE, cursor });
    rows.push(...page.items);
    cursor = page.next_cursor;
    draw();
    place.querySelector("button")?.focus();
  }
  draw();
  return place;
}

function tryForm(root, signal) {
  const answer = el("div", { "aria-live": "polite" });
  const submit = async (event) => {
    event.preventDefault();
    const given = Object.fromEntries([...new FormData(event.target)].filter(([, value]) => value !== ""));
    try {
      const job = await send("POST", `${root}/try`, given);
      answer.replaceChildren(el("p", {}, "Running as ", el("a", { href: `#/jobs/${job.id}` }, job.id), " …"));
      await follow(job.id, signal, () => {});
      if (signal.aborted) return;
      const done = await get(`/v1/jobs/${job.id}`);
      if (done.error) throw Object.assign(new Error(done.error.message), { errors: done.error.faults });
      answer.replaceChildren(...(done.results.length ? done.results.map((result) => dataView(result.data)) : [el("p", {}, `The job was ${done.state}.`)]));
    } catch (error) {
      answer.replaceChildren(problemBox(error));
    }
  };
  return el("div", {}, el("form", { onsubmit: submit },
    field("Prompt", el("input", { name: "prompt", required: true, placeholder: "When Mary and John went to the store, John gave a drink to" })),
    field("Corrupt prompt (optional)", el("input", { name: "corrupt" }), "As many tokens; without one, cut edges carry a mean."),
    el("button", { class: "main" }, "Try")), answer);
}

function evaluateForm(root, circuit) {
  const answer = el("div", {});
  const lines = (text) => text.split(/[\s,]+/).filter(Boolean);
  const submit = async (event) => {
    event.preventDefault();
    const form = new FormData(event.target);
    const body = {};
    for (const name of ["metric", "ablation"]) if (form.get(name)) body[name] = form.get(name);
    if (form.get("extent")) body.evaluation = form.get("extent");
    if (form.get("size")) body.selection = { size: sizeOf(form.get("size")) };
    const edit = Object.fromEntries(["add_edges", "remove_edges", "add_nodes", "remove_nodes"].map((name) => [name, lines(form.get(name))]).filter(([, list]) => list.length));
    if (Object.keys(edit).length) body.edit = edit;
    try {
      location.hash = `#/jobs/${(await send("POST", `${root}/evaluate`, body)).id}`;
    } catch (error) {
      answer.replaceChildren(problemBox(error));
    }
  };
  const same = (values) => [["", "as it was"], ...values.map((value) => [value, value])];
  return el("div", {}, el("form", { onsubmit: submit },
    field("Metric", select("metric", same(METRICS)), `It was ${circuit.metric}.`),
    field("Ablation value", select("ablation", same(["resample", "zero", "mean"])), `It was ${circuit.ablation}.`),
    field("How much", select("extent", [["", "as it was"], ["standard", "standard"], ["full", "full: completeness, minimality, tests"]])),
    field("Size", el("input", { name: "size", inputmode: "decimal" }), "A number of edges (100), a share of them (0.01), or all."),
    el("details", {}, el("summary", {}, "Add or remove edges and nodes"),
      field("Add edges", el("input", { name: "add_edges", placeholder: "5.5->9.6.q" })),
      field("Remove edges", el("input", { name: "remove_edges" })),
      field("Add nodes", el("input", { name: "add_nodes", placeholder: "9.6 mlp3" })),
      field("Remove nodes", el("input", { name: "remove_nodes" }))),
    el("button", {}, "Evaluate")), answer);
}

function challengeForm(root) {
  const answer = el("div", {});
  const submit = async (event) => {
    event.preventDefault();
    try {
      location.hash = `#/jobs/${(await send("POST", `${root}/challenge`, { search: new FormData(event.target).has("search") })).id}`;
    } catch (error) {
      answer.replaceChildren(problemBox(error));
    }
  };
  return el("div", {}, el("form", { onsubmit: submit },
    el("p", {}, "Measures the circuit in many settings that differ from its own, beside controls that should not hold."),
    field("Search again in every setting", el("input", { name: "search", type: "checkbox", checked: true }), "It tells which edges survive, and takes as long as so many searches."),
    el("button", {}, "Challenge")), answer);
}

function evaluationTable(evaluations) {
  if (!evaluations.length) return null;
  const kept = (row) => row.report.kept?.find((point) => point.split === "held_out") ?? row.report.kept?.[0] ?? {};
  return table("Later evaluations, newest first", [
    ["Job", (row) => el("a", { href: `#/jobs/${row.job_id}` }, row.spec.name ?? row.job_id)],
    ["Task", (row) => row.spec.task.name], ["Metric", (row) => row.spec.metric], ["Ablation", (row) => row.spec.ablation.kind],
    ["f", (row) => number(kept(row).f), true], ["KL share", (row) => number(kept(row).kl_share), true], ["When", (row) => when(row.created_at)],
  ], evaluations);
}

function exportButtons(root, circuitId) {
  const files = [
    ["Everything (safetensors)", "/export?format=safetensors", "safetensors"], ["Kept edges (JSON)", "/export?format=json", "json"],
    ["Every edge (CSV)", "/export?format=csv", "csv"], ["Attribution graph (Neuronpedia)", "/export?format=neuronpedia", "graph.json"],
    ["Card (page)", "/card.html", "html"], ["Card (Markdown)", "/card", "md"], ["Picture (SVG)", "/graph.svg", "svg"],
  ];
  return saveButtons(root, circuitId, files);
}

function labelForm(root, circuit) {
  const answer = el("div", {});
  const submit = async (event) => {
    event.preventDefault();
    const form = new FormData(event.target);
    const tags = form.get("tags").split(",").map((tag) => tag.trim()).filter(Boolean);
    try {
      await send("PATCH", root, { name: form.get("name") || null, tags, notes: form.get("notes") || null });
      answer.replaceChildren();
      say("Saved.");
    } catch (error) {
      answer.replaceChildren(problemBox(error));
    }
  };
  const remove = async () => {
    if (!confirm("Delete this circuit with its evaluations?")) return;
    await send("DELETE", root);
    location.hash = "#/circuits";
  };
  return el("div", {}, el("form", { onsubmit: submit },
    field("Name", el("input", { name: "name", value: circuit.name ?? "", maxLength: 200 })),
    field("Tags", el("input", { name: "tags", value: circuit.tags.join(", ") }), "Separated by commas."),
    field("Notes", el("textarea", { name: "notes", rows: 3 }, circuit.notes ?? "")),
    el("div", { class: "row" }, el("button", {}, "Save"), el("button", { type: "button", onclick: remove }, "Delete"))), answer);
}
