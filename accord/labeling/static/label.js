// The annotator's page: shows one pair, takes the vote, shows the next pair at once, and sends the vote.

import { get, post, randomId, Refused, renewCsrf, Unreachable } from "./client.js";
import { markDifferences } from "./diff.js";
import { Drafts } from "./drafts.js";
import { Outbox } from "./outbox.js";
import { showAnswer, showMessages } from "./pair.js";
import { signIn } from "./sign_in.js";

const byId = (id) => document.getElementById(id);
const owner = document.body.dataset.annotator;
const SETTLE = 200; // milliseconds in which a pair that has just appeared takes no vote: a key struck twice is not two votes
const RETRY = 10_000; // milliseconds until new pairs are asked for again where there were none
const STRENGTHS = { 1: "a little", 2: "clearly", 3: "much" };
const CHOICES = { left: "Answer 1 is better", right: "Answer 2 is better", tie: "Tie", both_bad: "Both bad", skip: "Skipped" };

const state = {
  queue: [], // questions; the first is shown
  shown: null, // the question on the page
  answered: new Set(), // ids that were answered in this or another tab
  shownAt: 0,
  seconds: 0, // visible time on the shown question, up to `since`
  since: 0,
  writing: 0, // the question for which an answer is being written
  undoing: "", // the request id of an undo that has not been answered
  guidelines: document.body.dataset.guidelines,
  retry: 0,
};
const drafts = new Drafts(owner);
const tabs = "BroadcastChannel" in window ? new BroadcastChannel(`accord:${owner}`) : null;
const outbox = new Outbox(owner, { delivered, refused, report: reportOutbox });

// ---------------------------------------------------------------- what is shown

function announce(sentence) {
  byId("status").textContent = sentence;
}

function show(question, earlier = null) {
  state.shown = question;
  byId("pair").hidden = byId("votes").hidden = !question;
  byId("question").classList.toggle("visually-hidden", !question);
  byId("empty").hidden = Boolean(question);
  if (!question) return;
  showMessages(byId("messages"), question.messages);
  fill("left");
  fill("right");
  setDifferences(false);
  const draft = earlier ?? drafts.read(question.id);
  setStrength(draft.strength ?? 1);
  byId("comment").value = draft.comment ?? "";
  setCommentBox(Boolean(draft.comment));
  for (const box of document.querySelectorAll("input[name=tag]")) box.checked = (draft.tags ?? []).includes(box.value);
  for (const button of document.querySelectorAll("[data-vote]")) button.classList.toggle("earlier", button.dataset.vote === earlier?.choice);
  state.seconds = earlier ? 0 : (draft.seconds ?? 0);
  state.since = state.shownAt = performance.now();
  window.scrollTo({ top: 0, behavior: "instant" });
  byId("question").focus({ preventScroll: true });
}

function fill(side) {
  showAnswer(byId(side), state.shown[side].html, side === "left" ? "Code in Answer 1" : "Code in Answer 2");
}

function showProgress(progress) {
  if (!progress) return;
  const { done, left, today, pace_seconds: pace, self_agreement: agreement } = progress;
  const bar = byId("progress-bar");
  bar.max = Math.max(1, done + left);
  bar.value = done;
  const parts = { done: `${done} of ${done + left} done` };
  if (today) parts.today = `${today} today`;
  if (pace) parts.pace = `${pace < 10 ? pace.toFixed(1) : Math.round(pace)} s per pair`;
  if (typeof agreement === "number") parts.self = `${Math.round(100 * agreement)} % self-agreement`;
  const spans = Object.entries(parts).map(([className, textContent]) => Object.assign(document.createElement("span"), { className, textContent }));
  const own = spans.find((span) => span.className === "self");
  if (own) own.title = "How often you answered a pair that was asked twice in the same way";
  byId("progress-text").replaceChildren(...spans);
}

function setDifferences(on) {
  const button = document.querySelector("[data-action=differences]");
  if (!on && button.getAttribute("aria-pressed") === "true" && state.shown) ["left", "right"].forEach(fill);
  button.setAttribute("aria-pressed", String(on));
  if (!on) return;
  const [left, right] = markDifferences(byId("left"), byId("right"));
  announce(left + right ? `Marked: ${left} words in Answer 1, ${right} in Answer 2.` : "The answers have the same words.");
}

function setCommentBox(open) {
  byId("comment-box").hidden = !open;
  document.querySelector("[data-action=comment]").setAttribute("aria-expanded", String(open));
}

const strength = () => Number(document.querySelector("input[name=strength]:checked").value);
const tags = () => Array.from(document.querySelectorAll("input[name=tag]:checked"), (box) => box.value);

function setStrength(value) {
  document.querySelector(`input[name=strength][value="${value}"]`).checked = true;
}

// ---------------------------------------------------------------- votes

function seconds() {
  return state.seconds + (document.hidden ? 0 : (performance.now() - state.since) / 1000);
}

function vote(choice) {
  const question = state.shown;
  if (!question || performance.now() - state.shownAt < SETTLE) return;
  if (state.guidelines === "unread") {
    openGuidelines();
    return;
  }
  const better = choice === "left" || choice === "right";
  const body = {
    request: randomId(),
    question: question.id,
    have: state.queue.map((other) => other.id), // with this one: `next` is none of them
    choice,
    strength: better ? strength() : 1,
    seconds: Math.round(seconds() * 1000) / 1000,
    comment: byId("comment").value,
    tags: tags(),
  };
  state.answered.add(question.id);
  tabs?.postMessage({ answered: question.id });
  state.queue = state.queue.filter((other) => other.id !== question.id);
  show(state.queue[0] ?? null);
  announce(state.shown ? "Saving…" : "");
  if (!state.shown) byId("empty").textContent = "Loading the next pair…";
  outbox.add("/api/votes", body).catch(unexpected);
}

function delivered({ path, body }, answer) {
  if (path === "/api/demonstrations") {
    drafts.change(body.question, { answer: "" });
    announce("Your answer is saved. Please vote on the pair as well.");
    return;
  }
  drafts.remove(body.question);
  const by = body.choice === "left" || body.choice === "right" ? `, ${STRENGTHS[body.strength]}` : "";
  announce(`${body.choice === "skip" ? "Skipped." : `Saved: ${CHOICES[body.choice]}${by}.`}`);
  showProgress(answer.progress);
  take(answer.next ? [answer.next] : []);
  if (state.queue.length < 2) fetchQuestions();
}

function refused({ path, body }, error) {
  state.answered.delete(body.question); // where it is still ours, it is shown again, with what was written
  const what = path === "/api/demonstrations" ? "Your answer was not stored" : "A vote was not stored";
  showBanner(`${what}: ${error.message}`, false);
  fetchQuestions();
}

function reportOutbox({ waiting, problem, needsLogin }) {
  if (needsLogin) {
    askToSignIn();
  } else if (problem) {
    const kept = waiting === 1 ? "1 vote is kept on this page and is" : `${waiting} votes are kept on this page and are`;
    showBanner(`${problem} ${kept} sent as soon as it answers.`, true);
    announce("Not sent yet.");
    if (!state.shown) byId("empty").textContent = "The next pair is shown as soon as the server answers.";
  } else if (!byId("banner-retry").hidden) {
    hideBanner();
  }
}

async function undo() {
  saveDraft();
  await outbox.send();
  if (outbox.size) {
    announce("Your last vote has not reached the server yet. It can be undone once it has.");
    return;
  }
  state.undoing ||= randomId();
  try {
    const { question, vote: earlier, progress } = await post("/api/undo", { request: state.undoing });
    state.undoing = "";
    state.answered.delete(question.id);
    state.queue = [question, ...state.queue.filter((other) => other.id !== question.id)];
    show(question, earlier);
    showProgress(progress);
    announce(`Undone: ${CHOICES[earlier.choice]}. Please vote again.`);
  } catch (error) {
    if (!(error instanceof Unreachable)) state.undoing = "";
    problem(error);
  }
}

// ---------------------------------------------------------------- questions

/** Adds questions that are new to the page, and shows the first if none is shown. */
function take(questions) {
  for (const question of questions) {
    if (!state.answered.has(question.id) && !state.queue.some((other) => other.id === question.id)) state.queue.push(question);
  }
  if (!state.shown && state.queue.length) show(state.queue[0]);
}

let fetching = null;

function fetchQuestions() {
  fetching ??= fetchOnce().finally(() => (fetching = null));
  return fetching;
}

async function fetchOnce() {
  clearTimeout(state.retry);
  try {
    const have = state.queue.map((question) => question.id).join(",");
    const { questions, progress } = await get(`/api/questions?have=${have}`);
    showProgress(progress);
    take(questions);
    if (!outbox.size) hideBannerOfServer();
    if (state.shown) return;
    byId("empty").textContent = progress.left
      ? "Others are working on the pairs that are left. This page looks for a free one every few seconds."
      : "All pairs are done. Thank you!";
    show(null);
    byId("empty").hidden = false;
    state.retry = setTimeout(fetchQuestions, RETRY);
  } catch (error) {
    problem(error);
    if (error instanceof Unreachable) state.retry = setTimeout(fetchQuestions, Math.max(3000, error.seconds * 1000));
  }
}

tabs?.addEventListener("message", ({ data }) => {
  if (!data || state.answered.has(data.answered)) return;
  state.answered.add(data.answered);
  const current = state.shown?.id === data.answered;
  state.queue = state.queue.filter((question) => question.id !== data.answered);
  if (current) {
    show(state.queue[0] ?? null);
    announce("That pair was answered in another tab.");
  }
  if (state.queue.length < 2) fetchQuestions();
});

// ---------------------------------------------------------------- problems

function showBanner(sentence, retry) {
  byId("banner-text").textContent = sentence;
  byId("banner-retry").hidden = !retry;
  byId("banner").hidden = false;
}

function hideBanner() {
  byId("banner").hidden = true;
}

function hideBannerOfServer() {
  if (!byId("banner-retry").hidden) hideBanner();
}

function problem(error) {
  if (error instanceof Refused && error.status === 401) askToSignIn();
  else if (error instanceof Unreachable) showBanner(error.message, true);
  else if (error instanceof Refused) announce(error.message);
  else unexpected(error);
}

function unexpected(error) {
  showBanner(`This page has a fault: ${error.message}. Please reload it.`, false);
  throw error;
}

function askToSignIn() {
  if (!byId("login-dialog").open) byId("login-dialog").showModal();
  byId("token").focus();
}

async function signedIn() {
  const page = await renewCsrf();
  if (page.body.dataset.annotator !== owner) {
    location.reload(); // somebody else: their page; what is kept here stays under the first one's id
    return;
  }
  byId("login-dialog").close();
  hideBanner();
  announce("Signed in.");
  await outbox.send();
  await fetchQuestions();
}

// ---------------------------------------------------------------- dialogs

async function openGuidelines() {
  const dialog = byId("guidelines");
  byId("guidelines-done").textContent = state.guidelines === "unread" ? "I have read them" : "Close";
  if (!dialog.open) dialog.showModal();
  try {
    showAnswer(byId("guidelines-text"), await get("/guidelines"), "Code in the guidelines");
  } catch (error) {
    byId("guidelines-text").textContent = error.message;
  }
}

byId("guidelines").addEventListener("cancel", (event) => {
  if (state.guidelines === "unread") event.preventDefault();
});
byId("guidelines").addEventListener("close", async () => {
  if (state.guidelines !== "unread") return;
  state.guidelines = "read";
  state.since = state.shownAt = performance.now(); // reading them is not time on the pair
  state.seconds = 0;
  try {
    await post("/api/guidelines/read", {});
  } catch (error) {
    problem(error); // shown again with the next visit
  }
});

function openWriting() {
  if (!state.shown) return;
  state.writing = state.shown.id; // another tab may answer the pair meanwhile
  byId("better").value = drafts.read(state.shown.id).answer ?? "";
  byId("write-error").textContent = "";
  byId("write").showModal();
  byId("better").focus();
}

function saveWriting() {
  const text = byId("better").value;
  if (!text.trim()) {
    byId("write-error").textContent = "The answer is empty: write one, or cancel.";
    byId("better").focus();
    return;
  }
  byId("write").close();
  announce("Saving your answer…");
  outbox.add("/api/demonstrations", { request: randomId(), question: state.writing, text }).catch(unexpected);
}

function toggleComment() {
  if (!state.shown) return;
  const open = byId("comment-box").hidden;
  setCommentBox(open);
  if (open) byId("comment").focus();
}

// ---------------------------------------------------------------- keys, clicks, time

function keysAreOn() {
  try {
    return localStorage.getItem("accord-keys") !== "off";
  } catch {
    return true;
  }
}

const actions = {
  guidelines: openGuidelines,
  help: () => {
    byId("use-keys").checked = keysAreOn();
    byId("help").showModal();
  },
  logout: async () => {
    try {
      await post("/logout", {});
      location.assign("/");
    } catch (error) {
      if (error instanceof Refused && error.status === 401) location.assign("/");
      else problem(error);
    }
  },
  differences: () => state.shown && setDifferences(document.querySelector("[data-action=differences]").getAttribute("aria-pressed") !== "true"),
  comment: toggleComment,
  write: openWriting,
  undo,
  strength: () => {
    setStrength((strength() % 3) + 1);
    saveDraft();
    announce(`Better by: ${STRENGTHS[strength()]}.`);
  },
  "close-write": () => byId("write").close(),
  "save-write": saveWriting,
};
const KEYS = { u: "undo", c: "comment", e: "write", d: "differences", s: "strength", g: "guidelines", "?": "help" };
const VOTES = { 1: "left", 2: "right", 3: "tie", 4: "both_bad", 0: "skip" };

/** The digit of a key by its place, so that it also works where digits need Shift. */
const keyOf = (event) => (/^(Digit|Numpad)\d$/.test(event.code) ? event.code.at(-1) : event.key.toLowerCase());

document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && event.target === byId("comment")) {
    byId("comment").blur();
    byId("question").focus({ preventScroll: true });
    return;
  }
  const writing = event.target.matches("textarea, input:not([type=checkbox], [type=radio]), select");
  if (writing || event.repeat || event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (document.querySelector("dialog[open]") || !keysAreOn()) return;
  const key = keyOf(event);
  if (key in VOTES) vote(VOTES[key]);
  else if (key === "g" && state.guidelines === "none") return;
  else if (key in KEYS) actions[KEYS[key]]();
  else return;
  event.preventDefault();
});

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.vote) vote(button.dataset.vote);
  else if (button.dataset.action) actions[button.dataset.action]();
  else if (button.dataset.copy) {
    byId("better").value = state.shown[button.dataset.copy].text;
    byId("better").dispatchEvent(new Event("input"));
    byId("better").focus();
  }
});

byId("banner-retry").addEventListener("click", async () => {
  await outbox.send();
  await fetchQuestions();
});
byId("use-keys").addEventListener("change", () => {
  try {
    localStorage.setItem("accord-keys", byId("use-keys").checked ? "on" : "off");
  } catch {
    // storage is switched off: the keys stay on
  }
});

function saveDraft() {
  if (state.shown) drafts.change(state.shown.id, { comment: byId("comment").value, tags: tags(), strength: strength(), seconds: seconds() });
}

byId("comment").addEventListener("input", saveDraft);
byId("better").addEventListener("input", () => drafts.change(state.writing, { answer: byId("better").value }));
document.addEventListener("change", (event) => event.target.matches("input[name=tag], input[name=strength]") && saveDraft());
document.addEventListener("visibilitychange", () => {
  if (document.hidden) {
    state.seconds += (performance.now() - state.since) / 1000;
    saveDraft();
  } else {
    state.since = performance.now();
    if (!state.shown) fetchQuestions();
  }
});
window.addEventListener("pagehide", saveDraft);
window.addEventListener("pageshow", (event) => event.persisted && fetchQuestions());
window.addEventListener("online", () => outbox.send());
signIn(byId("login"), signedIn);

byId("empty").textContent = "Loading…";
byId("empty").hidden = false;
if (state.guidelines === "unread") openGuidelines();
for (const { body } of outbox.entries()) if (body.choice) state.answered.add(body.question);
await outbox.send(); // votes that an earlier page could not send come first: they free their pairs
await fetchQuestions();
