// Buttons that copy the text of another element.

"use strict";

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const source = document.getElementById(button.dataset.copy);
  const before = button.textContent;
  try {
    await navigator.clipboard.writeText(source.textContent);
    button.textContent = "Copied";
    window.setTimeout(() => { button.textContent = before; }, 2000);
  } catch {
    // Browsers keep the clipboard from pages without TLS: the text is selected, for Ctrl-C.
    window.getSelection().selectAllChildren(source);
  }
});
