"""The page for whoever reads it: on a telephone, at night, on paper, with a screen reader."""

import re

import pytest

from confide.privacy.report import figures, schema
from confide.privacy.report.build import render_html
from confide.privacy.report.figures import Sheet
from confide.privacy.report.language import languages, load

from ...pages import assert_can_be_read, assert_is_told_to_everybody, colours, contrast, parsed
from ..ledgers import audit_facts, eventful_report

REM, TELEPHONE, LEAST = 16, 390, 11.0  # CSS pixels
LETTER = 0.61  # width of a letter of a wide font such as DejaVu Sans, over its size


@pytest.fixture(scope="module")
def report():
    return eventful_report()


@pytest.fixture(scope="module")
def page(report):
    return render_html(report)


@pytest.fixture(scope="module")
def style(page):
    return re.search(r"<style>(.*?)</style>", page, re.DOTALL).group(1)


@pytest.mark.parametrize("code", languages())
def test_the_page_is_told_to_who_does_not_see_it(report, code):
    assert_is_told_to_everybody(render_html(report, language=code), code)


def test_every_colour_of_text_stands_out_from_every_background_in_both_modes(page):
    assert_can_be_read(page)


def test_contrast_is_that_of_the_standard():
    assert contrast("#fff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#fff") == pytest.approx(4.48, abs=0.005)  # WCAG's known near miss


def test_both_modes_name_the_same_colours_and_print_is_always_light(style):
    found = colours(style)
    assert found["light"].keys() == found["dark"].keys()
    assert all("screen" in line for line in style.splitlines() if "prefers-color-scheme" in line)
    assert contrast(found["light"]["paper"], "#fff") == 1
    assert contrast(found["dark"]["paper"], "#000") < 2


def test_what_is_for_a_narrow_screen_does_not_meet_paper(style):
    assert all("screen" in line for line in style.splitlines() if "max-width:" in line and line.startswith("@media"))


def test_each_figure_of_the_first_table_says_on_a_telephone_what_it_is(page):
    table = parsed(page).all("table")[0]
    cells = [row.all("td") for row in table.all("tbody")[0].all("tr")]
    assert len(cells) == 8
    wanted = {"Guaranteed ε", "Cap ε", "Left ε", "Spent ε", "Filter filled"}
    assert all(wanted <= {cell.attributes.get("data-label") for cell in row} for row in cells)
    assert not table.is_in("scroll")
    assert table.attributes["role"] == "table"  # which a browser forgets of what is laid out as cards


def narrow_charts(report, code: str) -> list[str]:
    sheet, parsed_report = Sheet(load(code), is_narrow=True), schema.parse(report)
    account = parsed_report.sites[0].accounts[1]
    audits = [audit_facts(), audit_facts(lower_bound=1.6), audit_facts(lower_bound=3.0, run="r" * 64)]
    return [
        figures.course(account, sheet),
        figures.over_time(account, report["issued"], sheet),
        figures.audits(audits, sheet),
        figures.roc(parsed_report.membership, (1.0, 1e-5), sheet),
    ]


def sizes(style: str) -> tuple[float, float]:
    """The size of labels in a narrow chart, in its own units, and the width that a telephone leaves it."""
    letters = float(re.search(r"\.narrow svg text \{ font-size: ([\d.]+)px", style).group(1))
    small = re.search(r"screen and \(max-width: 46rem\) \{\s*body \{[^}]*padding: [\d.]+rem ([\d.]+)rem", style).group(
        1
    )
    panel, pulled = re.search(r"\.panel \{ padding: \S+ ([\d.]+)rem; margin: 0 -([\d.]+)rem", style).groups()
    return letters, TELEPHONE - 2 * REM * (float(small) + float(panel) - float(pulled))


@pytest.mark.parametrize("code", languages())
def test_no_label_of_a_chart_is_too_small_or_cut_off_on_a_telephone(report, style, code):
    letters, room = sizes(style)
    for chart in narrow_charts(report, code):
        width, height = map(float, re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', chart).groups())
        assert letters * min(1.0, room / width) >= LEAST
        labels = re.findall(r'<text class="\S+" x="([-\d.]+)" y="([-\d.]+)" text-anchor="(\w+)">([^<]+)<', chart)
        assert labels
        for x, y, anchor, text in labels:
            length = LETTER * letters * len(text)
            start = float(x) - {"start": 0, "middle": length / 2, "end": length}[anchor]
            assert start >= -letters / 2, text
            assert start + length <= width + letters / 2, text
            assert 0 < float(y) <= height, text


def test_a_chart_is_drawn_for_both_widths_and_shown_once(page, style):
    root = parsed(page)
    wide, narrow = ([each for each in root.all("svg") if each.is_in(kind)] for kind in ("wide", "narrow"))
    assert len(wide) == len(narrow) == len(root.all("svg")) / 2
    assert [each.attributes["aria-label"] for each in wide] == [each.attributes["aria-label"] for each in narrow]
    assert ".narrow { display: none; }" in style
    assert ".wide { display: none; } .narrow { display: block; }" in style
