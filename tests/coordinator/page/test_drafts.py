import html
import re
import shutil

import pytest

from confide.client_node.study.cost import whole_cost
from confide.client_node.study.terms import parse_draft
from confide.coordinator.page import drafts
from confide.models.rounding import rounded_up

from ...client_node.conftest import CHAT, DOCUMENT, EVALUATION, STUDY_TOML, TEXT, TURNS, changed
from ..conftest import logged
from .conftest import key_of

SECRET = "correct-horse-battery-staple"


@pytest.fixture
def signing(federation):
    """The home's own keys."""
    shutil.copytree(federation.pki.folder, federation.home / "pki")


@pytest.fixture
def base(federation):
    return federation.create(EVALUATION)


def filled(answer) -> dict[str, str]:
    """What a browser would send of a page's form, unchanged."""
    assert answer.status_code == 200, answer.text
    found = {}
    for tag in re.findall(r"<input [^>]*>", answer.text):
        about = dict(re.findall(r'([a-z]+)="([^"]*)"', tag))
        if about.get("type") != "checkbox":
            found[about["name"]] = html.unescape(about.get("value", ""))
    if area := re.search(r"<textarea[^>]*>(.*?)</textarea>", answer.text, re.DOTALL):
        found["text"] = html.unescape(area[1])
    return found


def findings(answer) -> str:
    (part,) = re.findall(r'(?s)<section id="findings".*?</section>', answer.text)
    return html.unescape(" ".join(re.sub(r"<[^>]*>", " ", part).split()))


def test_the_form_begins_with_the_terms_of_the_study_and_its_cost(page, base):
    answer = page.get(f"/studies/new?from={base.study_hash}")
    fields = filled(answer)
    assert fields["rounds.rounds"] == "40"
    assert fields["privacy.noise_multiplier"] == "1.19"
    assert fields["participants.sites"] == "other, svi, svhc, rest"
    assert f"ε {rounded_up(whole_cost(base))}" in findings(answer)


def test_every_field_explains_itself(page, base):
    text = page.get(f"/studies/new?from={base.study_hash}").text
    for each in (each for own in drafts.FIELDS.values() for each in own):
        name = each.key.replace(".", "-")
        assert f'<label for="{name}">' in text
        assert f'aria-describedby="{name}-help"' in text
        assert len(each.help) > 15, each


def test_the_cost_follows_what_is_typed_and_nothing_is_stored(page, federation, base):
    fields = filled(page.get(f"/studies/new?from={base.study_hash}"))
    told = findings(page.post("/studies/new", data=fields | {"do": "price", "rounds.rounds": "400"}))
    changed = base.draft.model_copy(update={"rounds": base.draft.rounds.model_copy(update={"rounds": 400})})
    assert f"ε {rounded_up(whole_cost(base.model_copy(update={'draft': changed})))}" in told
    assert len(federation.store.studies()) == 1


def test_a_target_is_solved_for_while_one_types(page, base):
    fields = filled(page.get(f"/studies/new?from={base.study_hash}"))
    typed = {"do": "price", "privacy.noise_multiplier": "", "privacy.target_epsilon": "3"}
    assert "ε 3.00" in findings(page.post("/studies/new", data=fields | typed))


def test_what_is_wrong_with_a_field_is_said_by_its_setting(page, base):
    fields = filled(page.get(f"/studies/new?from={base.study_hash}"))
    wrong = {"privacy.delta": "ten", "rounds.rounds": "-3", "privacy.clip_norm": "", "name": "No Name"}
    told = findings(page.post("/studies/new", data=fields | wrong | {"do": "check"}))
    for key in ("privacy.delta is", "rounds.rounds is -3", "privacy.clip_norm is missing", "name is"):
        assert key in told


@pytest.mark.usefixtures("signing")
def test_a_copy_that_changes_its_name_and_target_is_created_as_study_create_does(as_role, federation, base):
    oscar = as_role("operator")
    fields = filled(oscar.get(f"/studies/new?from={base.study_hash}"))
    typed = {"name": "thyroid-2", "privacy.noise_multiplier": "", "privacy.target_epsilon": "2.5"}
    typed |= {"optimizer.lr": "", "optimizer.head_lr": ""}
    checked = oscar.post("/studies/new", data=fields | typed | {"do": "check"})
    assert "Nothing speaks against it" in findings(checked)
    answer = oscar.post("/studies/new", data=fields | typed | {"do": "create"})
    made = federation.create(
        EVALUATION, ('name = "thyroid"', 'name = "thyroid-2"'), ("noise_multiplier = 1.19", "target_epsilon = 2.5"),
        ("lr = 0.3\nhead_lr = 10.0\n", ""),
    )  # fmt: skip
    assert (answer.status_code, answer.headers["location"]) == (303, f"/studies/{made.study_hash}")
    action, fields = next(each for each in logged(federation.store) if each[1].get("hash") == made.study_hash)
    assert (action, fields["study"]) == ("study.create", "thyroid-2")


@pytest.mark.usefixtures("signing")
def test_the_text_of_a_study_makes_the_same_study(page, federation, base):
    fields = filled(page.get(f"/studies/new?from={base.study_hash}&as=text"))
    draft = parse_draft(fields["text"], "text")
    assert draft.model_copy(update={"model": base.draft.model}) == base.draft
    answer = page.post("/studies/new", data=fields | {"do": "create"})
    assert answer.headers["location"] == f"/studies/{base.study_hash}"


def test_edit_as_text_keeps_what_was_typed(page, base):
    fields = filled(page.get(f"/studies/new?from={base.study_hash}"))
    text = filled(page.post("/studies/new", data=fields | {"do": "text", "rounds.rounds": "77"}))["text"]
    assert parse_draft(text, "text").rounds.rounds == 77


@pytest.mark.usefixtures("signing")
def test_questions_are_asked_once_and_answered_for_what_was_asked_alone(page, federation, base):
    fields = filled(page.get(f"/studies/new?from={base.study_hash}")) | {"rounds.batch_units": "30"}
    for accepted in ("", "yes", "0" * 64):
        refused = page.post("/studies/new", data=fields | {"do": "create", "accepted": accepted})
        assert "Is this meant?" in findings(refused)
        assert "Nothing was created" in refused.text
    assert len(federation.store.studies()) == 1
    (digest,) = re.findall(r'name="accepted" value="([0-9a-f]{64})"', refused.text)
    other = page.post("/studies/new", data=fields | {"do": "create", "accepted": digest, "rounds.batch_units": "31"})
    assert "Nothing was created" in other.text
    answer = page.post("/studies/new", data=fields | {"do": "create", "accepted": digest})
    assert answer.status_code == 303
    assert len(federation.store.studies()) == 2


@pytest.mark.usefixtures("signing")
def test_the_first_study_is_made_of_a_text_with_a_backbone_in_the_home(page, federation):
    federation.backbone.joinpath("config.json").stat()  # it is there
    shutil.copytree(federation.backbone, federation.home / "models" / "backbone")
    key = {"form_key": key_of(page.get("/studies/new"))}
    text = STUDY_TOML.replace("some/where/backbone", "small/backbone")
    for name in ("models/backbone", "../models/backbone", str(federation.home / "models" / "backbone")):
        elsewhere = STUDY_TOML.replace("some/where/backbone", name)
        refused = page.post("/studies/new", data=key | {"do": "create", "text": elsewhere})
        assert refused.status_code == 200, name  # in the home, and not in the folder for it
    (federation.home / "backbones").mkdir()
    (federation.home / "backbones" / "small").symlink_to(federation.home / "models")
    answer = page.post("/studies/new", data=key | {"do": "create", "text": text.replace("\n", "\r\n")})
    assert answer.status_code == 303, findings(answer)
    assert len(federation.store.studies()) == 1


@pytest.mark.parametrize(
    "path", ["{outside}", "{outside}/.", "../{outside.name}", "models/../../{outside.name}", "/etc", "~"]
)
def test_a_path_opens_no_folder_outside_and_no_error_holds_what_a_file_says(
    page, federation, base, path, tmp_path_factory
):
    outside = tmp_path_factory.mktemp("outside")
    (outside / "config.json").write_text(f'{{"model_type": "{SECRET}"}}')
    fields = filled(page.get(f"/studies/new?from={base.study_hash}&as=text"))
    text = fields["text"].replace(str(federation.backbone), path.format(outside=outside))
    answer = page.post("/studies/new", data=fields | {"do": "create", "text": text})
    assert SECRET not in answer.text
    told = findings(answer)
    assert "must name a folder inside backbones" in told
    assert len(federation.store.studies()) == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "name = ",
        "[[[",
        "x = " + "[" * 5000,
        "name = 1" + "0" * 6000,
        "\x00",
        "name = 'é\u2028'",
        "[privacy]\ndelta = nan",
    ],
    ids=["nothing", "half", "brackets", "deep", "digits", "NUL", "letters", "nan"],
)
def test_a_text_that_is_no_study_is_told_what_is_wrong(page, base, text):
    key = {"form_key": key_of(page.get("/studies/new"))}
    for do in ("price", "check", "create"):
        answer = page.post("/studies/new", data=key | {"do": do, "text": text})
        assert answer.status_code == 200
        assert "study.toml" in findings(answer)


@pytest.mark.parametrize("typed", ["<script>alert(1)</script>", "1e999", "nan", "inf", "0x10", "١", ".", "9" * 400])
def test_no_field_takes_what_is_no_number(page, base, typed):
    fields = filled(page.get(f"/studies/new?from={base.study_hash}"))
    answer = page.post("/studies/new", data=fields | {"do": "check", "privacy.clip_norm": typed})
    assert answer.status_code == 200
    assert "privacy.clip_norm" in findings(answer) or "not JSON" in findings(answer)
    assert "<script>alert" not in answer.text


def test_one_draft_at_a_time_is_examined(page, base, monkeypatch):
    monkeypatch.setattr(drafts, "_PATIENCE_S", 0.05)
    fields = filled(page.get(f"/studies/new?from={base.study_hash}"))
    with drafts._alone():
        answer = page.post("/studies/new", data=fields | {"do": "price"})
    assert answer.status_code == 409
    assert page.post("/studies/new", data=fields | {"do": "price"}).status_code == 200


ODD = ('"Any diagnosis from laboratory values"', '"a [\\n    b, ]\\n] {x}, "')


@pytest.mark.parametrize("changes", [(), TEXT, (*TEXT, TURNS), DOCUMENT, CHAT, (EVALUATION, ODD)])
def test_a_draft_of_any_kind_is_written_as_the_text_of_itself(changes):
    draft = parse_draft(changed(STUDY_TOML, changes), "first")
    table = draft.model_dump(mode="json", by_alias=True, exclude_none=True, exclude_defaults=True)
    assert parse_draft(drafts._toml(table), "written") == draft


FAR = {
    "many rounds": ("rounds = 40", "rounds = 100000"),
    "hardly noise": ("noise_multiplier = 1.19", "noise_multiplier = 1e-300"),
    "much noise": ("noise_multiplier = 1.19", "noise_multiplier = 1000.0"),
    "large clip": ("clip_norm = 1.0", "clip_norm = 1e6"),
    "rare units": ("sample_rate = 0.2", "sample_rate = 1e-12"),
    "small delta": ("delta = 1e-5", "delta = 1e-300"),
    "small target": ("noise_multiplier = 1.19", "target_epsilon = 1e-6"),
}


@pytest.mark.parametrize("change", FAR.values(), ids=FAR)
def test_terms_at_the_edge_of_what_is_allowed_are_priced_or_refused_in_words(page, base, change):
    text = changed(STUDY_TOML, (change,))
    key = {"form_key": key_of(page.get("/studies/new"))}
    answer = page.post("/studies/new", data=key | {"do": "price", "text": text})
    assert answer.status_code == 200
    assert "whole run" in findings(answer) or "study thyroid" in findings(answer) or "ring" in findings(answer)


def test_a_backbone_whose_links_lead_in_a_circle_is_told(page, federation, base):
    (federation.home / "backbones").mkdir()
    (federation.home / "backbones" / "circle").symlink_to("circle")
    fields = filled(page.get(f"/studies/new?from={base.study_hash}&as=text"))
    text = re.sub(r"(?m)^backbone = .*$", 'backbone = "circle"', fields["text"])
    assert "leads to no folder" in findings(page.post("/studies/new", data=fields | {"text": text, "do": "check"}))


@pytest.mark.parametrize("text", [".".join(["a"] * 50_000) + " = 1", "a = " + "[" * 50_000])
def test_a_text_that_is_made_to_take_long_is_told(page, text):
    fields = filled(page.get("/studies/new"))
    assert "1 problem" in findings(page.post("/studies/new", data=fields | {"text": text, "do": "check"}))
