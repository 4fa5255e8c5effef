import pytest


@pytest.mark.parametrize("path", ["/", "/runs"])
def test_an_empty_federation_is_shown(page, path):
    answer = page.get(path)
    assert answer.status_code == 200
    assert "Four hospitals" in answer.text
