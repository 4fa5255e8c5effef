import pytest

from confide.privacy.mechanism import clipping


@pytest.fixture
def bare_clip(monkeypatch):
    """Clipping without its margin of 2**-24 and its grid: what is left is to be the definition, as exact as float64."""
    monkeypatch.setattr(clipping, "_MARGIN", 1 + 2.0**-50)
    monkeypatch.setattr(clipping, "grid_of", lambda clip_norm: None)
