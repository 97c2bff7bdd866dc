// What has to reach the server, kept in the browser's storage until it has: reloads and restarts lose nothing.
// Each entry has its own key, so that two tabs never overwrite each other; the request id makes a second sending harmless.

import { post, Refused, Unreachable } from "./client.js";

const LONGEST = 15_000; // milliseconds between two attempts
const FINAL = new Set([400, 404, 409, 413, 422]); // sending it again would not help; anything else is kept and sent again

/** The outbox of one annotator; `report({ waiting, problem, needsLogin })` is called whenever its state changes. */
export class Outbox {
  constructor(owner, { delivered, refused, report }) {
    Object.assign(this, { prefix: `accord-outbox:${owner}:`, delivered, refused, report });
    this.memory = new Map(); // where storage is switched off or full
    this.attempts = 0;
    this.running = null;
    this.timer = 0;
  }

  /** Entries in the order in which they were added. */
  entries() {
    const found = new Map(this.memory);
    try {
      for (const key of Object.keys(localStorage)) {
        if (!key.startsWith(this.prefix)) continue;
        try {
          const entry = JSON.parse(localStorage.getItem(key));
          if (typeof entry?.path === "string" && typeof entry?.body?.request === "string") found.set(key, entry);
        } catch {
          localStorage.removeItem(key); // not ours, or cut off
        }
      }
    } catch {
      // storage is switched off
    }
    return [...found.values()].sort((a, b) => a.at - b.at);
  }

  get size() {
    return this.entries().length;
  }

  add(path, body) {
    const entry = { path, body, at: Date.now() + performance.now() / 1e9 };
    const key = this.prefix + body.request;
    try {
      localStorage.setItem(key, JSON.stringify(entry));
    } catch {
      this.memory.set(key, entry);
    }
    return this.send();
  }

  remove(entry) {
    const key = this.prefix + entry.body.request;
    this.memory.delete(key);
    try {
      localStorage.removeItem(key);
    } catch {
      // storage is switched off
    }
  }

  /** Sends everything in order; resolves when nothing is left or a problem has been reported. */
  send() {
    this.running ??= this.#sendAll().finally(() => (this.running = null));
    return this.running;
  }

  async #sendAll() {
    clearTimeout(this.timer);
    for (let entry = this.entries()[0]; entry; entry = this.entries()[0]) {
      try {
        const answer = await post(entry.path, entry.body);
        this.attempts = 0;
        this.remove(entry);
        this.delivered(entry, answer);
      } catch (error) {
        if (error instanceof Refused && FINAL.has(error.status)) {
          this.remove(entry);
          this.refused(entry, error);
          continue;
        }
        if (!(error instanceof Refused || error instanceof Unreachable)) throw error;
        const needsLogin = error.status === 401;
        this.report({ waiting: this.size, problem: error.message, needsLogin });
        if (!needsLogin) this.#later((error.seconds ?? 0) * 1000);
        return;
      }
    }
    this.report({ waiting: 0, problem: "", needsLogin: false });
  }

  #later(least) {
    const pause = Math.min(LONGEST, 500 * 2 ** Math.min(this.attempts++, 6));
    this.timer = setTimeout(() => this.send(), Math.max(least, pause * (0.75 + Math.random() / 2)));
  }
}
