// Checks that run inside a page. Each returns sentences, empty where nothing is wrong; `looking.py` calls them.
(() => {
  const told = (element) => {
    const { id, classList, tagName } = element;
    const text = String(element.textContent || element.value || "").trim().replace(/\s+/g, " ").slice(0, 40);
    const kind = [...classList].map((each) => `.${each}`).join("");
    return `<${tagName.toLowerCase()}${id && `#${id}`}${kind}>${text && ` "${text}"`}`;
  };
  const all = (selector) => [...document.querySelectorAll(selector)];
  const isSeen = (element) => {
    const { width, height } = element.getBoundingClientRect();
    return width > 0 && height > 0 && element.checkVisibility({ visibilityProperty: true });
  };
  // Text for screen readers alone lies in a box of one pixel, or is clipped away.
  const isUnseenOnPurpose = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const { width, height } = at.getBoundingClientRect();
      if ((width <= 1 && height <= 1) || /inset\((50|100)%/.test(getComputedStyle(at).clipPath)) return true;
    }
    return false;
  };
  const scroller = (element) => {
    for (let at = element.parentElement; at && at !== document.body; at = at.parentElement)
      if (getComputedStyle(at).overflowX !== "visible") return at;
    return null;
  };

  // Wider than the window. What lies in a box that scrolls by itself is not; what is wholly to the left is hidden on purpose.
  const tooWide = () => {
    const width = document.documentElement.clientWidth;
    const root = document.scrollingElement;
    const isOut = ({ left, right }) => right > width + 0.5 || (left < -0.5 && right > 0);
    const out = all("body, body *").filter(
      (each) =>
        isOut(each.getBoundingClientRect()) && isSeen(each) && !each.closest("svg svg, svg *") && !isUnseenOnPurpose(each) &&
        !scroller(each),
    );
    const faults = out.filter((each) => !out.includes(each.parentElement)).map((each) => {
      const { left, right } = each.getBoundingClientRect();
      return `${told(each)} reaches from ${Math.round(left)} to ${Math.round(right)} px in a window of ${width} px`;
    });
    if (!faults.length && root.scrollWidth > width) faults.push(`the page is ${root.scrollWidth} px wide in a window of ${width} px`);
    return faults;
  };

  // Text that its box hides. Paper cannot be scrolled, so there a box with a scroll bar hides text too.
  const cutOff = (isPaper) => {
    const hides = (overflow) => overflow === "hidden" || overflow === "clip" || (isPaper && overflow !== "visible");
    const faults = [];
    for (const each of all("body *:not(input, select, textarea)")) { // fields scroll as one writes
      const style = getComputedStyle(each);
      const isBroad = hides(style.overflowX) && each.scrollWidth > each.clientWidth + 1 && style.textOverflow !== "ellipsis";
      const isLong = hides(style.overflowY) && each.scrollHeight > each.clientHeight + 4; // letters may be a little taller than their line
      if ((isBroad || isLong) && each.clientWidth && !each.closest("svg") && isSeen(each) && !isUnseenOnPurpose(each))
        faults.push(`${told(each)} hides a part of what is in it`);
    }
    for (const cell of all("td, th").filter(isSeen))
      if (cell.scrollWidth > cell.clientWidth + 1 && !isUnseenOnPurpose(cell)) faults.push(`${told(cell)} reaches out of its cell`);
    for (const text of all("svg text").filter(isSeen)) {
      const outer = text.ownerSVGElement.getBoundingClientRect();
      const inner = text.getBoundingClientRect();
      if (inner.left < outer.left - 1 || inner.right > outer.right + 1 || inner.top < outer.top - 2 || inner.bottom > outer.bottom + 2)
        faults.push(`${told(text)} reaches out of its picture`);
    }
    return faults;
  };

  // axe-core knows no rule for a plain <svg>, <canvas> or <meter>.
  const nameless = () =>
    all("img, svg, canvas, object, embed, video, meter, progress, [role=img], input[type=image]")
      .filter((each) => isSeen(each) && !each.parentElement.closest("svg, [role=img]"))
      .filter((each) => !each.closest("[aria-hidden=true], [role=presentation], [role=none]"))
      .filter((each) => {
        const labels = (each.getAttribute("aria-labelledby") || "").split(/\s+/).map((id) => id && document.getElementById(id));
        const said = [each.ariaLabel, each.title, ...labels.map((label) => label && label.textContent)];
        for (const label of each.labels || []) said.push(label.textContent);
        const title = each.querySelector(":scope > title");
        if (title) said.push(title.textContent);
        if (each.tagName === "IMG" && each.alt === "" && each.hasAttribute("alt")) return false; // decoration
        return ![...said, each.alt].some((text) => typeof text === "string" && text.trim());
      })
      .map((each) => `${told(each)} has no name`);

  // A policy refuses such a handler only when its event comes, so no console tells of it before.
  const handlers = () =>
    all("*").flatMap((each) =>
      each.getAttributeNames().filter((name) => name.startsWith("on")).map((name) => `${told(each)} has ${name} in its markup`),
    );

  // What moves although the reader asked for less motion. A change of colour is no motion.
  const moving = () => {
    const seconds = (list) => Math.max(...list.split(",").map(parseFloat));
    const faults = [];
    for (const each of all("*"))
      for (const part of ["", "::before", "::after"]) {
        const style = getComputedStyle(each, part);
        if (part && style.content === "none") continue;
        if (style.animationName !== "none" && seconds(style.animationDuration) > 0.01)
          faults.push(`${told(each)}${part} is animated (${style.animationName})`);
        if (seconds(style.transitionDuration) > 0.01 && !/^((background-|border-|outline-|text-decoration-)?color|fill|stroke|opacity|box-shadow|, )*$/.test(style.transitionProperty))
          faults.push(`${told(each)}${part} moves by a transition of ${style.transitionProperty}`);
        if (style.scrollBehavior === "smooth") faults.push(`${told(each)} scrolls smoothly`);
      }
    return faults;
  };

  // What says the page and where one can go from it: the same with and without JavaScript.
  const content = () => ({
    title: document.title,
    headings: all("h1, h2, h3").filter(isSeen).map((each) => each.textContent.trim()),
    links: [...new Set(all("a[href]").map((each) => each.href))].sort(),
    forms: all("form").map((each) => `${each.method} ${each.action}`),
  });
  const dead = () => {
    const buttons = all("button, input[type=button], input[type=submit]").filter(
      (each) => isSeen(each) && !each.matches(":disabled") && !(each.form && each.type !== "button") && !each.popoverTargetElement && !each.getAttribute("commandfor"),
    );
    const links = all("a").filter((each) => isSeen(each) && /^(#|javascript:.*)$/.test(each.getAttribute("href") || ""));
    return [...buttons, ...links].map((each) => `${told(each)} does nothing`);
  };

  const LOOK = ["outline-style", "outline-width", "outline-color", "box-shadow", "background-color", "border-top-color", "border-bottom-color", "border-bottom-width", "text-decoration-line"];
  const look = (element) => Object.fromEntries(LOOK.map((name) => [name, getComputedStyle(element).getPropertyValue(name)]));
  let stops = [];
  let atRest = [];
  const isStop = (each) => {
    if (each.matches(":disabled") || each.tabIndex < 0 || each.closest("[inert]") || !isSeen(each)) return false;
    if (each.type !== "radio") return true;
    const group = all("input[type=radio]").filter((other) => other.name === each.name && other.form === each.form);
    return each === (group.find((other) => other.checked) || group[0]);
  };
  // Begins above the first element, even where the page gave a field the focus.
  const begin = () => {
    stops = all("a[href], area[href], button, input, select, textarea, summary, iframe, [tabindex], [contenteditable]").filter(isStop);
    document.body.tabIndex = -1;
    document.body.focus();
    document.body.removeAttribute("tabindex");
    document.activeElement.blur();
    scrollTo(0, 0);
    atRest = stops.map(look);
    return stops.map(told);
  };
  // The stop at which the focus is now: its number (-1: none of those expected), and what is wrong with how it is seen.
  const focused = () => {
    const at = document.activeElement;
    if (!at || at === document.body || at === document.documentElement) return null;
    const number = stops.indexOf(at);
    const now = look(at);
    const hasOutline = now["outline-style"] !== "none" && now["outline-width"] !== "0px" && !/, 0\)$/.test(now["outline-color"]);
    const differs = number >= 0 && LOOK.slice(3).some((name) => now[name] !== atRest[number][name]);
    const { left, right, top, bottom } = at.getBoundingClientRect();
    const x = (Math.max(left, 0) + Math.min(right, innerWidth)) / 2;
    const y = (Math.max(top, 0) + Math.min(bottom, innerHeight)) / 2;
    const faults = [];
    if (!hasOutline && !differs) faults.push(`${told(at)} looks the same with the focus as without`);
    if (right <= 0 || bottom <= 0 || left >= innerWidth || top >= innerHeight) faults.push(`${told(at)} has the focus outside the window`);
    else {
      const hit = document.elementFromPoint(x, y);
      const spans = [...at.getClientRects()].map((box) => document.elementFromPoint((box.left + box.right) / 2, (box.top + box.bottom) / 2));
      if (![hit, ...spans].some((each) => each && (at.contains(each) || each.closest("label")?.control === at))) faults.push(`${told(at)} has the focus under ${told(hit || at)}`);
    }
    const place = { left: left + scrollX, right: right + scrollX, top: top + scrollY, bottom: bottom + scrollY };
    const isFixed = [at, at.offsetParent].some((each) => each && /fixed|sticky/.test(getComputedStyle(each).position));
    return { number, told: told(at), faults, place: isFixed ? null : place };
  };

  const firstPaint = () =>
    new Promise((resolve) => {
      const see = (entries) => entries.forEach((each) => each.name === "first-contentful-paint" && resolve(each.startTime));
      new PerformanceObserver((list) => see(list.getEntries())).observe({ type: "paint", buffered: true });
      setTimeout(() => resolve(null), 2000);
    });

  globalThis.bench = { tooWide, cutOff, nameless, handlers, moving, content, dead, begin, focused, firstPaint };
})();
