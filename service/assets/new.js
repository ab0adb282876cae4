// The form of a new job: brings the estimate's words to the fields, and uploads datasets.

"use strict";

(() => {
  function place(problems) {
    const words = new Map();
    for (const each of problems) {
      const name = each.dataset.problem;
      words.set(name, [...(words.get(name) ?? []), each.dataset.words]);
    }
    for (const slot of document.querySelectorAll("[data-error]")) {
      const text = (words.get(slot.dataset.error) ?? []).join(" ");
      if (slot.textContent.trim() !== text) slot.textContent = text;
      const field = document.getElementById(slot.dataset.error);
      if (text) field?.setAttribute("aria-invalid", "true");
      else field?.removeAttribute("aria-invalid");
    }
  }

  function kindOf(name) {
    if (/\.parquet$/i.test(name)) return "parquet";
    return /\.(jsonl|ndjson)(\.gz)?$/i.test(name) ? "jsonl" : "text";
  }

  function upload(box, file) {
    const [bar, status] = [box.querySelector("progress"), box.querySelector("[role=status]")];
    const name = file.name.replace(/\.[a-z]+(\.gz)?$/i, "").replace(/[^A-Za-z0-9._-]+/g, "-");
    const query = new URLSearchParams({ format: kindOf(file.name) });
    if (/^[A-Za-z0-9]/.test(name)) query.set("name", name.slice(0, 63));
    const request = new XMLHttpRequest();
    request.open("POST", `${box.dataset.upload}?${query}`);
    if (/\.gz$/i.test(file.name)) request.setRequestHeader("Content-Encoding", "gzip");
    request.responseType = "json";
    request.upload.onprogress = (event) => {
      if (event.lengthComputable) bar.value = event.loaded / event.total;
    };
    request.onloadend = () => {
      bar.hidden = true;
      const answer = request.response;
      if (request.status !== 201) {
        status.textContent = answer?.detail ?? "The upload broke off; choose the file again.";
        return;
      }
      status.textContent = `Uploaded: ${answer.documents} documents.`;
      const select = document.getElementById(box.dataset.select);
      select.add(new Option(answer.name ?? answer.id, answer.id, true, true));
      select.dispatchEvent(new Event("change", { bubbles: true }));
    };
    bar.value = 0;
    bar.hidden = false;
    status.textContent = "Uploading…";
    request.send(file);
  }

  function show(part) {
    for (const box of part.querySelectorAll("[data-upload]")) box.hidden = false;
  }

  document.addEventListener("change", (event) => {
    const box = event.target.closest("[data-upload]");
    if (box && event.target.files?.length) upload(box, event.target.files[0]);
  });
  document.addEventListener("htmx:load", (event) => show(event.target));
  document.addEventListener("htmx:afterSettle", (event) => {
    if (event.target.id === "estimate") place(event.target.querySelectorAll("[data-problem]"));
  });
  show(document);
})();
