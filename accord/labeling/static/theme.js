// Light, dark, or as the system: applied before the first paint, switched by any [data-theme-switch] button.
"use strict";
(() => {
  const next = { auto: "light", light: "dark", dark: "auto" };
  const names = { auto: "as the system", light: "light", dark: "dark" };
  const signs = { auto: "◐", light: "☀", dark: "☾" };
  const root = document.documentElement;

  function stored() {
    try {
      return localStorage.getItem("accord-theme") || "auto";
    } catch {
      return "auto"; // storage is switched off
    }
  }

  function apply(theme) {
    root.dataset.theme = theme in next ? theme : "auto";
    for (const button of document.querySelectorAll("[data-theme-switch]")) {
      button.textContent = signs[root.dataset.theme];
      button.title = `Colors: ${names[root.dataset.theme]}`;
      button.setAttribute("aria-label", `Colors: ${names[root.dataset.theme]}. Change`);
    }
  }

  apply(stored());
  document.addEventListener("DOMContentLoaded", () => apply(root.dataset.theme));
  document.addEventListener("click", (event) => {
    if (!event.target.closest("[data-theme-switch]")) return;
    const theme = next[root.dataset.theme];
    try {
      localStorage.setItem("accord-theme", theme);
    } catch {
      // storage is switched off: the choice lasts until the page is left
    }
    apply(theme);
  });
})();
