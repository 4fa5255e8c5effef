"""Each check can fail: a page in which all is well, and the same page with one thing wrong."""

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from .looking import Place, look

pytestmark = [pytest.mark.process, pytest.mark.slow]

POLICY = (
    "default-src 'none'; style-src 'self' 'unsafe-inline'; script-src 'self'; img-src 'self' data:; connect-src 'self'"
)
GOOD = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>Runs</title>
<link rel="icon" href="data:,">
<style>
body { font: 16px sans-serif; color: #111; background: #fff }
a { color: #00e }
@media (prefers-color-scheme: dark) { body { color: #eee; background: #111 } a { color: #9cf } }
.name { width: 9ch; line-height: 1.1; overflow: hidden; text-overflow: ellipsis; white-space: nowrap }
/*style*/
</style>
<script src="/script.js"></script>
</head>
<body>
<header><nav aria-label="Pages"><a href="/runs">All of the runs</a> <a href="/sites">All of the sites</a></nav></header>
<main>
<h1>Runs of this year</h1>
<p>There are <a href="/run/1">some more words</a> about it.</p>
<svg role="img" aria-label="Epsilon by round" width="100" height="20"><text x="2" y="14">ε</text></svg>
<div role="img" aria-label="Half of it is spent"><svg width="9" height="9"><circle r="4"/></svg></div>
<p class="name">readmission-within-30-days-of-surgery</p>
<form method="post" action="/stop">
<p><label>Reason for it <input name="reason"></label></p>
<fieldset><legend>Which of them</legend><label><input type="radio" name="which" value="1"> the first one</label>
<label><input type="radio" name="which" value="2"> the second one</label></fieldset>
<p><label>Whole name <input name="name" size="5" value="readmission-within-30-days"></label></p>
<fieldset disabled><legend>Not for you</legend>
<label>Until <input name="until"></label> <button>Resume it</button></fieldset>
<p><button>Stop the run</button></p>
</form>
<!--main-->
</main>
</body>
</html>
"""


class Shelf(BaseHTTPRequestHandler):
    """Serves the page and the script that a test laid there."""

    page = (200, POLICY, GOOD)
    script = ""
    guests: str | None = None  # the cookie without which nobody sees the page

    def do_GET(self):
        status, policy, text = self.page if self.path == "/" else (404, POLICY, "nothing is here")
        if self.guests is not None and self.headers.get("Cookie") != self.guests:
            status = 401
        if self.path == "/script.js":
            status, text = 200, self.script
        kind = "text/javascript" if self.path == "/script.js" else "text/html"
        self.send_response(status)
        self.send_header("Content-Type", kind)
        if policy:
            self.send_header("Content-Security-Policy", policy)
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_):
        """Says nothing."""


@pytest.fixture(scope="module")
def address():
    with ThreadingHTTPServer(("127.0.0.1", 0), Shelf) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}/"
        server.shutdown()
        thread.join()


@pytest.fixture
def faults_of(browser, address, pictures):
    """Looks at what a test laid on the shelf."""

    def found(text=GOOD, *, script="", policy=POLICY, status=200, expected=200):
        Shelf.page, Shelf.script = (status, policy, text), script
        return look(browser, Place(address, status=expected), pictures, "checked").faults

    return found


def test_nothing_is_wrong_with_the_good_page(faults_of):
    assert faults_of(script="document.title = 'Runs'") == []


def test_a_page_that_says_no_may_be_looked_at(faults_of):
    assert faults_of(status=404, expected=404) == []


def test_another_status_is_a_fault(faults_of):
    assert any("answers 500, not 200" in fault for fault in faults_of(status=500))


def test_a_page_is_seen_by_who_is_logged_in(browser, address, pictures, monkeypatch):
    monkeypatch.setattr(Shelf, "page", (200, POLICY, GOOD))
    monkeypatch.setattr(Shelf, "guests", "session=abc")
    guest = Place(address, ({"name": "session", "value": "abc"},))
    assert look(browser, guest, pictures, "checked").faults == []
    assert any("answers 401, not 200" in fault for fault in look(browser, Place(address), pictures, "checked").faults)


@pytest.mark.parametrize(
    ("policy", "fault"),
    [
        ("", "no content security policy"),
        ("script-src 'self'; style-src 'unsafe-inline'", "no content security policy"),
        (
            POLICY.replace("script-src 'self'", "script-src 'self' 'unsafe-inline'"),
            "allows scripts from 'unsafe-inline'",
        ),
    ],
    ids=["none", "no default", "inline scripts"],
)
def test_a_lax_policy_is_a_fault(faults_of, policy, fault):
    assert any(fault in each for each in faults_of(policy=policy))


PIXEL = "data:image/gif;base64,R0lGODlhAQABAAAAACw="
# What each page has beside the good one: the fault that must be found, what is put into its main part, a rule of style.
SHOWN = [
    ("image-alt", f'<img src="{PIXEL}" width="20" height="20">', ""),
    ("pictures: <svg#bare> has no name", '<svg id="bare" width="9" height="9"><circle r="5"/></svg>', ""),
    ('pictures: <meter> "0.5" has no name', '<meter value="0.5"></meter>', ""),
    ("axe label ", '<input name="other">', ""),
    ("axe heading-order", "<h3>A small one</h3>", ""),  # a best practice
    ("light: axe color-contrast", "<p id=pale>Pale by day</p>", "#pale { color: #bbb; background: #fff }"),
    ("dark: axe color-contrast", "<p id=dim>Dim by night</p>", "#dim { color: #111 }"),
    ("phone: axe color-contrast", "<p id=thin>Thin here</p>", "@media (width <= 400px) { #thin { color: #ddd } }"),
    (
        '<p#cut> "Long text" hides a part',
        "<p id=cut>Long text</p>",
        "#cut { width: 3ch; overflow: clip; white-space: pre }",
    ),
    (
        '<td#tight> "clinic-of-the-north" reaches out of its cell',
        "<table><tr><td id=tight>clinic-of-the-north<td>site</table>",
        "#tight { max-width: 3ch; white-space: nowrap }",
    ),
    (
        "reaches out of its picture",
        '<svg role="img" aria-label="x" width="20" height="20"><text y="14">wide label</text></svg>',
        "",
    ),
    (
        "on paper: <div#roll>",
        '<div id=roll tabindex=0 role=region aria-label="Table"><p>Words</p></div>',
        "#roll { overflow-x: auto } #roll p { width: 900px }",
    ),
    (
        "reduced motion: <p#dance>",
        "<p id=dance>Words</p>",
        "#dance { animation: turn 3s infinite } @keyframes turn { to { translate: 1px } }",
    ),
    ("reduced motion: <p#slide>", "<p id=slide>Words</p>", "#slide { transition: transform 1s }"),
    ('without JavaScript: <button> "Copy it" does nothing', '<button type="button">Copy it</button>', ""),
    ('without JavaScript: <a> "Go to the top" does nothing', '<a href="#">Go to the top</a>', ""),
]
WIDE = [
    ("400 %, 320 px: <p#w340>", "<p id=w340>Words</p>", "#w340 { width: 340px }"),
    ("phone, 360 px: <p#w500>", "<p id=w500>Words</p>", "#w500 { width: 500px }"),
    ("200 %: <p#w700>", "<p id=w700>Words</p>", "@media (resolution: 2dppx) { #w700 { width: 700px } }"),
    ("wide, 2560 px: <p#w2600>", "<p id=w2600>Words</p>", "@media (width > 2000px) { #w2600 { width: 2600px } }"),
    ("on paper: <p#w720>", "<p id=w720>Words</p>", "@media print { #w720 { width: 720px } }"),
]
MASKED = [("phone, 360 px: <p#w500>", "<p id=w500>Words</p>", "#w500 { width: 500px } body { overflow-x: hidden }")]
ASKED = [
    ("asks for https://example.com/logo.png", '<img alt="a logo" src="https://example.com/logo.png">', ""),
    ("asks for http://127.0.0.1:1/other.css", '<link rel="stylesheet" href="http://127.0.0.1:1/other.css">', ""),
    ("plainly: console error: Executing inline script violates", "<script>document.title = 'Other'</script>", ""),
    ("plainly: console error: Failed to load resource", '<img alt="a plot" src="/gone.svg">', ""),
    ('<p> "Words" has onclick in its markup', '<p onclick="alert(1)">Words</p>', ""),
]
KEYS = [
    ('does not reach <a> "Out of turn"', '<a href="/x" tabindex="3">Out of turn</a>', ""),
    (
        '<button#plain> "Stop it" looks the same',
        "<p><button id=plain>Stop it</button></p>",
        "#plain:focus { outline: none }",
    ),
    (
        '<button#under> "Under it" has the focus under',
        "<p id=pit><button id=under>Under it</button></p>",
        "#pit { position: relative } #pit::after { content: ''; position: absolute; inset: 0 }",
    ),
    ("has the focus outside the window", '<a id=off href="/off">Off</a>', "#off { position: fixed; top: -99px }"),
    (
        'Tab goes from <a#low> "Below" back to <a#high> "Above"',
        '<p id=box><a id=low href="/l">Below</a> <a id=high href="/h">Above</a></p>',
        "#box { position: relative; height: 90px } #box a { position: absolute; top: 0 } #low { translate: 99px 60px }",
    ),
]


@pytest.mark.parametrize("rows", [SHOWN, WIDE, MASKED, ASKED, KEYS], ids=["shown", "wide", "masked", "asked", "keys"])
def test_what_is_wrong_is_found(faults_of, rows):
    text = GOOD.replace("/*style*/", "\n".join(rule for _, _, rule in rows))
    found = faults_of(text.replace("<!--main-->", "\n".join(markup for _, markup, _ in rows)))
    assert [fault for fault, _, _ in rows if not any(fault in each for each in found)] == [], found


def test_a_missing_language_is_found(faults_of):
    assert any("axe html-has-lang" in fault for fault in faults_of(GOOD.replace(' lang="en"', "")))


SCRIPTS = {
    "console.error('lost')": "plainly: console error: lost",
    "undefinedName": "plainly: error in a script: undefinedName is not defined",
    "fetch('https://example.com/x').catch(() => null)": "Connecting to 'https://example.com/x' violates",
    "onload = () => document.querySelector('h1').append(' of all')": "without JavaScript: headings",
    "onload = () => { document.forms[0].name.onkeydown = () => false }": 'Tab does not reach <button> "Stop',
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_what_a_script_does_wrong_is_found(faults_of, script):
    found = faults_of(script=script)
    assert any(SCRIPTS[script] in fault for fault in found), found


def test_a_field_of_a_date_holds_nobody_fast(faults_of):
    date = '<p><label>Day of it <input type="date"></label></p>'
    assert faults_of(GOOD.replace("<p><button>Stop", date + "<p><button>Stop")) == []


def test_what_a_lax_policy_lets_out_is_found(faults_of):
    script = "fetch('http://127.0.0.1:1/x').catch(() => null); new WebSocket('ws://127.0.0.1:1/y')"
    found = faults_of(script=script, policy=POLICY.replace("connect-src 'self'", "connect-src *"))
    assert {"plainly: asks for http://127.0.0.1:1/x", "plainly: connects to ws://127.0.0.1:1/y"} <= set(found)
