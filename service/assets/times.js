// Shows moments in the visitor's own time zone; the server writes them in UTC.

"use strict";

(() => {
  const day = new Intl.DateTimeFormat(undefined, { day: "numeric", month: "short" });
  const clock = new Intl.DateTimeFormat(undefined, { hour: "2-digit", minute: "2-digit" });
  const year = new Intl.DateTimeFormat(undefined, { dateStyle: "medium" });

  function text(moment) {
    const now = new Date();
    if (moment.toDateString() === now.toDateString()) return clock.format(moment);
    if (moment.getFullYear() !== now.getFullYear()) return year.format(moment);
    return `${day.format(moment)}, ${clock.format(moment)}`;
  }

  function localize(part) {
    for (const time of part.querySelectorAll("time[data-local]")) {
      if (!time.title) {
        time.title = time.textContent;
        time.textContent = text(new Date(time.dateTime));
      }
    }
  }

  localize(document);
  document.addEventListener("htmx:load", (event) => localize(event.target));
})();
