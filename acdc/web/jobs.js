import { el, facts, field, number, problemBox, say, select, table, when } from "./dom.js";
import { follow, get, hasEnded, send } from "./service.js";

const STATES = ["queued", "running", "cancelling", "succeeded", "failed", "cancelled"];
const LINES_SHOWN = 1000;

export function stateMark(state) {
  return el("span", { class: `state ${state}` }, state);
}

function progressBar(progress) {
  if (!progress) return el("span", {}, "–");
  const { phase = "", done = 0, total = 0, note = "" } = progress;
  const text = `${phase} ${total ? `${number(done)} of ${number(total)}` : number(done)}${note ? ` (${note})` : ""}`;
  const bar = el("progress", { "aria-label": text });
  if (total) { bar.max = total; bar.value = done; }
  return el("span", { class: "row" }, bar, text);
}

export async function jobsPage(query, signal) {
  const params = Object.fromEntries(new URLSearchParams(query));
  const page = await get("/v1/jobs", params);
  const columns = [
    ["Job", (job) => el("a", { href: `#/jobs/${job.id}` }, job.name ?? job.id)],
    ["State", (job) => el("span", { id: `state-${job.id}` }, stateMark(job.state))],
    ["Progress", (job) => el("span", { id: `progress-${job.id}` }, progressBar(hasEnded(job.state) ? null : job.progress))],
    ["Kind", (job) => job.kind], ["Task", (job) => job.task ?? "–"], ["Method", (job) => job.method ?? "–"],
    ["Model", (job) => job.model ?? "–"], ["Submitted", (job) => when(job.created_at)],
  ];
  for (const job of page.items.filter((one) => !hasEnded(one.state)).slice(0, 4)) {
    follow(job.id, signal, (event) => update(job.id, event)).catch(() => {});
  }
  const submit = (event) => {
    event.preventDefault();
    const state = new FormData(event.target).get("state");
    location.hash = state ? `#/jobs?state=${state}` : "#/jobs";
  };
  return el("div", {},
    el("h2", {}, "Jobs"),
    el("form", { class: "filters", onsubmit: submit },
      field("State", select("state", [["", "any"], ...STATES.map((state) => [state, state])], params.state ?? "")),
      el("button", {}, "Filter")),
    page.items.length ? table(`${page.items.length} jobs, newest first`, columns, page.items) : nothing(),
    more("#/jobs", params, page.next_cursor));
}

function nothing() {
  return el("p", {}, "No such jobs. ", el("a", { href: "#/new" }, "Start a search"), ".");
}

export function more(page, params, cursor) {
  if (!cursor) return null;
  return el("p", {}, el("a", { href: `${page}?${new URLSearchParams({ ...params, cursor })}` }, "Older ones"));
}

function update(jobId, event) {
  if (event.kind === "state") document.getElementById(`state-${jobId}`)?.replaceChildren(stateMark(event.data.state));
  else document.getElementById(`progress-${jobId}`)?.replaceChildren(progressBar(event.data));
}

export async function jobPage(jobId, signal) {
  const job = await get(`/v1/jobs/${jobId}`);
  const root = el("div", {}, await jobBody(job));
  if (!hasEnded(job.state)) {
    follow(jobId, signal, (event) => update(jobId, event))
      .then(async () => {
        if (signal.aborted) return;
        const ended = await get(`/v1/jobs/${jobId}`);
        root.replaceChildren(await jobBody(ended));
        say(`The job has ${ended.state}.`);
      })
      .catch((error) => root.prepend(problemBox(error)));
  }
  return root;
}

// The end of a job's log: that is where a failure says why.
async function lastLines(jobId) {
  let last = [];
  for (let page = await get(`/v1/jobs/${jobId}/logs`); page.items.length;) {
    last = [...last, ...page.items].slice(-LINES_SHOWN);
    page = await get(`/v1/jobs/${jobId}/logs`, { after: page.next_after });
  }
  return last;
}

function logTitle(lines) {
  const total = lines.at(-1)?.number ?? 0;
  return lines.length < total ? `Log (the last ${number(lines.length)} of ${number(total)} lines)` : `Log (${lines.length} lines)`;
}

async function jobBody(job) {
  const logs = await lastLines(job.id);
  const lines = logs.map((line) => line.line).join("\n");
  return el("div", {},
    el("h2", {}, job.name ?? job.id),
    facts([
      ["State", el("span", { id: `state-${job.id}` }, stateMark(job.state))],
      ["Progress", el("span", { id: `progress-${job.id}` }, progressBar(job.progress))],
      ["Kind", job.kind], ["Task", job.task], ["Method", job.method], ["Model", job.model],
      ["Id", job.id], ["Tags", job.tags.join(", ") || null], ["Notes", job.notes],
      ["Submitted", when(job.created_at)], ["Started", when(job.started_at)], ["Ended", when(job.finished_at)],
      ["Retry of", job.retry_of && el("a", { href: `#/jobs/${job.retry_of}` }, job.retry_of)],
    ]),
    el("div", { class: "row" }, buttons(job)),
    job.error && problemBox({ message: `${job.error.code}: ${job.error.message}`, errors: job.error.faults }),
    job.results.length ? el("div", {}, el("h3", {}, "Results"), job.results.map(resultView)) : null,
    el("details", {}, el("summary", {}, logTitle(logs)), el("pre", { tabindex: "0" }, lines || "empty")),
    el("details", {}, el("summary", {}, "What was asked for"), el("pre", { tabindex: "0" }, JSON.stringify(job.spec, null, 2))));
}

function buttons(job) {
  const act = (verb) => async (event) => {
    event.target.disabled = true;
    try {
      const answer = await send("POST", `/v1/jobs/${job.id}/${verb}`);
      if (verb === "retry") location.hash = `#/jobs/${answer.id}`;
      else say("Asked to stop.");
    } catch (error) {
      event.target.replaceWith(problemBox(error));
    }
  };
  return [
    hasEnded(job.state) ? null : el("button", { onclick: act("cancel") }, "Cancel"),
    ["failed", "cancelled"].includes(job.state) ? el("button", { onclick: act("retry") }, "Run again") : null,
  ].filter(Boolean);
}

function resultView(result) {
  const page = result.circuit_id ? `circuits/${result.circuit_id}` : result.map_id && `maps/${result.map_id}`;
  const link = page && el("a", { href: `#/${page}` }, `${result.kind} ${result.key}`);
  return el("div", {}, el("p", {}, link ?? `${result.kind} ${result.key}`), dataView(result.data));
}

// A result's tables: lists of records as tables, the rest as facts.
export function dataView(data) {
  const simple = [];
  const blocks = [];
  for (const [name, value] of Object.entries(data)) {
    if (isRecords(value)) {
      const columns = Object.keys(value[0]).map((key) => [key, (row) => shown(row[key]), typeof value[0][key] === "number"]);
      blocks.push(table(name, columns, value));
    } else if (value !== null && typeof value === "object" && !Array.isArray(value) && Object.values(value).some(isRecords)) {
      blocks.push(el("div", { class: "columns" }, dataView(value)));
    } else simple.push([name, shown(value)]);
  }
  return el("div", {}, simple.length ? facts(simple) : null, blocks.length > 1 ? el("div", { class: "columns" }, blocks) : blocks);
}

function isRecords(value) {
  return Array.isArray(value) && value.length > 0 && typeof value[0] === "object" && value[0] !== null && !Array.isArray(value[0]);
}

function shown(value) {
  return value !== null && typeof value === "object" ? JSON.stringify(value) : number(value);
}
