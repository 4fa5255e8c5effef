"""Example alerts: sound by Prometheus' own tool, on metrics that exist. It is missing? apt-get install promtool."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from ..test_docs_commands import problems

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "deploy" / "prometheus"
RULES = yaml.safe_load((FOLDER / "confide-alerts.yml").read_text())["groups"][0]["rules"]
PAGE = (ROOT / "docs" / "monitoring.md").read_text()
METRIC = re.compile(r"\bconfide_\w+")
COMMAND = re.compile(r"\b((?:coordinator|client-node) (?:[a-z]+ ?){1,2})")


@pytest.mark.process
@pytest.mark.parametrize("words", ["check rules confide-alerts.yml", "test rules confide-alerts-test.yml"])
def test_prometheus_takes_the_rules_and_raises_them_in_time(words):
    found = subprocess.run(["promtool", *words.split()], cwd=FOLDER, capture_output=True, text=True)
    assert found.returncode == 0, found.stdout + found.stderr


def test_every_metric_in_an_alert_is_on_the_page():
    """Whose tables are compared with real processes in tests/system/test_monitoring.py."""
    named = {metric for rule in RULES for metric in METRIC.findall(rule["expr"])}
    assert len(named) > 12
    assert named <= set(METRIC.findall(PAGE))


def test_every_alert_says_what_to_do_by_commands_that_exist():
    for rule in RULES:
        assert set(rule["annotations"]) == {"summary", "remedy"}, rule["alert"]
        assert rule["labels"]["severity"] in ("page", "ticket")
        for command in COMMAND.findall(rule["annotations"]["remedy"]):
            assert problems(command.partition(" and")[0].partition(" says")[0]) == [], command


def test_the_page_lists_the_alerts():
    assert [rule["alert"] for rule in RULES] == re.findall(r"^\| `(Confide\w+)` \|", PAGE, re.MULTILINE)
