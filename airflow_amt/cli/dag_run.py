"""Run one DAG through Airflow's ``dag.test`` and write what a task left in XCom to a file.

A module of its own, run as ``python -m airflow_amt.cli.dag_run``, because Airflow reads its configuration
from the environment when it is first imported.
"""

from __future__ import annotations

import argparse
import json
import runpy
import sys
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Run the DAG; return 0 if the DAG run succeeded, 1 if it failed."""
    parser = argparse.ArgumentParser(description="Run one DAG and save an XCom value.")
    parser.add_argument("--dag-file", type=Path, required=True)
    parser.add_argument("--dag-id", required=True)
    parser.add_argument("--conf", type=json.loads, default={})
    parser.add_argument("--task-id", required=True)
    parser.add_argument("--xcom-key", required=True)
    parser.add_argument("--output", type=Path, required=True)
    options = parser.parse_args(arguments)

    from airflow.sdk import DAG

    module = runpy.run_path(str(options.dag_file))
    dags = [one for one in module.values() if isinstance(one, DAG) and one.dag_id == options.dag_id]
    if len(dags) != 1:
        parser.error(f"--dag-id: {options.dag_file} has no module-level DAG {options.dag_id!r}")
    # Nobody looks after deadlines here, and dag.test() fails with them when the run succeeds (3.3.2).
    dags[0].deadline = None
    run = dags[0].test(run_conf=options.conf)
    (tuned,) = [one for one in run.get_task_instances() if one.task_id == options.task_id]
    value = tuned.xcom_pull(task_ids=options.task_id, key=options.xcom_key)
    options.output.write_text(
        json.dumps({"dag_run_state": str(run.state), "task_state": str(tuned.state), "value": value})
    )
    return 0 if str(run.state) == "success" else 1


if __name__ == "__main__":
    sys.exit(main())
