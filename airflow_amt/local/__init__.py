"""The embedded AMT: a server that speaks SageMaker's protocol and really tunes, on this machine.

It trains with local processes, keeps its state in a folder, and needs no AWS account. See
``airflow-amt local serve --help``; tests and demonstrations use :func:`running`.
"""

from __future__ import annotations

from airflow_amt.local.launcher import RunningServer, ServerDidNotStartError, running

__all__ = ["RunningServer", "ServerDidNotStartError", "running"]
