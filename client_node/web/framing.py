"""The frame around every answer to a browser: what it may load and send, how large a request is, under which name."""

from collections.abc import Collection
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ...listening import host_of

MOST_BODY = 256 << 10  # bytes
POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self'; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
_HEADERS = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=(), interest-cohort=()",
}
_YEAR = "max-age=31536000"


class _TooLong(Exception):
    pass


def framed(app: ASGIApp, names: Collection[str] | None, *, is_https: bool) -> ASGIApp:
    """Puts the frame around an app.

    Args:
        names: hosts under which it may be asked; None for any. A page elsewhere must not reach a loopback port under a
            name of its own (DNS rebinding).
        is_https: True to tell browsers to come by TLS alone from now on.
    """

    async def frame(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers, begun = Headers(scope=scope), False
        taken = 0

        async def bounded() -> Message:
            nonlocal taken
            message = await receive()
            taken += len(message.get("body", b""))
            if taken > MOST_BODY:
                raise _TooLong
            return message

        async def sent(message: Message) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                out = MutableHeaders(scope=message)
                for name, value in _HEADERS.items():
                    out.setdefault(name, value)
                out.setdefault("Cache-Control", "no-store")
                if is_https:
                    out["Strict-Transport-Security"] = _YEAR
            await send(message)

        answer = _refusal(scope, headers, names) or app
        try:
            await answer(scope, bounded, sent)
        except _TooLong:
            if not begun:
                await _said(413, f"a request has at most {MOST_BODY >> 10} KiB")(scope, receive, sent)

    return frame


def _refusal(scope: Scope, headers: Headers, names: Collection[str] | None) -> ASGIApp | None:
    """Finds what is wrong about a request before anybody looks at it."""
    if names is not None and host_of(headers.getlist("host")) not in names:
        return _said(421, "this page has another name")
    length = headers.get("content-length", "0")
    if not length.isdigit() or int(length) > MOST_BODY:
        return _said(413, f"a request has at most {MOST_BODY >> 10} KiB")
    if scope["method"] not in ("GET", "HEAD") and not _is_own(headers):
        return _said(403, "a form of another site is not taken")
    return None


def _is_own(headers: Headers) -> bool:
    """True unless a browser says that a page of another site has sent it; programs say nothing of it."""
    site, origin = headers.get("sec-fetch-site"), headers.get("origin")
    if site is not None and site not in ("same-origin", "none"):
        return False
    return origin is None or urlsplit(origin).netloc == headers.get("host")


def _said(status: int, text: str) -> ASGIApp:
    return PlainTextResponse(text + "\n", status)
