"""Looks at one web page as its readers do: on a telephone, at night, by keyboard, on paper, without JavaScript.

All that is wrong is returned as sentences, each with the variant that shows it. A page is loaded three times: plainly
(widths, colours, motion, keys and paper follow one another there), at 200 % zoom, and without JavaScript.
"""

import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from urllib.parse import urlsplit

from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, Request, WebSocket

CHECKS = (Path(__file__).parent / "checks.js").read_text()
HEIGHT, PHONE, DESK, WIDE = 800, 360, 1280, 2560  # CSS pixels
REFLOW = 320  # of the 1280 pixels of WCAG 2.1, 1.4.10, at 400 %
TALLEST = 8000  # of a picture: Chromium takes none of more than 16,384 pixels of a screen that has two for one here
PAPER = 680  # A4 between margins of 15 mm, at 96 pixels an inch
AXE = {
    "runOnly": {"type": "tag", "values": ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]},
    "resultTypes": ["violations"],
}
COLOURS = {"runOnly": ["color-contrast", "link-in-text-block"], "resultTypes": ["violations"]}


@dataclass(frozen=True, slots=True)
class Place:
    """An address, with the cookies of whoever is logged in there: each has a name and a value."""

    address: str
    cookies: tuple[dict[str, str], ...] = ()
    status: int = 200  # that the server answers with; a file has none

    def at(self, path: str, *, status: int = 200) -> "Place":
        """Another page of the same server, seen by the same person."""
        return Place(self.address + path, self.cookies, status)


@dataclass(frozen=True, slots=True)
class Pictures:
    """The folder for pictures of whole pages, and for their prints; none if nobody wants to see them."""

    folder: Path | None

    def take(self, page: Page, name: str) -> None:
        """Writes one as name.png; of a very long page, its beginning."""
        page.evaluate("scrollTo(0, 0)")  # else what sticks to the window's top lies over the page's middle
        if (path := self.file(f"{name}.png")) is not None:
            width, height = page.evaluate("[innerWidth, document.documentElement.scrollHeight]")
            clip = {"x": 0, "y": 0, "width": width, "height": min(height, TALLEST)}
            page.screenshot(path=path, full_page=True, clip=clip, animations="disabled")

    def file(self, name: str) -> Path | None:
        """Path of a file in the folder, if there is one."""
        return None if self.folder is None else self.folder / name


@dataclass(slots=True)
class Seen:
    """What a look found."""

    faults: list[str] = field(default_factory=list)
    first_paint_ms: float | None = None  # until the first contentful paint, from the start of the navigation
    seconds: float = 0.0  # of the whole look

    def blame(self, variant: str, faults: list[str]) -> None:
        self.faults += [f"{variant}: {fault}" for fault in dict.fromkeys(faults)]

    def __str__(self) -> str:
        return "\n".join([f"{len(self.faults)} faults", *self.faults])


def look(browser: Browser, place: Place, pictures: Pictures, name: str, *, is_brief: bool = False) -> Seen:
    """Looks at the page of `place` in every variant; its pictures are named `name`-variant.

    Args:
        is_brief: True for the state of a page that is looked at whole in another one: it is loaded once, and only what
            a state changes is looked for, that is widths, colours, and the rules of axe on a wide page.
    """
    began, seen = time.perf_counter(), Seen()
    if is_brief:
        _look_briefly(browser, place, pictures, name, seen)
        seen.seconds = time.perf_counter() - began
        return seen
    with opened(browser, place, seen, "plainly") as page:
        seen.first_paint_ms = page.evaluate("bench.firstPaint()")
        told = page.evaluate("bench.content()")
        seen.blame("pictures", page.evaluate("bench.nameless()"))
        seen.blame("scripts", page.evaluate("bench.handlers()"))
        _keys(page, seen)
        _widths(page, seen, pictures, name)
        _axe(page, seen, "light")
        page.emulate_media(color_scheme="dark")
        _axe(page, seen, "dark")
        pictures.take(page, f"{name}-dark")
        page.emulate_media(color_scheme="light", reduced_motion="reduce")
        seen.blame("reduced motion", page.evaluate("bench.moving()"))
        _print(page, seen, pictures, name)
    half = {"width": DESK // 2, "height": HEIGHT // 2}
    with opened(browser, place, seen, "200 %", viewport=half, device_scale_factor=2) as page:
        seen.blame("200 %", page.evaluate("[...bench.tooWide(), ...bench.cutOff(false)]"))
        pictures.take(page, f"{name}-zoomed")
    variant = "without JavaScript"
    with opened(browser, place, seen, variant, java_script_enabled=False) as page:
        seen.blame(variant, page.evaluate("[...bench.dead(), ...bench.tooWide()]"))
        for part, found in page.evaluate("bench.content()").items():
            seen.blame(variant, [f"{part}: {found}; with it: {told[part]}"] if found != told[part] else [])
        pictures.take(page, f"{name}-without-script")
    seen.seconds = time.perf_counter() - began
    return seen


def glance(page: Page, pictures: Pictures, name: str) -> Seen:
    """Looks briefly at a page that is open already, as the answer of a form is; it stays open."""
    seen = Seen()
    page.evaluate(CHECKS)
    _glance(page, seen, pictures, name)
    page.emulate_media(color_scheme="light")
    return seen


def _look_briefly(browser: Browser, place: Place, pictures: Pictures, name: str, seen: Seen) -> None:
    with opened(browser, place, seen, "plainly") as page:
        seen.first_paint_ms = page.evaluate("bench.firstPaint()")
        _glance(page, seen, pictures, name)


def _glance(page: Page, seen: Seen, pictures: Pictures, name: str) -> None:
    seen.blame("pictures", page.evaluate("bench.nameless()"))
    _widths(page, seen, pictures, name, is_brief=True)
    _axe(page, seen, "light")
    page.emulate_media(color_scheme="dark")
    _axe(page, seen, "dark", COLOURS)
    pictures.take(page, f"{name}-dark")


@contextmanager
def opened(browser: Browser, place: Place, seen: Seen, variant: str, **options: object) -> Iterator[Page]:
    """The page, loaded in a context of its own; what it asks for and complains of until it is closed is blamed."""
    usual = {"viewport": {"width": DESK, "height": HEIGHT}, "color_scheme": "light", "reduced_motion": "no-preference"}
    context = browser.new_context(**usual | options)
    try:
        context.add_cookies([{"url": place.address, **cookie} for cookie in place.cookies])
        faults: list[str] = []
        page = context.new_page()
        _watch(context, page, place, faults)
        answer = page.goto(place.address)
        while "refresh" in answer.headers:  # it is still being computed; a page that comes again cannot be looked at
            answer = page.goto(place.address)
        if urlsplit(place.address).scheme != "file" and answer.status != place.status:
            faults.append(f"{place.address} answers {answer.status}, not {place.status}")
        page.evaluate(CHECKS)
        faults += _policy_faults(page, answer.headers.get("content-security-policy", ""))
        yield page
        seen.blame(variant, faults)
    finally:
        context.close()


def _watch(context: BrowserContext, page: Page, place: Place, faults: list[str]) -> None:
    own = urlsplit(place.address)

    def is_own(url: str) -> bool:
        asked = urlsplit(url)
        if asked.scheme in ("data", "blob"):
            return True
        if own.scheme == "file":
            return url == place.address
        return asked.netloc == own.netloc

    def asked(request: Request) -> None:
        if not is_own(request.url):
            faults.append(f"asks for {request.url}")

    def connected(socket: WebSocket) -> None:
        if not is_own(socket.url):
            faults.append(f"connects to {socket.url}")

    def said(message: ConsoleMessage) -> None:
        is_the_page_itself = place.status >= 400 and message.location["url"] == place.address
        if message.type == "error" and not is_the_page_itself:  # a violation of the policy is an error too
            faults.append(f"console error: {message.text}")

    context.on("request", asked)
    context.on("console", said)
    page.on("websocket", connected)
    page.on("pageerror", lambda error: faults.append(f"error in a script: {error}"))


def _policy_faults(page: Page, header: str) -> list[str]:
    """Faults of the content security policy, from the header or, in a file, from the page's head."""
    policy = header or page.evaluate(
        "document.querySelector('meta[http-equiv=Content-Security-Policy]')?.content ?? ''"
    )
    parts = dict(part.strip().partition(" ")[::2] for part in policy.split(";"))
    if "default-src" not in parts:
        return ["no content security policy with a default-src"]
    allowed = set(parts.get("script-src", parts["default-src"]).split())
    loose = allowed & {"'unsafe-inline'", "'unsafe-eval'", "*", "http:", "https:", "data:"}
    return [f"the content security policy allows scripts from {' '.join(sorted(loose))}"] if loose else []


def _axe(page: Page, seen: Seen, variant: str, rules: Mapping[str, object] = AXE) -> None:
    faults = []
    for rule in Axe().run(page, options=rules).response["violations"]:
        places = [f"{' '.join(map(str, node['target']))} {_reason(node)}" for node in rule["nodes"]]
        more = f" and {len(places) - 3} more" if len(places) > 3 else ""
        faults.append(f"axe {rule['id']} ({rule['help']}): {'; '.join(places[:3])}{more}")
    seen.blame(variant, faults)


def _reason(node: dict) -> str:
    return "".join(f"({check['message']})" for check in (*node["any"], *node["all"], *node["none"])[:1])


def _widths(page: Page, seen: Seen, pictures: Pictures, name: str, *, is_brief: bool = False) -> None:
    """Makes the window as wide as each of four, the usual width last."""
    for width, variant in ((REFLOW, "400 %"), (PHONE, "phone"), (WIDE, "wide"), (DESK, "light")):
        page.set_viewport_size({"width": width, "height": HEIGHT})
        seen.blame(f"{variant}, {width} px", page.evaluate("[...bench.tooWide(), ...bench.cutOff(false)]"))
        if width != REFLOW:
            pictures.take(page, f"{name}-{variant}")
        if width == PHONE and not is_brief:
            _axe(page, seen, variant)


def _keys(page: Page, seen: Seen) -> None:
    """Presses Tab from the top of the page to its end."""
    expected = page.evaluate("bench.begin()")
    stops, faults = [], []
    for _ in range(2 * len(expected) + 5):
        page.keyboard.press("Tab")
        stop = page.evaluate("bench.focused()")
        if stops and stop is not None and stop["number"] == stops[-1]["number"] >= 0:
            continue  # a field of a date has a stop for each of its parts; a trap leaves what comes behind unreached
        if stop is None or stop["number"] in {other["number"] for other in stops if other["number"] >= 0}:
            break
        stops.append(stop)
        faults += stop["faults"]
    reached = [stop["number"] for stop in stops if stop["number"] >= 0]
    faults += [f"Tab does not reach {told}" for number, told in enumerate(expected) if number not in reached]
    for before, after in pairwise(stops):
        if _is_back(before["place"], after["place"]):
            faults.append(f"Tab goes from {before['told']} back to {after['told']}")
    seen.blame("by keyboard", faults)


def _is_back(before: dict | None, after: dict | None) -> bool:
    """True if the second stop lies above and to the left of the first: against the direction of reading."""
    if before is None or after is None:  # one of them stays in place while the page scrolls
        return False
    return after["bottom"] <= before["top"] and after["right"] <= before["left"]


def _print(page: Page, seen: Seen, pictures: Pictures, name: str) -> None:
    page.emulate_media(media="print")
    page.set_viewport_size({"width": PAPER, "height": HEIGHT})
    seen.blame("on paper", page.evaluate("[...bench.tooWide(), ...bench.cutOff(true)]"))
    pictures.take(page, f"{name}-paper")
    paper = page.pdf(path=pictures.file(f"{name}.pdf"), format="A4", prefer_css_page_size=True, print_background=True)
    if not paper.startswith(b"%PDF") or b"/MediaBox" not in paper:
        seen.blame("on paper", ["Chromium wrote no page"])
