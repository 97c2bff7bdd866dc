// A conversation and answers as elements.  The HTML comes from the server, which made it harmless (labeling/render.py).

const NAMES = { user: "User", assistant: "Assistant", system: "System" };

export function showMessages(element, messages) {
  element.replaceChildren(...messages.map(messageElement));
}

function messageElement({ role, html }) {
  const message = document.createElement("article");
  const name = document.createElement("h3");
  const text = document.createElement("div");
  message.className = `message role-${role in NAMES ? role : "other"}`;
  name.textContent = NAMES[role] ?? role;
  text.className = "text";
  text.dir = "auto";
  showAnswer(text, html, "Code");
  message.append(name, text);
  return message;
}

/** Code may be wider than its card: it can be scrolled with the keyboard, and `label` names it. */
export function showAnswer(element, html, label) {
  element.innerHTML = html;
  for (const code of element.querySelectorAll("pre.code")) {
    code.tabIndex = 0;
    code.setAttribute("role", "group");
    code.setAttribute("aria-label", label);
  }
}
