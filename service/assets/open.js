// Keeps a <details> with an id as the visitor left it, when the part of the page that it is in changes.

"use strict";

(() => {
  const chosen = new Map();

  document.addEventListener("toggle", (event) => {
    if (event.target.id) chosen.set(event.target.id, event.target.open);
  }, true);

  document.addEventListener("htmx:load", (event) => {
    const part = event.target;
    const found = part.querySelectorAll ? [part, ...part.querySelectorAll("details[id]")] : [];
    for (const each of found) if (chosen.has(each.id)) each.open = chosen.get(each.id);
  });
})();
