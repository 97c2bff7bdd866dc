// The owner's page: figures of the votes, annotators, disagreements to decide, the reward model beside the noise ceiling.

import { element, interval, shares } from "./charts.js";
import { get, post, randomId, Refused } from "./client.js";
import { showAnswer, showMessages } from "./pair.js";

const byId = (id) => document.getElementById(id);
const EVERY = 30_000; // milliseconds between two looks at the figures
const WHILE_RUNNING = 1500; // while a reward model is being compared
const CHOICES = { left: "Answer 1", right: "Answer 2", tie: "tie", both_bad: "both bad", skip: "skipped" };
const STRENGTHS = { 1: "a little", 2: "clearly", 3: "much" };

let timer = 0;
const FIRST = 8; // disagreements that are listed without asking
let showAll = false;
let newest = null; // the figures on the page
let deciding = null; // the question in the dialog

// ---------------------------------------------------------------- numbers as text
const isNumber = (value) => typeof value === "number";
const percent = (value) => (isNumber(value) ? `${Math.round(100 * value)} %` : "–");
const two = (value) => (isNumber(value) ? value.toFixed(2).replace("-", "−") : "–");
const seconds = (value) => (isNumber(value) ? `${value < 10 ? value.toFixed(1) : Math.round(value)} s` : "–");
const plural = (count, one, many = `${one}s`) => `${count.toLocaleString("en")} ${count === 1 ? one : many}`;

function between({ low, high }, format) {
  return isNumber(low) && isNumber(high) ? `95 %: ${format(low)} to ${format(high)}` : "";
}

// ---------------------------------------------------------------- figures
function tile(name, value, detail, chart = null) {
  const made = element("div", { class: "tile" }, element("h2", { text: name }), element("p", { class: "number", text: value }));
  if (chart) made.append(chart);
  made.append(element("p", { class: "soft", text: detail }));
  return made;
}

function estimateTile(name, estimate, format, nothing, options = {}) {
  if (!isNumber(estimate.value)) return tile(name, "–", nothing);
  const detail = [between(estimate, format), options.count?.(estimate.count)].filter(Boolean).join(" · ");
  return tile(name, format(estimate.value), detail, interval(estimate, options));
}

function showTiles(found) {
  const { coverage } = found;
  const needed = coverage.votes + coverage.missing;
  const bar = element("progress", { max: Math.max(1, needed), value: coverage.votes, "aria-label": "Share of the votes that are in" });
  const done = coverage.missing
    ? `${plural(coverage.missing, "vote")} missing on ${plural(coverage.pairs, "pair")}, ${found.overlap} each`
    : coverage.pairs
      ? `all ${plural(coverage.pairs, "pair")} have their ${plural(found.overlap, "vote")}`
      : "no pairs yet: add some with accord feedback";
  byId("tiles").replaceChildren(
    tile("Votes", found.votes.toLocaleString("en"), done, bar),
    estimateTile("Krippendorff’s α", found.alpha, two, "needs pairs with votes of two annotators that differ", {
      from: -0.2,
      at: 0,
      count: () => `ordinal ${two(found.alpha_ordinal.value)}`,
    }),
    estimateTile("Agreement", found.agreement, percent, "needs pairs with votes of two annotators", {
      count: (n) => `κ ${two(found.kappa)} · ${plural(n, "comparison")}`,
    }),
    estimateTile("Self-agreement", found.self_agreement, percent, "no repeats answered yet", { count: (n) => plural(n, "repeat") }),
    estimateTile("Left side chosen", found.left_share, percent, "no votes for one side yet", { at: 0.5, count: (n) => plural(n, "vote") }),
    estimateTile("Gold questions", found.gold_accuracy, percent, "no gold questions answered yet", { count: (n) => plural(n, "answer") }),
    tile("Pace", seconds(found.seconds), "median time per vote"),
    tile("Ties", percent(found.tie_share), "of all votes, both bad not counted"),
  );
}

function showChoices({ choices }) {
  const parts = [
    ["better", choices.a + choices.b, "one is better"],
    ["tie", choices.tie, "tie"],
    ["bad", choices.both_bad, "both bad"],
    ["skipped", choices.skip, "skipped"],
  ];
  const legend = parts.map(([name, amount, label]) =>
    element("li", {}, element("span", { class: `key ${name}`, "aria-hidden": "true" }), element("span", { text: label }), element("b", { text: amount.toLocaleString("en") })),
  );
  byId("choices").replaceChildren(shares(parts), element("ul", { class: "legend" }, ...legend));
}

function showReward({ reward, noise_ceiling: ceiling, decisive_agreement: decisive }) {
  const limit = reward.noise_ceiling ?? ceiling;
  const parts = [];
  if (reward.state === "done") {
    parts.push(bar("Agrees with the votes", reward.accuracy.value, between(reward.accuracy, percent), interval(reward.accuracy, { at: limit })));
  }
  if (isNumber(limit)) {
    const p = reward.agreement ?? decisive.value;
    parts.push(bar("Noise ceiling", limit, `½(1 + √(2p − 1)) with p = ${percent(p)}, the agreement of two annotators`, interval({ value: limit, low: null, high: null })));
  } else {
    parts.push(element("p", { class: "soft", text: "The noise ceiling needs pairs with votes of two annotators." }));
  }
  const words = {
    none: "No reward model has been compared with these votes yet.",
    running: "Comparing…",
    failed: `The comparison failed: ${reward.error ?? ""}`,
    done: `${reward.model ?? ""}, on the newest ${plural(reward.accuracy?.count ?? 0, "vote")} for one side.`,
  };
  byId("reward").replaceChildren(...parts, element("p", { class: reward.state === "failed" ? "field-error" : "soft", text: words[reward.state] ?? "" }));
  document.querySelector("[data-action=reward]").disabled = reward.state === "running";
}

function bar(name, value, detail, chart) {
  return element(
    "div",
    { class: "bar" },
    element("p", {}, element("span", { text: name }), element("b", { text: percent(value) })),
    chart,
    element("p", { class: "soft", text: detail }),
  );
}

function table(id, headings, rows) {
  const head = element("tr", {}, ...headings.map((text) => element("th", { scope: "col", text })));
  const body = rows.map(([first, ...rest]) =>
    element("tr", {}, element("th", { scope: "row" }, first), ...rest.map((cell) => element("td", {}, cell))),
  );
  byId(id).replaceChildren(element("thead", {}, head), element("tbody", {}, ...body));
}

function showPeople({ annotators }) {
  const rows = annotators.map((one) => {
    const name = element("span", { dir: "auto", text: one.name || `forgotten (${one.annotator})` });
    const state = one.role === "owner" ? "owner" : one.active ? "active" : "no token";
    const buttons = element("span", { class: "row-buttons" });
    if (one.role !== "owner" && one.name) {
      buttons.append(personButton("token", one.name, "New token"));
      if (one.active) buttons.append(personButton("revoke", one.name, "Revoke"));
    }
    return [
      name, state, String(one.votes), String(one.skipped), percent(one.agreement), percent(one.self_agreement),
      percent(one.left_share), percent(one.tie_share), seconds(one.seconds), percent(one.gold_accuracy), buttons,
    ];
  });
  table("people", ["Name", "Access", "Votes", "Skipped", "Agrees", "With self", "Left", "Ties", "Pace", "Gold", "Token"], rows);
}

function personButton(act, name, text) {
  return element("button", { type: "button", class: "quiet", "data-person": act, "data-name": name, "aria-label": `${text} for ${name}`, text });
}

function showKappas({ kappas }) {
  byId("kappas-panel").hidden = !kappas.length;
  table("kappas", ["Annotators", "κ", "Common pairs"], kappas.map((k) => [`${k.first} and ${k.second}`, two(k.kappa), String(k.pairs)]));
}

function showDisagreements({ disagreements }) {
  const listed = showAll ? disagreements : disagreements.slice(0, FIRST);
  byId("more").hidden = listed.length === disagreements.length;
  byId("more").textContent = `Show ${disagreements.length - listed.length} more`;
  const items = listed.map(({ pair, choices, decided }) => {
    const count = (choice) => choices[choice] ?? 0;
    const parts = [["better", count("a")], ["other", count("b")], ["tie", count("tie")], ["bad", count("both_bad")]];
    const words = [["one reply", count("a")], ["the other", count("b")], ["tie", count("tie")], ["both bad", count("both_bad")]]
      .filter(([, n]) => n)
      .map(([name, n]) => `${n} × ${name}`);
    return element(
      "li",
      {},
      element("span", { class: "pair-number", text: `Pair ${pair}` }),
      shares(parts),
      element("span", { text: words.join(", ") }),
      element("span", { class: "soft", text: decided ? "decided" : "" }),
      element("button", { type: "button", class: "plain", "data-pair": pair, "aria-label": `${decided ? "Look at" : "Decide"} pair ${pair}`, text: decided ? "Look again" : "Decide" }),
    );
  });
  if (!items.length) items.push(element("li", { class: "soft", text: "None: nobody disagrees, or no pair has votes of two annotators." }));
  byId("disagreements").replaceChildren(...items);
}

async function refresh() {
  clearTimeout(timer);
  let wait = EVERY;
  try {
    const found = await get("/api/owner");
    newest = found;
    showTiles(found);
    showChoices(found);
    showReward(found);
    showPeople(found);
    showKappas(found);
    showDisagreements(found);
    byId("status").textContent = `${plural(found.votes, "vote")} of ${plural(found.annotators.filter((one) => one.votes).length, "annotator")}${found.skipped ? `, ${plural(found.skipped, "pair")} skipped` : ""}. Intervals are 95 % intervals.`;
    byId("banner").hidden = true;
    if (found.reward.state === "running") wait = WHILE_RUNNING;
  } catch (error) {
    problem(error);
  }
  timer = setTimeout(refresh, wait);
}

function problem(error) {
  if (error instanceof Refused && error.status === 401) {
    location.assign("/");
    return;
  }
  byId("banner-text").textContent = error.message;
  byId("banner").hidden = false;
}

// ---------------------------------------------------------------- people
function showToken({ name, token }) {
  byId("token-text").textContent = `Give this to ${name}:`;
  byId("token-value").textContent = token;
  byId("token").showModal();
}

byId("token").addEventListener("close", () => {
  byId("token-value").textContent = "";
});

byId("add").addEventListener("submit", async (event) => {
  event.preventDefault();
  const field = byId("new-name");
  byId("people-error").textContent = "";
  try {
    showToken(await post("/api/owner/annotators", { name: field.value.trim() }));
    field.value = "";
    await refresh();
  } catch (error) {
    byId("people-error").textContent = error.message;
    field.focus();
  }
});

/** Asks before something that cannot be taken back; resolves to whether to do it. */
function confirmed(title, text, yes) {
  byId("confirm-title").textContent = title;
  byId("confirm-text").textContent = text;
  byId("confirm-yes").textContent = yes;
  byId("confirm").returnValue = "";
  byId("confirm").showModal();
  return new Promise((resolve) => {
    byId("confirm").addEventListener("close", () => resolve(byId("confirm").returnValue === "yes"), { once: true });
  });
}

async function changePerson(act, name) {
  const [title, text, yes] =
    act === "revoke"
      ? [`Revoke the token of ${name}?`, `${name} can no longer sign in. Their votes stay.`, "Revoke"]
      : [`A new token for ${name}?`, "The former token ends at once, also where it is signed in.", "Make a new one"];
  if (!(await confirmed(title, text, yes))) return;
  byId("people-error").textContent = "";
  try {
    const answer = await post(`/api/owner/annotators/${act}`, { name });
    if (answer.token) showToken(answer);
    await refresh();
  } catch (error) {
    byId("people-error").textContent = error.message;
  }
}

// ---------------------------------------------------------------- disagreements
async function openPair(pair) {
  byId("decide-error").textContent = "";
  try {
    const { question, votes, decided } = await post("/api/owner/disagreement", { pair });
    deciding = question;
    showMessages(byId("messages"), question.messages);
    showAnswer(byId("left"), question.left.html, "Code in Answer 1");
    showAnswer(byId("right"), question.right.html, "Code in Answer 2");
    byId("given").replaceChildren(...votes.map(givenVote));
    for (const button of document.querySelectorAll("[data-decide]")) button.classList.toggle("earlier", button.dataset.decide === decided);
    byId("decide").showModal();
    byId("decide").scrollTop = 0;
  } catch (error) {
    problem(error);
  }
}

function givenVote({ name, choice, strength, comment, tags, again }) {
  const by = choice === "left" || choice === "right" ? `, ${STRENGTHS[strength]} better` : "";
  const made = element("li", {}, element("b", { dir: "auto", text: name }), ` ${CHOICES[choice]}${by}${again ? " (asked again)" : ""}`);
  if (tags.length) made.append(element("span", { class: "soft", text: ` · ${tags.join(", ")}` }));
  if (comment) made.append(element("q", { dir: "auto", text: comment }));
  return made;
}

async function decide(choice) {
  try {
    await post("/api/owner/votes", { request: randomId(), question: deciding.id, choice });
    byId("decide").close();
    await refresh();
    byId("status").textContent = "Your decision is stored.";
  } catch (error) {
    byId("decide-error").textContent = error.message;
  }
}

// ---------------------------------------------------------------- clicks
const actions = {
  refresh,
  logout: async () => {
    await post("/logout", {}).catch(() => null);
    location.assign("/");
  },
  reward: async () => {
    try {
      await post("/api/owner/reward", {});
      await refresh();
    } catch (error) {
      problem(error);
    }
  },
  more: () => {
    showAll = true;
    showDisagreements(newest);
    document.querySelectorAll("#disagreements button")[FIRST]?.focus();
  },
  copy: async () => {
    try {
      await navigator.clipboard.writeText(byId("token-value").textContent);
      byId("token-text").textContent = "Copied.";
    } catch {
      getSelection().selectAllChildren(byId("token-value")); // the browser does not let pages copy: selected instead
    }
  },
  "close-token": () => byId("token").close(),
  "close-decide": () => byId("decide").close(),
};

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  const { action, person, name, pair, decide: choice } = button.dataset;
  if (action) actions[action]();
  else if (person) changePerson(person, name);
  else if (pair) openPair(Number(pair));
  else if (choice) decide(choice);
});

document.addEventListener("visibilitychange", () => document.hidden || refresh());
refresh();
