import pytest

from confide.coordinator.errors import StateDamaged
from confide.coordinator.simulation.trials import TrialRun, Trials

RUN = TrialRun(
    format=1, held_out="a" * 64, inputs="b" * 64, settings={"privacy.clip_norm": 0.5, "optimizer.kind": "adam"}, seed=1,
    epsilon=3.0, epsilon_planned=3.2, noise_multiplier=2.0, metric="auc", value=0.9, low=0.8, high=0.95,
    worst_tenth=0.7, sites=200, records=100, seconds=0.1,
)  # fmt: skip


def changed(**values):
    return RUN.model_copy(update=values)


def test_what_was_added_is_found_again(tmp_path):
    runs = [RUN, changed(seed=2, epsilon=None, worst_tenth=None)]
    for run in runs:
        Trials(tmp_path / "new").add(run)
    again = Trials(tmp_path / "new")
    assert [again.find("b" * 64, seed) for seed in (1, 2, 3)] == [*runs, None]
    assert again.find("c" * 64, 1) is None


def test_a_line_that_a_crash_cut_short_is_dropped(tmp_path):
    Trials(tmp_path).add(RUN)
    path = tmp_path / "tried.jsonl"
    path.write_bytes(path.read_bytes() + path.read_bytes()[:40])
    Trials(tmp_path).add(changed(seed=2))
    assert Trials(tmp_path).count("a" * 64).runs == 2


@pytest.mark.parametrize("line", ["", "{}", RUN.model_dump_json().replace('"format":1', '"format":2')])
def test_a_line_that_is_no_run_is_refused_by_its_number(tmp_path, line):
    Trials(tmp_path).add(RUN)
    with (tmp_path / "tried.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(StateDamaged, match="line 2, is no run of a trial"):
        Trials(tmp_path)


def test_looks_at_some_held_out_records_are_counted_over_all_invocations(tmp_path):
    for run in (RUN, changed(seed=2), changed(inputs="c" * 64), changed(held_out="d" * 64)):
        Trials(tmp_path).add(run)
    assert str(Trials(tmp_path).count("a" * 64)) == "3 runs of 2 settings, 2 seeds"
