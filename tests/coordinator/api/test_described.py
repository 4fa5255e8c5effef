"""Schemathesis asks the API for all that its description allows, and for what it forbids, and finds nothing.

`CONFIDE_API_EXAMPLES=500 pytest PATH` asks for more of each address than every run does.
"""

import os

import hypothesis
import pytest
import schemathesis
from schemathesis import GenerationMode
from schemathesis.core.failures import FailureGroup
from schemathesis.specs.openapi.checks import positive_data_acceptance

from confide.client_node.web.framing import framed
from confide.coordinator.api.routes import ENDPOINTS

from ..conftest import committed_round

EXAMPLES = int(os.environ.get("CONFIDE_API_EXAMPLES", "6"))


def test_the_description_has_every_address_with_the_command_that_does_the_same(api):
    described = api.get("/openapi.json").json()
    found = {(method.upper(), path): told for path, row in described["paths"].items() for method, told in row.items()}
    assert {*found} == {(each.method, each.path) for each in ENDPOINTS} - {("GET", "/openapi.json")}
    for each in ENDPOINTS:
        if each.path != "/openapi.json":
            assert f"As `coordinator {each.command}`." in found[each.method, each.path]["description"]
    assert described["security"] == [{"token": []}]
    assert "token_hash" not in api.get("/openapi.json").text


def test_the_description_is_not_for_strangers(ask):
    assert ask(None).get("/openapi.json").status_code == 401


@pytest.mark.slow
def test_nothing_is_answered_otherwise_than_described(page, api, tokens, store, run, monkeypatch):
    monkeypatch.setattr("confide.client_node.web.entering.Attempts.wait_s", lambda self: 0.0)  # it tries wrong tokens
    lease = store.acquire_lease(run)
    for number in range(1, 4):
        store.commit_round(committed_round(number, run=run, lease=lease))
    token = {"Authorization": f"Bearer {tokens['admin']}"}
    served = framed(page.app, None, is_https=False)  # as it is served: some addresses are refused before any route
    schema = schemathesis.openapi.from_asgi("/api/v1/openapi.json", served, headers=token)
    tried, failed = 0, []
    for found in schema.get_all_operations():
        operation = found.ok()
        for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):

            @hypothesis.given(case=operation.as_strategy(generation_mode=mode))
            @hypothesis.settings(
                max_examples=EXAMPLES, derandomize=True, deadline=None, database=None,
                suppress_health_check=list(hypothesis.HealthCheck),
            )  # fmt: skip
            def asked(case):
                nonlocal tried
                tried += 1
                # No schema says which texts are a study.toml.
                left_out = [positive_data_acceptance] if case.operation.label == "POST /studies" else []
                case.call_and_validate(headers=token, excluded_checks=left_out)

            try:
                asked()
            except (Exception, FailureGroup) as err:
                failed.append(f"{operation.label}, {mode}: {err!r} {getattr(err, 'exceptions', '')}")
    assert failed == [], "\n".join(failed)
    assert tried > EXAMPLES * len(ENDPOINTS)
