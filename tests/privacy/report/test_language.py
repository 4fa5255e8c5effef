import ast
import html.parser
import json
import re
import string
from importlib.resources import files
from pathlib import Path

import jinja2
import pytest
from jinja2 import nodes

from confide.privacy.errors import ReportInvalid
from confide.privacy.report import language as languages_module
from confide.privacy.report import page
from confide.privacy.report.build import SiteLedger, build_report, render_html
from confide.privacy.report.language import Language, languages, load
from confide.privacy.report.schema import AuditFinding, dump

from ..ledgers import STUDY, STUDY_TEXT, audit_facts, charge, eventful_report, ledger_with, signer

ROOM = Path(str(files("confide.privacy.report")))
TEMPLATE = (ROOM / "templates" / "report.html").read_text(encoding="utf-8")
ENGLISH = load("en")
SPOKEN = ("aria-label", "title", "alt", "placeholder", "data-label")  # attributes that a person reads or hears


def template_tree() -> nodes.Template:
    return jinja2.Environment(trim_blocks=True, lstrip_blocks=True).parse(TEMPLATE)


def constants() -> set[str]:
    """Every string in the template's expressions and in the room's code."""
    found = {node.value for node in template_tree().find_all(nodes.Const) if isinstance(node.value, str)}
    for path in ROOM.glob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        found |= {
            node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
        }
    return found


def is_used(key: str, strings: set[str]) -> bool:
    """True if a key is named whole, or by its beginning, where its end is a name that occurs as well."""
    whole = re.sub(r"\.(one|other)$", "", key)
    ends = [place + 1 for place, mark in enumerate(whole) if mark == "."]
    return whole in strings or any(whole[:end] in strings and whole[end:] in strings for end in ends)


def fields(text: str) -> set[str]:
    return {name for _, name, _, _ in string.Formatter().parse(text) if name is not None}


def tags(text: str) -> list[str]:
    return sorted(re.findall(r"</?(?:em|strong|sup|code|cite|span)\b", text))


@pytest.mark.parametrize("code", languages())
def test_every_language_has_the_same_keys_with_the_same_values_to_fill_in(code):
    texts = load(code).texts
    assert texts.keys() ^ ENGLISH.texts.keys() == set()
    for key, text in texts.items():
        assert isinstance(text, str), key
        assert text.strip(), key
        assert fields(text) == fields(ENGLISH.texts[key]), key
        assert tags(text) == tags(ENGLISH.texts[key]), key


def test_no_text_is_left_over():
    strings = constants()
    assert [key for key in ENGLISH.texts if not is_used(key, strings)] == []


def test_the_search_for_left_over_texts_finds_one():
    assert not is_used("verdict.nobody_says_this", constants())
    assert not is_used("summary.nobody_says_this", constants())


def test_every_key_that_the_template_names_is_there():
    named = [call.args[0].value for call in template_tree().find_all(nodes.Call) if _is_text(call)]
    numbers = {key.removesuffix(".one") for key in ENGLISH.texts if key.endswith(".one")}
    assert len(named) > 90
    assert [key for key in named if key not in ENGLISH.texts and key not in numbers] == []


def _is_text(call: nodes.Call) -> bool:
    is_ours = isinstance(call.node, nodes.Name) and call.node.name in ("t", "n")
    return is_ours and isinstance(call.args[0], nodes.Const)


class Literal(html.parser.HTMLParser):
    """Collects what a person would read of a template's own text."""

    def __init__(self):
        super().__init__()
        self.read, self.open = [], []

    def handle_starttag(self, tag, attrs):
        if tag not in ("meta", "br"):
            self.open.append(tag)
        self.read += [value for name, value in attrs if name in SPOKEN and value]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "code"} & set(self.open):  # code is the same in every language
            self.read.append(data)


def test_the_template_holds_no_text_of_its_own():
    bare = re.sub(r"\{%.*?%\}|\{\{.*?\}\}", "", TEMPLATE, flags=re.DOTALL)
    literal = Literal()
    literal.feed(bare)
    assert [text for text in literal.read if re.search(r"[^\W\d_]", text)] == []
    literal.feed('<td aria-label="Left">over</td>')
    assert literal.read[-2:] == ["Left", "over"]  # so it would have been found


def _whole() -> dict:
    """A report of everything that goes well, and of an audit that found something."""
    failed = audit_facts(findings=[AuditFinding(check="noise", detail="std is half of it")])
    report = eventful_report()
    return report | {"audits": [*report["audits"], dump(failed)]}


def _odd(path) -> dict:
    """A report of what goes wrong: no cap, no noise, nothing charged, an unknown study."""
    sites = {}
    for seed, site in enumerate(("east", "north", "south"), start=1):
        with ledger_with(path / f"{site}.db", site=site, seed=seed, rounds=seed - 1, settled=0) as ledger:
            if site == "east":
                ledger.reserve(charge(1, run="open", dataset="public", mode="none"), unprotected_allowed=True)
            if site == "south":
                ledger.recover(10)
            sites[site] = SiteLedger(ledger.public_key, ledger.entries())
    return build_report("F", sites, [STUDY_TEXT], signer(99), audits=[audit_facts(study=STUDY)])


@pytest.mark.parametrize("kind", ["whole", "odd"])
def test_no_word_on_the_page_comes_from_anywhere_but_the_file_and_the_report(kind, tmp_path, monkeypatch):
    report = _whole() if kind == "whole" else _odd(tmp_path)
    mute = {key: " ".join(f"{{{name}}}" for name in fields(text)) for key, text in ENGLISH.texts.items()}
    mute["numbers.decimal"], mute["numbers.thousands"] = ".,"
    mute["dates.months"] = " ".join(["1"] * 12)
    monkeypatch.setattr(page, "load", lambda code: Language(code, mute))
    shown = render_html(report)
    body = re.sub(r"<style>.*?</style>|<code>.*?</code>", "", shown, flags=re.DOTALL)
    spoken = " ".join(re.findall(rf'(?:{"|".join(SPOKEN)})="([^"]*)"', body))
    words = set(re.findall(r"[^\W\d_]{2,}", html.unescape(re.sub(r"<[^>]+>", " ", body) + spoken)))
    digest = page.hashlib.sha256(page.canonical.encode(report)).hexdigest()
    said = json.dumps(report, ensure_ascii=False) + digest
    assert {word for word in words if word.lower() not in said.lower()} == set()  # a sentence begins with a capital


def test_numbers_and_dates_are_written_as_the_language_writes_them():
    german = load("de")
    assert german.digits("1,234.5") == "1.234,5"
    assert german.day("2026-11-27T13:00:00Z") == "27. November 2026"
    assert ENGLISH.digits("1,234.5") == "1,234.5"
    assert ENGLISH.day("2026-03-01T00:00:00Z") == "1 March 2026"


def test_a_german_page_has_no_english_number_and_says_the_same_figures():
    report = eventful_report()
    english, german = (render_html(report, language=code) for code in ("en", "de"))
    numbers = [re.findall(r'class="[^"]*\bn"[^>]*>(?:<strong>)?([\d.,]+)<', text) for text in (english, german)]
    assert len(numbers[0]) > 100
    assert numbers[1] == [load("de").digits(number) for number in numbers[0]]
    assert '<html lang="de">' in german
    for words in ("Datenschutzbudget", "Beteiligte", "Obergrenze", "Epsilon über die Zeit"):
        assert words in german


def test_the_report_itself_is_in_no_language_and_the_page_s_default_is_english(tmp_path):
    report = eventful_report()
    before = json.dumps(report)
    render_html(report, language="de")
    assert json.dumps(report) == before
    assert render_html(report) == render_html(report, language="en")


def test_a_language_without_a_file_is_refused_by_name():
    with pytest.raises(ReportInvalid, match=r"'\.\./en'; there are de, en"):
        render_html(eventful_report(), language="../en")


def test_one_thing_and_several_take_their_own_form():
    assert str(ENGLISH.count("facts.sites", 1)) == "1 site"
    assert str(ENGLISH.count("facts.sites", 1200)) == "1,200 sites"
    assert str(load("de").count("facts.sites", 1200)) == "1.200 Beteiligte"


def test_a_long_list_of_names_ends_in_a_count():
    names = [f"site-{number}" for number in range(8)]
    assert ENGLISH.names(names) == "site-0, site-1, site-2, site-3, site-4 and 3 more"
    assert ENGLISH.names(names[:5]) == "site-0, site-1, site-2, site-3, site-4"


def test_languages_are_the_files_in_their_folder():
    folder = files(languages_module.__package__) / "languages"
    assert languages() == sorted(Path(str(file)).stem for file in folder.iterdir()) == ["de", "en"]
