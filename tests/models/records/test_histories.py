import numpy as np
import pytest

from confide.models.errors import BackboneMismatch
from confide.models.records.fields import FlagField, NumericField, RecordSchema
from confide.models.records.histories import Histories, HistoryTerms

# Words and tokens: BMI 2 to 4, age 5 to 7, asthma 8, sick 9.
WHOLE = RecordSchema(
    (NumericField("BMI", (25,)), NumericField("age", (40,))), (FlagField("asthma"), FlagField("sick")), visits=3
)
COLUMNS = {"age": [[30.0, 50.0], [None]], "sick": [[True, False], [True]]}


def terms_of(visits: int) -> HistoryTerms:
    return HistoryTerms(order="day", visits=visits, label="ill", numeric={"age": (40,)}, flags=("sick",))


@pytest.mark.parametrize("visits", [2, 3])
def test_a_history_of_a_part_is_read_in_the_words_of_the_whole_with_an_end_behind_each_visit(visits):
    reader = Histories().reader(terms_of(visits), WHOLE, max_tokens=9)
    ids, _ = reader.examples(COLUMNS, np.array([0, 1]))
    assert ids.tolist() == [[6, 9, 1, 7, 1], [5, 9, 1, 0, 0]]
    assert reader.words == 10


@pytest.mark.parametrize(("visits", "told"), [(4, "3 visits at most, not 4"), (1, "3 visits at most, not 1")])
def test_a_history_of_more_visits_or_of_one_without_an_end_is_refused(visits, told):
    with pytest.raises(BackboneMismatch, match=rf"another schema than \[data.history\] describes: its .*{told}$"):
        Histories().reader(terms_of(visits), WHOLE, max_tokens=9)


def test_a_field_that_the_backbone_lacks_is_named():
    backbone = RecordSchema((NumericField("age", (40,)),), visits=3)
    with pytest.raises(BackboneMismatch, match=r"it has no sick$"):
        Histories().reader(terms_of(3), backbone, max_tokens=9)
