// Keeps the parts of a page that are marked data-live up to date: asks for the page again, and puts in what has changed.
// Where a form is marked data-check, they tell of what is typed there: each change sends it, with that word in `do`.
"use strict";
(() => {
  const parts = () => document.querySelectorAll("[data-live][id]");
  if (!parts().length) return;
  const calm = 2000, most = 30000, patience = 15000; // ms
  let pause = calm, tag = null, next = 0;

  const isInUse = (part) => {
    const focused = document.activeElement;
    return part.contains(focused) && focused.matches("input, select, textarea");
  };

  const put = (fresh) => {
    for (const part of parts()) {
      const other = fresh.getElementById(part.id);
      if (!other || isInUse(part) || other.innerHTML === part.dataset.was) continue;
      part.dataset.was = other.innerHTML;
      const open = new Set([...part.querySelectorAll("details[open][id]")].map((each) => each.id));
      const focused = part.contains(document.activeElement) ? document.activeElement.id : "";
      const scrolled = new Map([...part.querySelectorAll(".scroll[id]")].map((each) => [each.id, each.scrollLeft]));
      part.replaceChildren(...[...other.childNodes].map((node) => document.importNode(node, true)));
      for (const id of open) document.getElementById(id)?.setAttribute("open", "");
      for (const [id, left] of scrolled) { const box = document.getElementById(id); if (box) box.scrollLeft = left; }
      if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
    }
    document.title = fresh.title;
  };

  const tell = (isLost) => {
    const lost = document.getElementById("lost");
    if (lost) lost.hidden = !isLost;
  };

  const look = async () => {
    next = 0;
    if (!document.hidden) {
      try {
        const headers = { "X-Live": "1" };
        if (tag) headers["If-None-Match"] = tag;
        const begun = performance.now();
        const answer = await fetch(location.href, { headers, redirect: "manual", cache: "no-store", signal: AbortSignal.timeout(patience) });
        if (answer.status === 200) {
          tag = answer.headers.get("ETag");
          put(new DOMParser().parseFromString(await answer.text(), "text/html"));
        } else if (answer.type === "opaqueredirect" || answer.status === 401) {
          location.reload(); // the session has ended
          return;
        }
        const isWell = answer.status === 200 || answer.status === 304;
        tell(!isWell);
        const took = performance.now() - begun; // a page that takes long to make is asked for less often
        pause = isWell ? Math.min(Math.max(calm, 5 * took), most) : Math.min(2 * pause, most);
      } catch {
        tell(true);
        pause = Math.min(2 * pause, most);
      }
    }
    next = setTimeout(look, pause);
  };
  const form = document.querySelector("form[data-check]");
  if (form) {
    let waits = 0, asked = 0;
    form.addEventListener("input", () => {
      clearTimeout(waits);
      waits = setTimeout(async () => {
        const number = ++asked, body = new URLSearchParams(new FormData(form));
        body.set("do", form.dataset.check);
        try {
          const answer = await fetch(form.action, { method: "POST", body, headers: { "X-Live": "1" }, redirect: "manual" });
          if (number === asked && answer.ok) put(new DOMParser().parseFromString(await answer.text(), "text/html"));
          tell(!answer.ok);
        } catch {
          tell(true);
        }
      }, 400);
    });
    return; // to ask for the page again would take away what was found
  }
  next = setTimeout(look, pause);
  document.addEventListener("visibilitychange", () => {
    if (document.hidden || !next) return; // what is asked for just now comes by itself
    clearTimeout(next);
    pause = calm;
    look(); // what stands there may be hours old
  });
})();
