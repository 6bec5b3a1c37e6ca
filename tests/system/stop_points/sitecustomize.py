"""Holds up Airflow's task processes at named points, so that they can be killed exactly there.

For the crash matrix only (`tests/system/crash_matrix.py`): Python imports this module at its start where its
folder is on `PYTHONPATH`. It wraps functions of Airflow and botocore, not of `airflow_amt`, whose code runs
as it is; the one exception is made on request, to show that the matrix notices when adoption is missing.

`AMT_STOP_POINTS` names a folder that has, for each DAG run to be held up, a folder of its name with a file
`plan`: the name of the point. Who reaches the point for the first time writes `reached` (JSON: process ids)
and waits until there is a file `release`. With a file `without-adoption`, tuning jobs of earlier tries are
not adopted.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sys
import time
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType
from typing import Any

FOLDER = "AMT_STOP_POINTS"
_CREATE = "CreateHyperParameterTuningJob"
#: Nobody waits longer for a campaign that was killed itself.
_LONGEST_SECONDS = 600.0


def _folder() -> Path | None:
    """Return the folder of the DAG run that this task process belongs to."""
    root, run_id = os.environ.get(FOLDER), os.environ.get("AIRFLOW_CTX_DAG_RUN_ID")
    return Path(root) / run_id if root and run_id else None


def stop_at(point: str) -> None:
    """Wait here, if the DAG run of this task process is to be held up at this point."""
    folder = _folder()
    if folder is None:
        return
    try:
        if (folder / "plan").read_text() != point:
            return
        said = {"pid": os.getpid(), "parent": os.getppid(), "try": os.environ.get("AIRFLOW_CTX_TRY_NUMBER")}
        unfinished = folder / f"reached-{os.getpid()}"
        unfinished.write_text(json.dumps(said))
        # Fails if an earlier try was here: only the first is held up.
        os.link(unfinished, folder / "reached")
    except (FileNotFoundError, FileExistsError):
        return
    deadline = time.monotonic() + _LONGEST_SECONDS
    while folder.exists() and not (folder / "release").exists() and time.monotonic() < deadline:
        time.sleep(0.05)


def _wrap(owner: Any, name: str, around: Callable[..., Any]) -> None:
    original = getattr(owner, name)

    @functools.wraps(original)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return around(original, *args, **kwargs)

    setattr(owner, name, wrapper)


def _patch_http(module: ModuleType) -> None:
    def send(original: Callable[..., Any], session: Any, request: Any) -> Any:
        target = request.headers.get("X-Amz-Target", b"")
        text = target.decode() if isinstance(target, bytes) else target
        if not text.endswith(f".{_CREATE}"):
            return original(session, request)
        stop_at("before_create")
        answer = original(session, request)
        # AWS has done it; nothing of this process has seen the answer.
        stop_at("unanswered")
        return answer

    _wrap(module.URLLib3Session, "send", send)


def _patch_client(module: ModuleType) -> None:
    def call(original: Callable[..., Any], client: Any, operation: str, params: Any) -> Any:
        answer = original(client, operation, params)
        if operation == _CREATE:
            stop_at("answered")
        return answer

    _wrap(module.BaseClient, "_make_api_call", call)


def _patch_operator(module: ModuleType) -> None:
    def resume(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        stop_at("resumed")
        return original(*args, **kwargs)

    _wrap(module.BaseOperator, "resume_execution", resume)


def _patch_comms(module: ModuleType) -> None:
    def send(original: Callable[..., Any], comms: Any, msg: Any) -> Any:
        kind = type(msg).__name__
        if kind == "SetXCom" and msg.key == "return_value":
            stop_at("returning_result")
        if kind == "SucceedTask":
            stop_at("returning")
        answer = original(comms, msg)
        if kind == "SucceedTask":
            stop_at("accepted")
        return answer

    _wrap(module.CommsDecoder, "send", send)


def _take_out_adoption(module: ModuleType) -> None:
    def decide(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        folder = _folder()
        if folder is None or not (folder / "without-adoption").exists():
            return original(*args, **kwargs)
        action = module.Existing.NEXT
        return module.ExistingDecision(action=action, reason="adoption is taken out for a test")

    _wrap(module, "decide_existing", decide)


_PATCHES: dict[str, Callable[[ModuleType], None]] = {
    "botocore.httpsession": _patch_http,
    "botocore.client": _patch_client,
    "airflow.sdk.bases.operator": _patch_operator,
    "airflow.sdk.execution_time.comms": _patch_comms,
    "airflow_amt._claim": _take_out_adoption,
}


class _Finder(MetaPathFinder):
    """Finds the modules as ever, and patches them once they have run."""

    def find_spec(self, fullname: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if fullname not in _PATCHES:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and spec.loader is not None:
            spec.loader = _patching(spec.loader, _PATCHES[fullname])
        return spec


def _patching(loader: Loader, patch: Callable[[ModuleType], None]) -> Loader:
    run = loader.exec_module

    def exec_module(module: ModuleType) -> None:
        run(module)
        patch(module)

    loader.exec_module = exec_module  # type: ignore[method-assign]
    return loader


if os.environ.get(FOLDER):
    sys.meta_path.insert(0, _Finder())
    # Task processes are forked from the scheduler's workers: what is imported there is imported once.
    if "scheduler" in sys.argv[1:2]:
        with contextlib.suppress(ImportError):
            import botocore.session  # noqa: F401
