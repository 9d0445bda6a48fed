import { el, facts, field, number, problemBox, select, sizeOf } from "./dom.js";
import { get, send } from "./service.js";

// The form writes into the JSON box and the box is what is sent: nothing that a spec can say is out of reach.
export async function newPage() {
  const [models, tasks, methods] = await Promise.all(["models", "tasks", "methods"].map((what) => get(`/v1/${what}`)));
  const box = el("textarea", { name: "spec", rows: 16, spellcheck: false });
  const answer = el("div", { "aria-live": "polite" });
  const model = select("model", models.items.map((item) => [item.reference, `${item.title} (${item.reference})`]));
  const task = select("task", tasks.items.map((item) => [item.name, `${item.name}: ${item.summary}`]), "ioi");
  const method = select("method", methods.items.map((item) => [item.name, item.name]), "eap-ig-inputs");
  const parameters = el("div", { class: "columns" });
  const about = el("p", { class: "hint" });

  const write = () => {
    const chosen = { name: method.value };
    for (const input of parameters.querySelectorAll("input, select")) {
      const value = read(input);
      if (value !== undefined) chosen[input.name] = value;
    }
    box.value = JSON.stringify({ model: model.value, task: task.value, method: chosen }, null, 2);
  };
  const choose = () => {
    const schema = methods.items.find((item) => item.name === method.value);
    about.textContent = schema.summary;
    parameters.replaceChildren(...controls(schema.parameters));
    for (const input of parameters.querySelectorAll("input, select")) input.addEventListener("input", write);
    write();
  };
  model.addEventListener("change", write);
  task.addEventListener("change", write);
  method.addEventListener("change", choose);
  choose();

  const ask = (path, then) => async (event) => {
    event.preventDefault();
    try {
      then(await send("POST", path, JSON.parse(box.value)));
    } catch (error) {
      answer.replaceChildren(problemBox(error));
    }
  };
  const submit = ask("/v1/jobs", (job) => { location.hash = `#/jobs/${job.id}`; });
  const plan = ask("/v1/plan", (cost) => answer.replaceChildren(costView(cost)));
  return el("div", {}, el("h2", {}, "New search"),
    el("form", { onsubmit: submit },
      field("Model", model), field("Task", task), field("Method", method), about, parameters,
      field("The whole spec (JSON)", box, "Everything left out has its default. Your own prompts: \"task\": {\"name\": \"custom\", \"pairs\": [{\"clean\": …, \"corrupt\": …, \"answers\": …, \"wrong\": …}]}"),
      el("div", { class: "row" }, el("button", { class: "main" }, "Submit"), el("button", { type: "button", onclick: plan }, "What would it cost?"))),
    answer);
}

// Controls for the plain properties of a JSON schema; what is more than that is left to the box.
function controls(schema) {
  return Object.entries(schema.properties).filter(([name]) => name !== "name").map(([name, property]) => {
    const ways = property.anyOf ?? [property];
    const list = ways.find((one) => one.type === "array");
    const words = (list?.items ?? ways.find((one) => one.enum))?.enum;
    if (words) return field(name, select(name, [["", "default"], ...words.map((value) => [value, value])], ""), property.description);
    const isNumber = ["integer", "number"].includes(property.type);
    const attributes = isNumber ? { type: "number", min: property.minimum?.toString(), max: property.maximum?.toString(), step: property.type === "integer" ? "1" : "any" } : {};
    const value = Array.isArray(property.default) ? property.default.map((one) => one.name ?? one).join(", ") : String(property.default ?? "");
    const kinds = new Set(ways.map((one) => one.type));
    const kind = list ? "array" : kinds.has("integer") && kinds.has("number") ? "size" : kinds.has("integer") || kinds.has("number") ? "number" : property.type;
    return field(name, el("input", { name, value, "data-type": kind, ...attributes }), property.description);
  });
}

function read(input) {
  if (input.value === "") return undefined;
  if (input.dataset.type === "array") return input.value.split(/[\s,]+/).filter(Boolean).map((part) => Number.isFinite(Number(part)) ? Number(part) : part);
  if (input.dataset.type === "size") return sizeOf(input.value);
  return input.dataset.type === "number" && Number.isFinite(Number(input.value)) ? Number(input.value) : input.value;
}

function costView(cost) {
  const bytes = (need) => need.n_bytes === null ? "not known yet" : `${number(Math.round(need.n_bytes / 1e6))} MB`;
  return el("div", {}, facts([
    ["Time", cost.seconds === null ? "not known yet" : `about ${number(Math.round(cost.seconds))} s${cost.uncertainty === null ? "" : `, give or take a factor of ${number(cost.uncertainty)}`}`],
    ["Memory", bytes(cost.memory)], ["Disk", bytes(cost.disk)],
    ...cost.phases.map((phase) => [phase.name, `${phase.seconds === null ? "not known yet" : `${number(phase.seconds)} s`} (${phase.how})`]),
    ...cost.unknown.map((what) => ["Left out", what]),
    ...cost.doubts.map((what) => ["In doubt", what]),
  ]));
}
