// Requests to the server: JSON both ways, with the CSRF token of the page.

/** The server answered, and declined: `message` is its sentence. */
export class Refused extends Error {
  constructor(status, sentence) {
    super(sentence);
    this.status = status;
  }
}

/** No answer, or one that says to try again later (`seconds` from Retry-After, 0 if unknown). */
export class Unreachable extends Error {
  constructor(sentence, seconds = 0) {
    super(sentence);
    this.seconds = seconds;
  }
}

const TIMEOUT = 20_000; // milliseconds
const meta = () => document.querySelector('meta[name="csrf-token"]');

/** A random id of 128 bits, also where `crypto.randomUUID` is missing. */
export function randomId() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (byte) => byte.toString(16).padStart(2, "0")).join("");
}

async function request(path, options) {
  let answer;
  try {
    answer = await fetch(path, { cache: "no-store", credentials: "same-origin", signal: AbortSignal.timeout(TIMEOUT), ...options });
  } catch {
    throw new Unreachable("The server cannot be reached.");
  }
  const text = await answer.text().catch(() => "");
  let content = null;
  try {
    content = JSON.parse(text);
  } catch {
    content = null; // an HTML fragment, or a proxy's page
  }
  if (answer.ok) return content ?? text;
  const sentence = typeof content?.error === "string" ? content.error : `The server answered with status ${answer.status}.`;
  if (answer.status >= 500 || answer.status === 429 || answer.status === 408) {
    throw new Unreachable(sentence, Number(answer.headers.get("Retry-After")) || 0);
  }
  throw new Refused(answer.status, sentence);
}

export const get = (path) => request(path, { headers: { Accept: "application/json" } });

const postOnce = (path, body) =>
  request(path, {
    method: "POST",
    headers: { "Content-Type": "application/json", Accept: "application/json", "X-CSRF-Token": meta().content },
    body: JSON.stringify(body),
  });

/** POSTs JSON; if the page's CSRF token belongs to an earlier session (signed in again in another tab), takes the new one. */
export async function post(path, body) {
  const before = meta().content;
  try {
    return await postOnce(path, body);
  } catch (error) {
    if (!(error instanceof Refused) || error.status !== 403) throw error;
    const page = await renewCsrf();
    const [ours, present] = [document.body, page.body].map((part) => part.dataset.annotator);
    if (present && present !== ours) throw new Refused(401, "Somebody else has signed in, in another tab.");
    if (meta().content === before) throw error;
    return postOnce(path, body);
  }
}

/** Reads the CSRF token of the present session from a freshly loaded page; returns that page. */
export async function renewCsrf() {
  const text = await request(location.pathname, { headers: { Accept: "text/html" } });
  const page = new DOMParser().parseFromString(String(text), "text/html");
  const token = page.querySelector('meta[name="csrf-token"]')?.content;
  if (token) meta().content = token;
  return page;
}
