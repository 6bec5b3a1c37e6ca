"""Reading metrics from logs."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from airflow_amt.exceptions import AmtFieldError
from airflow_amt.local import metrics
from airflow_amt.local.metrics import (
    LogFollower,
    Metric,
    SlowMetricError,
    compile_definitions,
    read_final_metrics,
    read_live_metrics,
)

LOSS = {"loss": Metric("loss", r"loss=(\S+)")}


def read(tmp_path: Path, content: bytes, definitions: dict[str, Metric] = LOSS) -> dict[str, float]:
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
    definitions = {**LOSS, "accuracy": Metric("accuracy", r"acc: ([0-9.]+)")}
    content = b"acc: 0.5\nloss=2\nacc: 0.75\n" + b"nothing\n" * 10

    assert read(tmp_path, content, definitions) == {"loss": 2.0, "accuracy": 0.75}


def test_an_optional_group_that_did_not_take_part(tmp_path: Path) -> None:
    assert read(tmp_path, b"done\nloss=5\ndone\n", {"m": Metric("m", r"done|loss=(\d)")}) == {"m": 5.0}


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


# --- regular expressions that take for ever --------------------------------------------------------

#: Python's own engine takes years for these on HARD, and holds its lock meanwhile.
SLOW = [r"loss=(a|a)+$", r"loss=(a|aa)+$", r"loss=(\w|\w\w|a)+$"]
HARD = "loss=" + "a" * 46 + "!"


@pytest.mark.parametrize("pattern", SLOW)
def test_a_metric_that_takes_too_long_is_named_and_the_others_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str
) -> None:
    monkeypatch.setattr(metrics, "LINE_SECONDS", 0.05)
    definitions = {"slow": Metric("slow", pattern), "other": Metric("other", r"other=(\d)")}

    with pytest.raises(SlowMetricError, match=r"^metric 'slow': its regular expression 'loss=") as refusal:
        read(tmp_path, f"other=1\n{HARD}\nother=2\n".encode(), definitions)
    assert refusal.value.found == {"other": 2.0}


def test_pathological_for_python_alone(tmp_path: Path) -> None:
    assert read(tmp_path, f"{HARD}\nloss=aa\n".encode(), {"m": Metric("m", r"loss=(a+)+$")}) == {}


def test_other_threads_run_meanwhile() -> None:
    metric = Metric("slow", SLOW[0])
    with ThreadPoolExecutor(1) as threads:
        searching = threads.submit(metric.values_in, HARD, 0.5)
        turns = 0
        while not searching.done():
            turns += 1
            time.sleep(0)
        assert isinstance(searching.exception(), SlowMetricError)
    assert turns > 100


def test_a_slow_metric_is_searched_once_on_the_event_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics, "LIVE_SECONDS", 0.05)
    log = tmp_path / "log"
    log.write_text(f"other=1\n{HARD}\n")
    definitions = {"slow": Metric("slow", SLOW[0]), "other": Metric("other", r"other=(\d)")}

    read_live_metrics(log, definitions, most=1000)
    assert definitions["slow"].is_slow
    assert not definitions["other"].is_slow
    # Else this raised.
    monkeypatch.setattr(definitions["slow"], "values_in", None)
    assert read_live_metrics(log, definitions, most=1000) == {"other": 1.0}


def test_many_lines_that_are_slow_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each line is quick enough; the event loop would be busy for long all the same."""
    monkeypatch.setattr(metrics, "LIVE_SECONDS", 0.05)
    log = tmp_path / "log"
    log.write_text(f"loss={'a' * 14}!\n" * 1000)
    metric = Metric("slow", SLOW[0])
    follower = LogFollower(log, metric)

    assert follower.read() == []
    assert metric.is_slow
    # What it has left is read at the end.
    log.write_text("loss=a\nloss=aa\n")
    monkeypatch.setattr(metric, "values_in", lambda line, seconds: [float(len(line))] if line else [])
    assert follower.read() == []
    assert follower.read_all() == [6.0, 7.0]


def test_a_follower_leaves_a_slow_metric_to_the_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metrics, "LINE_SECONDS", 0.05)
    monkeypatch.setattr(metrics, "LIVE_SECONDS", 0.05)
    log = tmp_path / "log"
    log.write_text(f"{HARD}\n")
    follower = LogFollower(log, Metric("slow", SLOW[0]))

    assert follower.read() == []
    with pytest.raises(SlowMetricError, match="metric 'slow'"):
        follower.read_all()


@pytest.mark.parametrize(
    "pattern",
    [
        "((a{9999}){9999}){9999}",
        "((a{1,9999}b){9999,}c){9999}",
        "(" * 100 + "a" + ")+" * 100,
        "(" * 99 + "a" + "){2}" * 99,
        "a{4294967294}",
        "(?x)" + "(" * 70 + "a" + ") {2}" * 70,
        "(?:a)(?#){99999}(?:a{99999}){99999}",
    ],
)
def test_repeats_that_would_fill_the_memory_are_refused(pattern: str) -> None:
    with pytest.raises(AmtFieldError, match=r"\.Regex.* steps|the repetition number"):
        compile_definitions([{"Name": "m", "Regex": pattern}], "Definitions")


@pytest.mark.parametrize(
    "pattern",
    [
        "((a{1,9999}){1,9999}){1,9999}",
        "(" * 120 + "a" + ")*" * 120,
        "|".join("abcdefghi" * 27),
        # Python itself needs a second for this one.
        "(?i)" + "[\x01-\U0010ffff]" * 99,
        r"(?:[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?\s+)+loss: ([-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)",
    ],
)
def test_what_is_long_but_harmless_is_compiled(pattern: str) -> None:
    assert compile_definitions([{"Name": "m", "Regex": pattern}], "Definitions")


@pytest.mark.parametrize(
    ("pattern", "line", "value"),
    [
        # To the engine {e} means: with errors.
        (r"loss{e}=(\d)", "loss{e}=1 loss=2", 1.0),
        (r"{loss}: (\d)", "{loss}: 3", 3.0),
        (r"loss{,}=(\d)", "losss=4", 4.0),
        (r"[a-z&&b]=(\d)", "&=5", 5.0),
        (r"[]a]=(\d)", "]=6", 6.0),
        (r"[[:a]=(\d)", "[=6", 6.0),
        (r"\N{LATIN SMALL LETTER A}=(\d)", "a=7", 7.0),
        (r"(?x) loss = (\d)  # {e} [", "loss=8", 8.0),
        (r"(?i)LOSS=(\d)", "loss=9", 9.0),
        # To the engine the comment ends at the first bracket.
        (r"l(?#[\))oss(?#(\))=(\d+)", "loss=10", 10.0),
    ],
)
def test_regular_expressions_are_those_of_python(pattern: str, line: str, value: float) -> None:
    assert Metric("m", pattern).values_in(line, 1.0) == [value]


@pytest.mark.parametrize("pattern", [r"\p{L}", "(?R)", r"(?<=a+)b", r"\L<x>", "(?|a|b)"])
def test_what_only_the_engine_knows_is_refused(pattern: str) -> None:
    with pytest.raises(AmtFieldError, match="cannot be compiled"):
        compile_definitions([{"Name": "m", "Regex": pattern}], "Definitions")
