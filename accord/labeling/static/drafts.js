// What is being written about a question, kept until its vote is stored: a reload in the middle loses nothing.

/** Drafts of one annotator: { comment, tags, strength, answer, seconds } by question id. */
export class Drafts {
  constructor(owner) {
    this.prefix = `accord-draft:${owner}:`;
  }

  read(question) {
    try {
      return JSON.parse(localStorage.getItem(this.prefix + question)) ?? {};
    } catch {
      return {}; // none, cut off, or storage is switched off
    }
  }

  change(question, changes) {
    try {
      localStorage.setItem(this.prefix + question, JSON.stringify({ ...this.read(question), ...changes }));
    } catch {
      // storage is switched off or full: the draft lasts as long as the page
    }
  }

  remove(question) {
    try {
      localStorage.removeItem(this.prefix + question);
    } catch {
      // storage is switched off
    }
  }
}
