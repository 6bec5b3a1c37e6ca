"""A short run of the fuzz (:mod:`tests.local.fuzz`), and that it sees what it looks for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.local.fuzz import LocalTarget, WrongError, fuzz


@pytest.mark.local
def test_no_input_of_a_short_run_breaks_anything(tmp_path: Path) -> None:
    results = fuzz(tmp_path, seed=1, most_rounds=80, limit=30.0)
    assert json.loads(json.dumps(results))["failures"] == []
    # Else nothing but the outermost check was reached.
    assert results["counts"]["wire"]["200"] >= 5
    for target in ("wire", "http", "s3 view", "s3, with-aws", "sts, iam, logs"):
        assert results["counts"][target].get("403", 0) <= 20, target
    assert len(results["counts"]) == 15


def test_an_error_that_is_no_refusal_and_a_hang_are_seen() -> None:
    target = LocalTarget("numbers", lambda rng: "1", int)
    assert target.run("1", 1.0) == "taken"
    with pytest.raises(ValueError, match="invalid literal"):
        target.run("x", 1.0)
    assert LocalTarget("numbers", lambda rng: "x", int, (ValueError,)).run("x", 1.0) == "refused"

    def hang(_: object) -> None:
        while True:
            pass

    with pytest.raises(WrongError, match="did not end"):
        LocalTarget("hang", lambda rng: "", hang).run("", 0.05)
