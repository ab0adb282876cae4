// Follows the log that the page shows: adds what its stream brings, as text, and keeps its end in view.
// It pauses by its button, and while somebody has scrolled away from the end.

"use strict";

(() => {
  const MOST_LINES = 5_000;
  const MOST_CHARACTERS = 1_000_000;

  class FollowedLog {
    #box;
    #pre;
    #code;
    #button;
    #source = null;
    #shown = new Parts();
    #waiting = new Parts();
    #pausedBy = null; // "button" or "scroll"
    #after;
    #ended = false;

    constructor(box) {
      this.#box = box;
      this.#pre = box.querySelector("pre");
      this.#code = box.querySelector("code");
      this.#button = box.querySelector("button");
      this.#after = Number(this.#code.dataset.after);
      const text = this.#code.textContent;
      const start = Number(this.#code.dataset.start);
      this.#code.replaceChildren();
      if (text) this.#show({ start, next_after: this.#after, text });
      this.#pre.addEventListener("scroll", () => this.#scrolled());
      this.#button.addEventListener("click", () => (this.#pausedBy ? this.#resume() : this.#pause("button")));
      this.#toEnd();
      this.follow();
    }

    follow() {
      if (this.#source || this.#ended) return;
      this.#source = htmx.createEventSource(() => `${this.#box.dataset.log}&after=${this.#after}`);
      this.#source.addEventListener("log", (event) => this.#take(JSON.parse(event.data)));
      this.#source.addEventListener("end", () => this.#end());
    }

    leave() {
      this.#source?.close();
      this.#source = null;
    }

    #take(part) {
      this.#after = part.next_after;
      if (!this.#pausedBy) {
        this.#show(part);
        this.#toEnd();
        return;
      }
      this.#waiting.add(part);
      this.#waiting.shorten();
      this.#count();
    }

    #show(part) {
      // What the server no longer has is missing; then the text begins anew.
      if (part.start !== this.#shown.end) this.#shown.clear().forEach((each) => each.node.remove());
      const node = document.createTextNode(part.text);
      this.#code.append(node);
      this.#shown.add({ ...part, node });
      this.#shown.shorten().forEach((each) => each.node.remove());
      const older = this.#box.querySelector(".older-lines");
      older.hidden = !this.#shown.start;
      older.querySelector("input").value = this.#shown.start;
    }

    #end() {
      this.#ended = true;
      this.leave();
      this.#say();
    }

    #pause(by) {
      this.#pausedBy = by;
      this.#say();
    }

    #resume() {
      this.#pausedBy = null;
      for (const part of this.#waiting.clear()) this.#show(part);
      this.#say();
      this.#toEnd();
    }

    #scrolled() {
      const atEnd = this.#pre.scrollHeight - this.#pre.scrollTop - this.#pre.clientHeight < 8;
      if (!atEnd && !this.#pausedBy) this.#pause("scroll");
      else if (atEnd && this.#pausedBy === "scroll") this.#resume();
    }

    #toEnd() {
      this.#pre.scrollTop = this.#pre.scrollHeight;
    }

    #say() {
      const paused = Boolean(this.#pausedBy);
      this.#button.setAttribute("aria-pressed", String(paused));
      const now = this.#ended ? "The log is complete." : "Follows the log.";
      this.#box.querySelector("[role=status]").textContent = paused ? "Paused." : now;
      if (this.#ended && !paused) {
        if (document.activeElement === this.#button) this.#pre.focus();
        this.#button.hidden = true;
      }
      this.#count();
    }

    #count() {
      const lines = this.#waiting.lines;
      const words = lines ? `${lines.toLocaleString("en")} new line${lines > 1 ? "s" : ""}` : "";
      this.#box.querySelector(".waiting").textContent = words;
    }
  }

  // Parts of a log in their order, of which the last few thousand lines are kept.
  class Parts {
    #parts = [];
    #characters = 0;
    lines = 0;

    get start() {
      return this.#parts[0]?.start ?? 0;
    }

    get end() {
      return this.#parts.at(-1)?.next_after;
    }

    add(part) {
      const lines = part.text.split("\n").length - 1;
      this.#parts.push({ ...part, lines });
      this.lines += lines;
      this.#characters += part.text.length;
    }

    // Returns those that it drops.
    shorten() {
      const dropped = [];
      while (this.#parts.length > 1 && (this.lines > MOST_LINES || this.#characters > MOST_CHARACTERS)) {
        const part = this.#parts.shift();
        this.lines -= part.lines;
        this.#characters -= part.text.length;
        dropped.push(part);
      }
      return dropped;
    }

    clear() {
      const dropped = this.#parts;
      this.#parts = [];
      this.lines = this.#characters = 0;
      return dropped;
    }
  }

  const logs = new Map(); // by their boxes

  document.addEventListener("htmx:load", (event) => {
    const part = event.target;
    const found = part.querySelectorAll ? [part, ...part.querySelectorAll("[data-log]")] : [];
    for (const box of found) {
      if (box.dataset.log && !logs.has(box)) logs.set(box, new FollowedLog(box));
    }
  });

  document.addEventListener("htmx:beforeCleanupElement", (event) => {
    logs.get(event.target)?.leave();
    logs.delete(event.target);
  });

  document.addEventListener("toggle", (event) => {
    for (const [box, log] of logs) {
      if (!event.target.contains(box)) continue;
      if (event.target.open) log.follow();
      else log.leave();
    }
  }, true);
})();
