"""What the tests of all examples do alike: load `prepare.py` by its path, run it, read what it wrote."""

import csv
import importlib.util
from pathlib import Path

import pytest

from confide.client_node.data.records import check
from confide.client_node.policy.site_policy import SitePolicy

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture(scope="module")
def example(request):
    name = request.path.parent.name  # tests/examples/NAME is about examples/NAME
    spec = importlib.util.spec_from_file_location(f"{name}_prepare", EXAMPLES / name / "prepare.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def prepared(example, tmp_path_factory):
    directory = tmp_path_factory.mktemp(example.__name__)
    return directory, example.prepare(directory)


def rows(path):
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


def are_prepared_alike(example, prepared, directory):
    """Whether preparing once more, in `directory`, writes the same bytes."""
    example.prepare(directory)
    files = list(prepared[0].rglob("*.csv"))
    return bool(files) and all(
        path.read_bytes() == (directory / path.relative_to(prepared[0])).read_bytes() for path in files
    )


def are_split_by(is_held_out, report, unit):
    """Whether the held-out units, and they alone, stand in heldout.csv; `unit` is their column."""
    return all(
        is_held_out(row[unit]) == (part == "heldout")
        for site in report.values() for part in ("train", "heldout") for row in rows(site[part])
    )  # fmt: skip


def has_round_cut_points(draft, table):
    """Whether cut points have four digits at most, so are no quantiles, and none lies above its whole column."""
    return all(
        all(cut == float(f"{cut:.4g}") for cut in cuts) and min(cuts) <= table[name].max()
        for name, cuts in draft.data.numeric.items()
    )


def checked(path, draft, site=None):
    """What `client-node data check` says of a site's table whose columns have the study's own names."""
    data = {"path": str(path), "name": draft.name, "unit": draft.data.unit, "unit_column": f"{draft.data.unit}_id"}
    budget = {"epsilon": 3.0, "delta": 1e-5, "collusion": 1}
    policy = SitePolicy.model_validate({"data": data, "budget": budget, "backbone": {"directory": "backbone"}})
    return check(Path(path), policy, draft, site=site)
