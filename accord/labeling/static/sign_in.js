// The token form, on its own page and in the dialog after a session has ended.
import { post } from "./client.js";

/** Sends the form's token; on success calls `done`, else shows the server's sentence and keeps the form. */
export function signIn(form, done) {
  const field = form.querySelector("input[name=token]");
  const problem = form.querySelector(".field-error");
  const button = form.querySelector("button[type=submit]");
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    problem.textContent = "";
    button.disabled = true;
    try {
      await post("/login", { token: field.value.trim() });
      field.value = "";
      field.removeAttribute("aria-invalid");
      await done();
    } catch (error) {
      problem.textContent = error.message;
      field.setAttribute("aria-invalid", "true");
      field.select();
      field.focus();
    } finally {
      button.disabled = false;
    }
  });
}
