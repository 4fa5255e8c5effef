import hashlib
import math
import re

import pytest
from markupsafe import Markup
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.testclient import TestClient

from confide.client_node.web.framing import POLICY
from confide.client_node.web.rendering import FILTERS, Renderer, ago, amount, duration, epsilon, iso, short, when

HOSTILE = "<script>alert('1')</script>\"&"
SAID = {"heading": "Nothing was done", "advice": ""}


@pytest.fixture
def renderer():
    return Renderer("confide.coordinator.page.app", version="1", tone=str)


def asked(**headers: str) -> Request:
    return Request(
        {"type": "http", "headers": [(k.replace("_", "-").encode(), v.encode()) for k, v in headers.items()]}
    )


def shown(renderer, problem=HOSTILE, **headers):
    return renderer.page(asked(**headers), "outside.html", federation=HOSTILE, problem=problem, **SAID)


def test_text_is_never_markup(renderer):
    text = shown(renderer).body.decode()
    assert "<script" not in text
    assert text.count("&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt;&#34;&amp;") == 3  # title, name, problem


def test_a_fact_that_is_missing_is_an_error_and_not_empty(renderer):
    with pytest.raises(Exception, match="problem"):
        renderer.page(asked(), "outside.html", federation="f", **SAID)


def test_a_page_that_the_browser_has_is_told_by_its_tag(renderer):
    first = shown(renderer)
    again = shown(renderer, if_none_match=first.headers["ETag"])
    assert (again.status_code, again.body, again.headers["ETag"]) == (304, b"", first.headers["ETag"])
    assert shown(renderer, problem="other", if_none_match=first.headers["ETag"]).status_code == 200


def test_an_error_is_never_answered_by_what_the_browser_has(renderer):
    first = renderer.page(asked(), "outside.html", status=403, federation="f", problem="p", **SAID)
    tag = first.headers["ETag"]
    again = renderer.page(asked(if_none_match=tag), "outside.html", status=403, federation="f", problem="p", **SAID)
    assert (again.status_code, again.body) == (403, first.body)


def test_assets_are_named_by_what_they_hold_and_may_be_kept(renderer):
    client = TestClient(Starlette(routes=renderer.routes()))
    kinds = {"web.css": "text/css", "live.js": "text/javascript", "icon.svg": "image/svg+xml"}
    for name, kind in kinds.items():
        address = renderer._asset(name)
        answer = client.get(address)
        assert answer.status_code == 200
        assert answer.headers["Content-Type"].startswith(kind)
        assert "immutable" in answer.headers["Cache-Control"]
        assert address.endswith("?v=" + hashlib.sha256(answer.content).hexdigest()[:12])
    for other in ("base.html", "../app.py", "%2e%2e/rendering.py", ""):
        assert client.get(f"/static/{other}").status_code == 404


def test_the_policy_lets_a_browser_load_the_assets_and_they_load_nothing_else(renderer):
    assert "unsafe" not in POLICY
    assert "*" not in POLICY
    client = TestClient(Starlette(routes=renderer.routes()))
    style, script = client.get("/static/web.css").text, client.get("/static/live.js").text
    assert not re.search(r"url\(|@import|https?:", style)
    assert not re.search(r"\beval\b|new Function|https?:|innerHTML\s*=[^=]|insertAdjacentHTML|document\.write", script)


@pytest.mark.parametrize("write", [short, str])
def test_hashes_and_texts_are_escaped(write):
    assert "<script" not in str(Markup("{}").format(write(HOSTILE)))


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "120 min"), (7200, "2 h"), (172_800, "2 d"), (None, "–")],
)
def test_a_span_is_written_in_its_largest_unit(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (2_500_000, "2.5 MB"), (3.2e9, "3.2 GB")]
)
def test_amounts_have_a_unit(size, text):
    assert amount(size) == text


def test_moments_are_utc_and_an_unknown_one_is_never():
    assert iso(0) == "1970-01-01T00:00:00Z"
    assert ">1970-01-01 00:00</time>" in when(0)
    assert (when(None), ago(None)) == ("", "never")
    assert re.search(r'datetime="1970-01-01T00:00:00Z".*>\d+ d ago<', ago(0))


def test_epsilon_is_never_written_smaller_than_it_is():
    for bound in (0.0, 0.001, 1.2341, 7.9999, 123.456):
        assert float(epsilon(bound)) >= bound
    assert epsilon(None) == "–"
    assert epsilon(math.inf)  # a ledger without a cap has such an account


def test_every_filter_is_there_by_its_name():
    assert FILTERS["number"](1234567) == "1,234,567"
