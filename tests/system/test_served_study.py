"""A private study of two outcomes and a text, from signing to an answer: real processes, and OpenAI's own client."""

import json
import random
import re
import subprocess
import sys
from pathlib import Path

import openai
import pytest

from confide.coordinator.demo.processes import DemoFederation
from confide.models.backbones.moments import take_moments
from confide.privacy.report.verify import verify_file

from ..models.tiny import save_text_backbone
from .conftest import PARTIES, finish, private_study, site_toml, wait_for

pytestmark = pytest.mark.process

SITES = ("north", "south", "east")
SILENT, TELLS = "east", "[policy]\ntells_decisions = true\n"
FIELDS = """max_tokens = 8
flags = ["fever"]
[data.numeric]
age = [20.0, 40.0, 60.0]
[data.categorical]
sex = ["F", "M"]
"""
DOCUMENT = """max_tokens = 64
[data.document]
text = "Note: {note}"
[data.document.tasks.ill]
label = "ill"
[data.document.tasks.stage]
label = "stage"
classes = ["mild", "severe"]
[data.document.tasks.summary]
text = { prompt = "\\nIn short:", completion = " {summary}<|end|>", longest = 24 }
"""
CHANGES = {
    'targets = ["q_a_proj", "o_proj", "gate_proj", "experts", "gate"]': 'targets = ["o_proj"]\nreads = [0, 2]',
    'label = "ill"\n': "",
    FIELDS: DOCUMENT,
}
PUBLIC = [f"public text {number} of many, {'abcdefgh'[number % 8] * (number % 11)}" for number in range(60)]


def write_notes(folder: Path, site: str) -> str:
    """Writes a site's made-up notes, of which some tell no text or no stage, and returns its policy."""
    policy, rng = site_toml(folder, site), random.Random(site)
    for name, records in ((site, 16), (f"{site}-held-out", 8)):
        lines = ["patient_id,note,ill,stage,summary"]
        for row in range(records):
            ill, has_text = rng.randrange(2), row % 3
            note = "coughs and has a fever" if ill else "came to be seen"
            stage = rng.choice(["mild", "severe"]) if ill else ""
            lines.append(f"p{row},{note} ({row}),{ill},{stage},{('ill' if ill else 'well') if has_text else ''}")
        (folder / f"{name}.csv").write_text("\n".join(lines) + "\n")
    return policy if site == SILENT else policy + TELLS


def decisions_told(federation: DemoFederation) -> dict[str, str]:
    """What each node has told of its decision."""
    rows = json.loads(federation.operator("study", "show", "tiny", "--approvals", "--json"))
    return {row["name"]: row["says"] for row in rows}


@pytest.mark.slow
def test_what_a_study_taught_answers_the_sites_own_tools(tmp_path: Path):
    (tmp_path / "study.toml").write_text(private_study(SITES, CHANGES))
    save_text_backbone(tmp_path / "plain")
    take_moments(tmp_path / "plain", PUBLIC, tmp_path / "backbone", reads=(0, 2))
    adapter, federation = tmp_path / "adapter", DemoFederation(tmp_path / "run", SITES, PARTIES)
    try:
        policies = {site: write_notes(tmp_path, site) for site in SITES} | {"agg-a": TELLS}
        federation.found("tiny", policies, tmp_path / "study.toml")
        federation.bring_up()
        run = federation.operator("run", "start", "tiny").strip()
        finish(federation, run)
        silent = dict.fromkeys((SILENT, "agg-b", "agg-c"), "has not said")
        used = dict.fromkeys(("north", "south", "agg-a"), "used up") | silent  # approved for one run, which has begun
        wait_for(lambda: decisions_told(federation) == used, "the nodes that tell to have told")
        federation.operator("adapter", "export", run, str(adapter), "--override-audit", "a test")
        measured = json.loads(federation.operator("run", "metrics", run, "--json"))
        held_out = [word for site in SITES for word in ("--data", str(tmp_path / f"{site}-held-out.csv"))]
        evaluated = json.loads(
            federation.operator("adapter", "evaluate", run, *held_out, "--unit-column", "patient_id", "--json")
        )
        report = federation.operator("budget", "report", "--json")
    finally:
        federation.shut_down()
    (tmp_path / "report.json").write_text(report)
    assert verify_file(tmp_path / "report.json").ok
    assert [*measured["tasks"]] == ["ill", "stage", "summary"]
    assert {"accuracy_ill", "accuracy_stage", "exact_match_summary", "perplexity_summary"} <= {*evaluated}
    epsilon = json.loads((adapter / "confide.json").read_text())["sources"][0]["epsilon"]
    command = [sys.executable, "-c", "from confide.coordinator.cli.main import app; app()", "adapter", "serve"]
    words = [*map(str, (*command, tmp_path / "backbone", adapter, "--port", 0))]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            address = next(found[1] for line in process.stdout if (found := re.search(r"on (http://\S+/v1)", line)))
            with openai.OpenAI(base_url=address, api_key="none") as client:
                (served,) = [model for model in client.models.list() if model.id == "tiny"]
                assert served.spent[0]["epsilon"] == epsilon
                asked = "Note: coughs and has a fever\nIn short:"
                written = client.completions.create(model="tiny", prompt=asked, max_tokens=6, temperature=0)
                assert written.usage.completion_tokens <= 6
                told = client.post(
                    "/classify", cast_to=dict, body={"model": "tiny", "input": ["coughs"], "template": "Note: {text}"}
                )
            assert len(told["data"][0]["outputs"]) == 3  # ill, then two stages
            assert 'Task "summary" is a text' in told["meaning"]
        finally:
            process.terminate()
        assert process.wait(30) == 0
