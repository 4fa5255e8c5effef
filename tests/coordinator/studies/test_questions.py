import pytest

from confide.client_node.study.terms import load_draft
from confide.coordinator.studies.questions import Facts, questions

from ...client_node.conftest import write_draft

__all__ = ["write_draft"]  # a fixture

NONE = (('mode = "distributed"\nnoise_multiplier = 1.19', 'mode = "none"'), ("delta = 1e-5\n", ""))
SURELY_WRONG = {
    "batch_units of another federation": (
        [("batch_units = 1374", "batch_units = 30")], 15_050, None,
        "150 units in all, and the sites told of 15,050. The sum is divided by batch_units, so every step would be 100 "
        "times as long as meant; 3,010 fits",
    ),
    "batch_units of all units": ([("1374", "6870")], 6870, None, "5 times too short; 1,374 fits"),
    "batch_units of nobody": ([("1374", "30")], None, None, "150 units in all, 38 at each of 4 sites. Ask the sites"),
    "delta above one in the units": ([("1e-5", "1e-3")], None, None, "is 0.001, above 1 in 1,718 units of a site"),
    "a target that protects nobody": (
        [("noise_multiplier = 1.19", "target_epsilon = 300")], None, 299.9, "privacy.target_epsilon is 300"),
    "noise that protects nobody": ([("1.19", "0.1")], None, 321.0, "planned to cost epsilon 321"),
    "no privacy": ([*NONE], None, None, "no noise at all"),
}  # fmt: skip


@pytest.mark.parametrize("case", SURELY_WRONG)
def test_a_setting_that_is_surely_wrong_is_questioned(case, write_draft):
    changes, units, epsilon, expected = SURELY_WRONG[case]
    (asked,) = questions(Facts(draft=load_draft(write_draft(*changes)), units=units, epsilon=epsilon))
    assert expected in asked


@pytest.mark.parametrize(("units", "epsilon"), [(None, 6.8), (6870, 6.8), (5000, 10.0), (12_000, 0.1)])
def test_usual_settings_are_not_questioned(units, epsilon, write_draft):
    assert questions(Facts(draft=load_draft(write_draft()), units=units, epsilon=epsilon)) == ()
