"""Keys are changed, everything that people wrote around them stays."""

import tomllib

import pytest

from service.workbench.manifest_text import with_keys

TEXT = """\
# A model.
schema = 1

[batching]   # how it is batched
max_batch_size = 4             # measured in spring
# not now: preferred_batch_sizes = [4]

[metadata]
instances = "no setting"
"""


def test_key_is_replaced_in_place_and_added_at_the_end_of_its_table() -> None:
    text = with_keys(
        TEXT, {"batching": {"max_batch_size": 8, "max_queue_delay_ms": 1.5}, "execution": {"instances": 2}}
    )
    assert tomllib.loads(text) == {
        "schema": 1,
        "batching": {"max_batch_size": 8, "max_queue_delay_ms": 1.5},
        "metadata": {"instances": "no setting"},
        "execution": {"instances": 2},
    }
    assert "# A model." in text
    assert "[batching]   # how it is batched" in text
    assert text.index("max_queue_delay_ms") < text.index("[metadata]")


def test_second_time_changes_nothing_more() -> None:
    keys = {"batching": {"max_batch_size": 8}, "execution": {"instances": 2}}
    assert with_keys(with_keys(TEXT, keys), keys) == with_keys(TEXT, keys)


def test_file_written_in_another_way_is_refused_rather_than_broken() -> None:
    with pytest.raises(tomllib.TOMLDecodeError):
        with_keys("batching = { max_batch_size = 4 }\n", {"batching": {"max_batch_size": 8}})


SPREAD = """\
[input]
mean = [
    0.5,  # red
    0.5,

    0.5,
]
note = \"\"\"
[input]
mean = 3
\"\"\"

[output]
tensor = "scores"
"""


def test_value_of_several_lines_is_replaced_as_a_whole() -> None:
    text = with_keys(SPREAD, {"input": {"mean": 0.0, "size": 4}})
    assert tomllib.loads(text) == {
        "input": {"mean": 0.0, "note": "[input]\nmean = 3\n", "size": 4},
        "output": {"tensor": "scores"},
    }


def test_key_after_a_value_whose_lines_begin_with_brackets_is_found() -> None:
    spread = "[input]\nsizes = [\n[1, 2],\n[3, 4],\n]\nmean = 1\n"
    assert tomllib.loads(with_keys(spread, {"input": {"mean": 0}})) == {"input": {"sizes": [[1, 2], [3, 4]], "mean": 0}}
