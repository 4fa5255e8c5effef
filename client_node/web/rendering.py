"""Renders pages from templates, all in one look, and serves the style and the script that they share."""

import hashlib
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from functools import cached_property
from importlib.resources import files
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.requests import Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route

from ... import durations
from ...models.rounding import power_of_ten, rounded_down, rounded_up

_FOR_GOOD = "public, max-age=31536000, immutable"
_TIME = Markup('<time datetime="{iso}" title="{iso}">{text}</time>')


class Renderer:
    """Templates beside a module, within the frame's layout.

    Args:
        module: its folder `templates` holds the pages.
        shared: what every template can use.
    """

    def __init__(self, module: str, **shared: Any) -> None:
        folders = (module.rpartition(".")[0], __name__.rpartition(".")[0], "confide.privacy.report")
        loaders = [PackageLoader(folder) for folder in folders]
        self._pages = loaders[0]
        self._environment = Environment(
            autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
            loader=ChoiceLoader(loaders),
        )  # fmt: skip
        self._environment.filters |= FILTERS
        self._environment.globals |= {"asset": self._asset, **shared}

    def page(self, request: Request, template: str, *, status: int = 200, **facts: Any) -> Response:
        """Renders a page; one that the browser has already is answered by 304."""
        body = self._environment.get_template(template).render(facts).encode()
        tag = f'"{hashlib.sha256(body).hexdigest()[:32]}"'
        if status == 200 and request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers={"ETag": tag})
        return HTMLResponse(body, status, headers={"ETag": tag})

    def warm_up(self) -> None:
        """Compiles every page's template, which takes longer than to render it."""
        for name in self._pages.list_templates():
            self._environment.get_template(name)

    def routes(self) -> list[Route]:
        """Lists the routes of style, script and icon."""
        return [Route(f"/static/{name}", self._serve(name), methods=["GET"]) for name in self._assets]

    @cached_property
    def _assets(self) -> Mapping[str, tuple[bytes, str]]:
        folder = files(__package__) / "static"
        style = self._environment.get_template("web.css").render().encode()
        script, icon = (folder / "live.js").read_bytes(), (folder / "icon.svg").read_bytes()
        return {
            "web.css": (style, "text/css; charset=utf-8"),
            "live.js": (script, "text/javascript; charset=utf-8"),
            "icon.svg": (icon, "image/svg+xml"),
        }

    def _asset(self, name: str) -> str:
        """Writes an asset's address, which changes with its contents, so that a browser may keep it for good."""
        return f"/static/{name}?v={hashlib.sha256(self._assets[name][0]).hexdigest()[:12]}"

    def _serve(self, name: str) -> Callable[[Request], Response]:
        def served(_: Request) -> Response:
            data, kind = self._assets[name]
            return Response(
                data, headers={"Content-Type": kind, "Cache-Control": "public, max-age=31536000, immutable"}
            )

        return served


def ago(moment: float | None) -> str | Markup:
    """Writes how long ago a moment was, with the moment itself for who points at it."""
    if moment is None:
        return "never"
    seconds = time.time() - moment
    text = f"in {durations.duration(-seconds)}" if seconds < -1 else f"{durations.duration(max(0.0, seconds))} ago"
    return _TIME.format(iso=iso(moment), text=text)


def when(moment: float | None) -> str | Markup:
    """Writes a moment, in UTC, to the minute."""
    return "" if moment is None else _TIME.format(iso=iso(moment), text=iso(moment)[:16].replace("T", " "))


def iso(moment: float) -> str:
    """Writes a moment as 2026-02-28T12:00:00Z."""
    return datetime.fromtimestamp(moment, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def duration(seconds: float | None) -> str:
    """Writes a span of time in its largest unit."""
    return "–" if seconds is None else durations.duration(seconds)


def amount(size: float) -> str:
    """Writes a number of bytes."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size:.0f} B"


def epsilon(bound: float | None) -> str:
    """Writes an upper bound of epsilon, rounded up."""
    return "–" if bound is None else rounded_up(bound)


def small(value: float) -> str:
    """Writes a number; one below a thousandth, such as a delta, as a power of ten, as reports do."""
    return power_of_ten(value) if 0 < abs(value) < 1e-3 else f"{value:g}"


def lower_bound(bound: float) -> str:
    """Writes a lower bound of epsilon, rounded down."""
    return rounded_down(bound)


def short(text: str) -> Markup:
    """Writes the beginning of a hash or key in groups of four, and all of it for who points at it."""
    groups = " ".join(text[start : start + 4] for start in range(0, 16, 4))
    return Markup('<span class="hash" title="{all}">{groups}</span>').format(all=text, groups=groups)


FILTERS: Mapping[str, Callable[..., Any]] = {
    "ago": ago, "when": when, "iso": iso, "duration": duration, "amount": amount, "epsilon": epsilon,
    "lower_bound": lower_bound, "short": short, "small": small,
    "number": lambda value: f"{value:,}",
}  # fmt: skip
