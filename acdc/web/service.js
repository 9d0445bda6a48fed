// Talks to the service. The key, where the server wants one, stays in this tab.

export class Problem extends Error {
  constructor(status, body) {
    super(body.detail ?? `the service answered ${status}`);
    this.status = status;
    this.errors = body.errors ?? [];
  }
}

function headers(more = {}) {
  const key = sessionStorage.getItem("key");
  return key ? { ...more, Authorization: `Bearer ${key}` } : more;
}

export function useKey(key) {
  sessionStorage.setItem("key", key);
}

async function ask(path, options = {}) {
  let response;
  try {
    response = await fetch(path, { ...options, headers: headers(options.headers) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Problem(0, { detail: "The service does not answer. Is it running?" });
  }
  if (!response.ok) throw new Problem(response.status, await response.json().catch(() => ({})));
  return response;
}

export async function get(path, params = {}) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(params)) {
    for (const one of [value].flat()) if (one !== "" && one !== null && one !== undefined) query.append(name, one);
  }
  return (await ask(query.size ? `${path}?${query}` : path, { headers: { Accept: "application/json" } })).json();
}

export async function send(method, path, body = {}) {
  const options = { method, body: JSON.stringify(body), headers: { "Content-Type": "application/json" } };
  const response = await ask(path, method === "DELETE" ? { method } : options);
  return response.status === 204 ? null : response.json();
}

export async function sendFile(path, file) {
  const options = { method: "POST", body: file, headers: { "Content-Type": "application/octet-stream" } };
  return (await ask(path, options)).json();
}

// A picture or a download as a blob, since <img> and <a> cannot carry the key.
export async function blob(path) {
  return (await ask(path)).blob();
}

// Calls onEvent for every event of a job until its last one; takes a broken stream up where it broke.
export async function follow(jobId, signal, onEvent) {
  let last = 0;
  let pause = 500;
  while (!signal.aborted) {
    try {
      const options = { headers: { Accept: "text/event-stream", "Last-Event-ID": String(last) }, signal };
      const reader = (await ask(`/v1/jobs/${jobId}/events`, options)).body.pipeThrough(new TextDecoderStream()).getReader();
      let text = "";
      for (;;) {
        const { value, done } = await reader.read();
        if (done) break;
        text += value;
        const blocks = text.split("\n\n");
        text = blocks.pop();
        for (const block of blocks) {
          const data = block.split("\n").find((line) => line.startsWith("data: "));
          if (!data) continue;
          const event = JSON.parse(data.slice(6));
          last = event.number;
          pause = 500;
          onEvent(event);
        }
      }
      if (hasEnded((await get(`/v1/jobs/${jobId}`)).state)) return;
    } catch (error) {
      if (signal.aborted) return;
      if (error instanceof Problem && error.status >= 400 && error.status < 500) throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, pause));
    pause = Math.min(pause * 2, 10000);
  }
}

export function hasEnded(state) {
  return ["succeeded", "failed", "cancelled"].includes(state);
}
