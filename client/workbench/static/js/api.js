// How the page talks to the workbench. Every failure becomes one kind of error: problem, cause, fix.

const ROOT = "api/v1";
let whose = {};

/** This page is the account's `name`: from now on, where somebody else is signed in, the workbench refuses what it asks. */
export const isOf = (name) => {
  whose = { "x-wardround-person": name };
};

export class Failure extends Error {
  constructor({ code = "unknown", problem = "the workbench did not answer as expected", cause = "", fix = "" }, status = 0) {
    super(problem);
    Object.assign(this, { code, problem, cause, fix, status });
  }
}

async function asked(path, options = {}) {
  let response;
  try {
    response = await fetch(`${ROOT}${path}`, { credentials: "same-origin", ...options, headers: { ...whose, ...options.headers } });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Failure({
      code: "no-connection",
      problem: "the workbench cannot be reached",
      cause: "the network is down, or the site's agent was stopped",
      fix: "try again; what you drew before is kept",
    });
  }
  if (response.ok || response.status === 304) return response;
  let told = {};
  try {
    told = (await response.json()).error ?? {};
  } catch {
    told = { problem: `the workbench answered with status ${response.status}` };
  }
  throw new Failure(told, response.status);
}

async function json(path, options) {
  const response = await asked(path, options);
  return response.status === 204 ? null : response.json();
}

const post = (path, body = {}) =>
  json(path, { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(body) });
const of = (id, what = "") => `/cases/${encodeURIComponent(id)}${what}`;

export const login = (name, password) => post("/login", { name, password });
export const logout = () => post("/logout");
export const me = () => json("/me");
export const password = (old, fresh) => post("/password", { old, new: fresh });
export const entrance = () => json("/entrance");
export const site = () => json("/site");
export const nextCase = (strategy) => json(`/cases/next?strategy=${strategy}`);
export const oneCase = (id) => json(of(id));
export const open = (id) => post(of(id, "/open"));
/** `extent` is left as it is where none is given. */
export const draw = (id, prompts, extent = null) => post(of(id, "/draw"), { prompts, extent });
export const undo = (id) => post(of(id, "/undo"));
export const redo = (id) => post(of(id, "/redo"));
export const accept = (id, source, shown) => post(of(id, "/accept"), { source, shown });
export const skip = (id, reason) => post(of(id, "/skip"), { reason });
export const labels = (id) => json(of(id, "/labels"));
/** `seen` is the label's time of change as the reviewer saw it: nobody approves what was drawn since. */
export const review = (id, author, verdict, reason, seen) =>
  post(of(id, `/labels/${encodeURIComponent(author)}/review`), { verdict, reason, seen });
export const send = (id, author = "") => post(of(id, "/export"), { author });

export function cases({ state = "", offset = 0, limit = 200 } = {}) {
  const query = new URLSearchParams({ offset, limit });
  if (state) query.set("state", state);
  return json(`/cases?${query}`);
}

/** The image's file, with a report of how much of it has come. */
export async function image(id, progress, signal) {
  const response = await asked(of(id, "/image"), { signal });
  const total = Number(response.headers.get("content-length")) || 0;
  const reader = response.body.getReader();
  const parts = [];
  let got = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) break;
    parts.push(value);
    got += value.length;
    progress(got, total);
  }
  return new Blob(parts).arrayBuffer();
}

export const label = async (id, author) =>
  (await asked(of(id, `/labels/${encodeURIComponent(author)}`))).arrayBuffer();

/** A layer's box and bytes; null if there is none, or none newer than `version`. */
export async function layer(id, name, version) {
  let response;
  try {
    response = await asked(of(id, `/layers/${name}?newer_than=${version}`));
  } catch (error) {
    if (error.code === "no-such-layer") return null;
    throw error;
  }
  if (response.status === 304) return null;
  return {
    version: Number(response.headers.get("x-wardround-version")),
    box: response.headers.get("x-wardround-box").split(",").map(Number),
    values: new Uint8Array(await response.arrayBuffer()),
  };
}

/** For administrators. A password that is answered is shown once, and never told again. */
export const accounts = {
  list: () => json("/accounts"),
  add: (name, role) => post("/accounts", { name, role }),
  role: (name, role) => post(`/accounts/${encodeURIComponent(name)}/role`, { role }),
  disabled: (name, disabled) => post(`/accounts/${encodeURIComponent(name)}/disabled`, { disabled }),
  reset: (name) => post(`/accounts/${encodeURIComponent(name)}/reset`),
};

export const events = () => new EventSource(`${ROOT}/events`);
