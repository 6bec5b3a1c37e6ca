"""Reading metrics from logs."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from airflow_amt.exceptions import AmtFieldError
from airflow_amt.local import metrics
from airflow_amt.local.metrics import compile_definitions, read_final_metrics

LOSS = {"loss": re.compile(r"loss=(\S+)")}


def read(tmp_path: Path, content: bytes, definitions: dict[str, re.Pattern[str]] = LOSS) -> dict[str, float]:
    log = tmp_path / "log"
    log.write_bytes(content)
    return read_final_metrics(log, definitions)


def test_the_latest_value_is_the_final_one(tmp_path: Path) -> None:
    assert read(tmp_path, b"loss=3\nloss=1\nloss=2\n") == {"loss": 2.0}


def test_the_latest_within_a_line(tmp_path: Path) -> None:
    assert read(tmp_path, b"loss=3 loss=1e-2") == {"loss": 0.01}


def test_a_progress_bar_that_overwrites_its_line(tmp_path: Path) -> None:
    bar = b"\r".join(b"step %d loss=%d" % (step, 5000 - step) for step in range(5000))
    assert read(tmp_path, bar + b"\n") == {"loss": 1.0}


@pytest.mark.parametrize("value", [b"nan", b"inf", b"-inf", b"NaN"])
def test_a_latest_value_that_is_no_number_is_no_value(tmp_path: Path, value: bytes) -> None:
    assert read(tmp_path, b"loss=1\nloss=" + value + b"\n") == {}


def test_what_cannot_be_read_as_a_number_is_passed_over(tmp_path: Path) -> None:
    assert read(tmp_path, b"loss=1\nloss=low\n") == {"loss": 1.0}


def test_several_metrics_each_have_their_own_latest(tmp_path: Path) -> None:
    definitions = {**LOSS, "accuracy": re.compile(r"acc: ([0-9.]+)")}
    content = b"acc: 0.5\nloss=2\nacc: 0.75\n" + b"nothing\n" * 10

    assert read(tmp_path, content, definitions) == {"loss": 2.0, "accuracy": 0.75}


def test_an_optional_group_that_did_not_take_part(tmp_path: Path) -> None:
    assert read(tmp_path, b"done\nloss=5\ndone\n", {"m": re.compile(r"done|loss=(\d)")}) == {"m": 5.0}


@pytest.mark.parametrize("offset", range(-12, 3))
def test_a_value_at_the_edge_of_a_block(tmp_path: Path, offset: int) -> None:
    """Logs are read from the end in blocks: a line that two blocks share is found all the same."""
    after = metrics._BLOCK + offset
    content = b"x" * 100 + b"\nloss=1.25\n" + b"y\n" * (after // 2) + b"z" * (after % 2)

    assert read(tmp_path, content) == {"loss": 1.25}


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    assert read(tmp_path, b"\xff\xfe\x00loss=4\xff\n\x80") == {}
    assert read(tmp_path, b"\xff\xfe\nloss=4 \xff\n\x80") == {"loss": 4.0}


def test_one_endless_line(tmp_path: Path) -> None:
    assert read(tmp_path, b"loss=1 " + b"x" * (3 * metrics._BLOCK) + b" loss=2") == {"loss": 2.0}


def test_only_the_end_of_a_huge_log_is_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "SEARCHED_BYTES", 2 * metrics._BLOCK)
    log = tmp_path / "log"
    with log.open("wb") as handle:
        handle.write(b"loss=1\n")
        handle.write(b"nothing\n" * (metrics._BLOCK // 2))
    began = time.monotonic()

    assert read_final_metrics(log, LOSS) == {}
    assert time.monotonic() - began < 5
    with log.open("ab") as handle:
        handle.write(b"loss=2\n")
    assert read_final_metrics(log, LOSS) == {"loss": 2.0}


def test_no_log_and_no_definitions(tmp_path: Path) -> None:
    assert read_final_metrics(tmp_path / "missing", LOSS) == {}
    assert read(tmp_path, b"loss=1\n", {}) == {}


def test_definitions_that_are_no_regular_expressions() -> None:
    with pytest.raises(AmtFieldError) as refusal:
        compile_definitions([{"Name": "a", "Regex": "(x)"}, {"Name": "b", "Regex": "("}], "Definitions")
    assert refusal.value.field == "Definitions[1].Regex"
