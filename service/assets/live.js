// Streams that are open only while somebody looks. A browser has few connections to one server, so a
// tab in the background gives its own back. The streams of lists begin again where the page stands.

"use strict";

(() => {
  const FIRST_PAUSE = 5_000; // milliseconds
  const LONGEST_PAUSE = 300_000;

  class VisibleSource extends EventTarget {
    #url;
    #source = null;
    #types = new Set();
    #pause = FIRST_PAUSE;
    #forward = (event) => this.dispatchEvent(new MessageEvent(event.type, { data: event.data }));

    constructor(url) {
      super();
      this.#url = url; // or a function that says where the stream goes on
      this.closed = false;
      document.addEventListener("visibilitychange", () => this.#follow());
      window.addEventListener("pagehide", () => this.#leave());
      window.addEventListener("pageshow", () => this.#follow());
      this.#follow();
    }

    get readyState() {
      return this.#source ? this.#source.readyState : EventSource.CLOSED;
    }

    addEventListener(type, listener) {
      super.addEventListener(type, listener);
      this.#types.add(type);
      this.#source?.addEventListener(type, this.#forward);
    }

    close() {
      this.closed = true;
      this.#leave();
    }

    #follow() {
      if (document.hidden) this.#leave();
      else if (!this.#source && !this.closed) this.#open();
    }

    #open() {
      this.#source = new EventSource(typeof this.#url === "function" ? this.#url() : this.#url);
      this.#source.onopen = (event) => {
        this.#pause = FIRST_PAUSE;
        this.onopen?.(event);
      };
      for (const type of this.#types) this.#source.addEventListener(type, this.#forward);
      this.#source.onerror = () => {
        // The browser tries again by itself, unless the server has refused the stream.
        if (this.#source?.readyState !== EventSource.CLOSED) return;
        this.#leave();
        window.setTimeout(() => this.#follow(), this.#pause);
        this.#pause = Math.min(2 * this.#pause, LONGEST_PAUSE);
      };
    }

    #leave() {
      this.#source?.close();
      this.#source = null;
    }
  }

  htmx.createEventSource = (url) => new VisibleSource(url);

  // A new row may come while its button has the focus, and have no such button: its link gets it.
  let focused = null;
  document.addEventListener("htmx:sseBeforeMessage", (event) => {
    focused = event.target.contains(document.activeElement) ? event.target.id : null;
  });
  document.addEventListener("htmx:load", (event) => {
    if (event.target.id !== focused || document.activeElement !== document.body) return;
    event.target.querySelector("a")?.focus();
    focused = null;
  });
})();
