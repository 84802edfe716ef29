"""Requests made from our own OpenAPI document, right and wrong: every answer is one that the document names.

The same requests each time: what is random is drawn from the operation's own name.
"""

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.abuse.standing import Baseline
from tests.support.server_process import ServerProcess

CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
SEEDED = settings(
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.explicit, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
UNLOADS = "/v2/repository/models/{model}/unload"  # would take away what others ask for


@pytest.fixture(scope="session")
def api(server: ServerProcess) -> schemathesis.BaseSchema:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json").exclude(path=UNLOADS)


@pytest.mark.parametrize("examples", [3, pytest.param(60, marks=pytest.mark.thorough)])
@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.timeout(600)
def test_every_answer_is_one_that_the_document_names(
    api: schemathesis.BaseSchema, baseline: Baseline, mode: GenerationMode, examples: int
) -> None:
    """With data that the document allows, and with data that it does not."""
    operations = [result.ok() for result in api.get_all_operations()]
    assert len(operations) > 25
    for operation in operations:
        _ask(operation, mode, examples)
    baseline.assert_golden()
    baseline.assert_nothing_left()


def _ask(operation: schemathesis.APIOperation, mode: GenerationMode, examples: int) -> None:
    @settings(SEEDED, max_examples=examples)
    @given(case=operation.as_strategy(generation_mode=mode))
    def ask(case: schemathesis.Case) -> None:
        case.call_and_validate(checks=CHECKS, timeout=10.0)

    try:
        ask()
    except Unsatisfiable:
        pass  # nothing about this operation can be wrong
