"""Every web page of confide in Chromium. A new page is a line in `PAGES`; `conftest.py` has the fixtures that serve."""

from dataclasses import dataclass

import pytest

from confide.privacy.report.language import languages

from .looking import look

pytestmark = [pytest.mark.process, pytest.mark.slow]


@dataclass(frozen=True, slots=True)
class Page:
    """A page by the name of its pictures: the fixture that gives its `Place`, and the path from there."""

    name: str
    place: str
    path: str = ""
    status: int = 200


PAGES = (
    *(Page(f"budget-report-{code}", "reports", f"{code}.html") for code in languages()),
    Page("routing", "routing"),
    Page("ladder", "ladder"),
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_can_be_read_by_everybody_everywhere(request, browser, pictures, page):
    place = request.getfixturevalue(page.place).at(page.path, status=page.status)
    seen = look(browser, place, pictures, page.name)
    figures = {"page": page.name, "first_paint_ms": seen.first_paint_ms, "seconds": seen.seconds}
    request.node.user_properties += figures.items()
    assert seen.faults == [], str(seen)


def test_no_two_pages_share_a_name():
    assert len({page.name for page in PAGES}) == len(PAGES)
