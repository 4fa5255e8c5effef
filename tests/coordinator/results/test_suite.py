"""What a suite measures, of files as the harness leaves them; tests/system/test_free_text.py runs it whole."""

import json

import pytest

from confide.coordinator.errors import Conflict
from confide.coordinator.results.suite import _by_mathematics, _measure, _results, tasks_of

from .test_export import RUN, with_run


def test_tasks_are_found_by_their_names_and_no_function_of_them_is_run(tmp_path):
    (tmp_path / "b.yaml").write_text("task: sums\nprocess_results: !function x.y\n")
    (tmp_path / "a.yml").write_text("task: choice\n")
    (tmp_path / "group.yaml").write_text("group: all\ntask: [sums, choice]\n")
    (tmp_path / "notes.txt").write_text("task: other\n")
    assert tasks_of(tmp_path) == ["choice", "sums"]


@pytest.mark.parametrize("text", ["group: x\n", "task: [\n", "task: !!python/object/apply:os.system ['false']\n", "\0"])
def test_a_folder_without_a_task_is_refused(tmp_path, text):
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(Conflict, match="nothing was measured"):
        tasks_of(tmp_path)


def test_a_table_s_study_is_measured_by_no_suite(federation, tmp_path):
    from confide.coordinator.results.held_out import evaluate_suite
    from confide.models.errors import BackboneMismatch

    with_run(federation, audited=False)
    (tmp_path / "a.yaml").write_text("task: a\n")
    with pytest.raises(BackboneMismatch, match="reads records"):
        evaluate_suite(federation.store, federation.home, RUN, tmp_path)


def sample(answer, target, name="none", asked=None):
    arguments = {"gen_args_0": {"arg_0": "?", "arg_1": {"until": []} if asked is None else asked}}
    told = {"filtered_resps": [answer], "target": target, "filter": name, "arguments": arguments}
    return json.dumps(told, ensure_ascii=False) + "\n"


def test_answers_are_compared_as_mathematics_whatever_they_are(tmp_path):
    hostile = ["a\u2028b\x85", "(" * 5000, "\0", "x" * 10**6, "1" * 400, "__import__('os').system('true')"]
    hostile.append("9^{9^{9^{9}}}")
    lines = [sample("x/2", r"\frac{x}{2}", "answer"), sample(" 3 ", "6/2", "answer"), sample("x", "2x", "answer")]
    lines += [sample(answer, "x", "answer") for answer in hostile]
    lines += [sample("-3.5", "", "scored", asked=" a continuation")]
    lines += [sample("4", "not a formula!", "other"), sample([1.0, True], "x", "other"), sample("4", 4, "other")]
    (tmp_path / "m").mkdir()
    (tmp_path / "m" / "samples_my_sums_2026-11-29T17-38-31.272322.jsonl").write_text("".join(lines))
    (found,) = _by_mathematics(tmp_path).items()
    assert found[0] == "my_sums"
    assert len(found[1]) == 2
    assert found[1]["equal as mathematics (answer)"]["value"] == pytest.approx(2 / 10)
    assert found[1]["equal as mathematics (other)"]["value"] == 0


def test_metrics_keep_their_names_and_errors(tmp_path):
    plain = {
        "results": {
            "sums": {"alias": "sums", "name": "sums", "exact_match,answer": 0.5, "exact_match_stderr,answer": 0.1},
            "choice": {"alias": "choice", "acc,none": 1.0, "acc_stderr,none": "N/A"},
        },
        "n-samples": {"sums": {"effective": 4}, "choice": {"effective": 2}},
    }
    (tmp_path / "results_1.json").write_text(json.dumps(plain))
    assert _results(tmp_path) == {
        "sums": {"records": 4, "exact_match (answer)": {"value": 0.5, "standard_error": 0.1}},
        "choice": {"records": 2, "acc": {"value": 1.0, "standard_error": None}},
    }


@pytest.mark.process
@pytest.mark.slow
def test_a_harness_that_fails_says_why(tmp_path):
    (tmp_path / "suite").mkdir()
    (tmp_path / "token").write_text("secret\n")
    told = {"model": "x", "base_url": "http://127.0.0.1:1/v1/completions", "tokenizer_backend": "None"}
    with pytest.raises(Conflict, match=r"(?s)nothing was measured. It said last:.*no-such-task") as caught:
        _measure(tmp_path / "suite", tmp_path, ["no-such-task"], told, None, lambda done, of: None)
    assert "secret" not in str(caught.value)
