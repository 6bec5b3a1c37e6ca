"""What Airflow and Python see of the package: provider info, public names, links."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import importlib.resources
import json
import subprocess
import sys
from pathlib import Path

import jsonschema
import pytest

import airflow_amt
from airflow_amt.get_provider_info import get_provider_info

PACKAGE = Path(airflow_amt.__file__).parent


@pytest.mark.parametrize("schema", ["provider_info.schema.json", "provider.yaml.schema.json"])
def test_the_provider_info_follows_airflows_schema(schema: str) -> None:
    text = importlib.resources.files("airflow").joinpath(schema)
    if schema != "provider_info.schema.json" and not text.is_file():
        pytest.skip("this Airflow ships only the runtime schema")
    document = json.loads(text.read_text())
    if schema == "provider_info.schema.json":
        jsonschema.validate(get_provider_info(), document)
    known = set(document["properties"])
    assert set(get_provider_info()) - {"package-name", "versions"} <= known


def test_the_package_name_is_the_distributions() -> None:
    assert get_provider_info()["package-name"] == "airflow-provider-amt"
    assert get_provider_info()["versions"][0] == airflow_amt.__version__


def test_every_module_is_listed_once_and_can_be_imported() -> None:
    info = get_provider_info()
    listed = [
        module
        for kind in ("operators", "sensors", "hooks", "triggers")
        for entry in info[kind]
        for module in entry["python-modules"]
    ]
    present = {
        f"airflow_amt.{path.parent.name}.{path.stem}"
        for kind in ("operators", "sensors", "hooks", "triggers")
        for path in (PACKAGE / kind).glob("*.py")
        if path.stem not in ("__init__", "errors", "guard", "metering", "patience")
    }
    assert sorted(listed) == sorted(present)
    for module in listed:
        importlib.import_module(module)


def test_integrations_of_all_entries_exist() -> None:
    info = get_provider_info()
    names = {one["integration-name"] for one in info["integrations"]}
    used = {
        entry["integration-name"]
        for kind in ("operators", "sensors", "hooks", "triggers")
        for entry in info[kind]
    }
    assert used == names


def test_extra_links_can_be_imported_and_belong_to_the_operators() -> None:
    from airflow_amt import (
        AmtAskOperator,
        AmtBestTrainingJobOperator,
        AmtExportTrainingJobsOperator,
        AmtOutcomeBranchOperator,
        AmtStopTuningJobOperator,
        AmtTuningJobOperator,
        AmtTuningJobSensor,
        AmtTuningProgressSensor,
    )

    links = []
    for path in get_provider_info()["extra-links"]:
        module, _, name = path.rpartition(".")
        links.append(getattr(importlib.import_module(module), name))
    for operator in (
        AmtTuningJobOperator,
        AmtStopTuningJobOperator,
        AmtTuningJobSensor,
        AmtTuningProgressSensor,
        AmtOutcomeBranchOperator,
        AmtBestTrainingJobOperator,
        AmtExportTrainingJobsOperator,
        AmtAskOperator,
    ):
        assert [type(link) for link in operator.operator_extra_links] == links


def test_every_notifier_is_listed_and_can_be_imported() -> None:
    from airflow_amt.notifications.base import AmtNotifier

    found = set()
    for path in get_provider_info()["notifications"]:
        module, _, name = path.rpartition(".")
        assert issubclass(getattr(importlib.import_module(module), name), AmtNotifier)
        found.add(path)
    present = {
        f"airflow_amt.notifications.{path.stem}.{node.name}"
        for path in (PACKAGE / "notifications").glob("*.py")
        if path.stem not in ("__init__", "base")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.ClassDef)
    }
    assert found == present


def test_public_names_are_complete_and_lazy() -> None:
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    imported = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("airflow_amt")
        for alias in node.names
    }
    assert imported | {"__version__"} == set(airflow_amt.__all__)
    for name in airflow_amt.__all__:
        assert getattr(airflow_amt, name) is not None
    assert set(airflow_amt.__all__) <= set(dir(airflow_amt))
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        airflow_amt.nonsense  # noqa: B018 - the access is what is tested


def test_every_error_is_public() -> None:
    from airflow_amt import exceptions, task_exceptions

    assert {*exceptions.__all__, *task_exceptions.__all__} <= set(airflow_amt.__all__)


_IMPORT_OPERATORS = (
    "import sys; import airflow_amt.operators.stop, airflow_amt.operators.tuning; "
    "import airflow_amt.operators.branch, airflow_amt.operators.best, airflow_amt.operators.export; "
    "import airflow_amt.operators.reap, airflow_amt.operators.ask; "
    "import airflow_amt.sensors.tuning, airflow_amt.triggers.tuning, airflow_amt.triggers.ended; "
    "import airflow_amt.sensors.progress, airflow_amt.triggers.progress; "
    "print([name for name in sys.modules "
    "if name.split('.')[0] in ('boto3', 'botocore') or name.startswith('airflow.providers.amazon.aws')])"
)


def test_parsing_a_dag_imports_no_boto() -> None:
    done = subprocess.run(
        [sys.executable, "-c", _IMPORT_OPERATORS], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_airflow_lists_the_provider() -> None:
    """Needs the package to be installed, as in CI; a bare source tree has no entry point."""
    try:
        importlib.metadata.distribution("airflow-provider-amt")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("airflow-provider-amt is not installed")
    from airflow.providers_manager import ProvidersManager

    manager = ProvidersManager()  # type: ignore[no-untyped-call]
    assert manager.providers["airflow-provider-amt"].version == airflow_amt.__version__
    assert "airflow_amt.links.tuning.AmtTuningJobLink" in manager.extra_links_class_names
    assert set(get_provider_info()["notifications"]) <= set(manager.notification)


@pytest.mark.parametrize(
    "name",
    [
        name
        for name in airflow_amt.__all__
        if name.startswith("Amt") and name.endswith(("Operator", "Sensor"))
    ],
)
def test_a_mapped_task_has_the_defaults_of_any_other(name: str) -> None:
    """Airflow 3.3 gives it None for inlets if a base of its class has no ``__init__``, and fails on that."""
    from airflow.sdk import DAG

    arguments: dict[str, dict[str, object]] = {
        "AmtOutcomeBranchOperator": {"outcome": {}, "branches": {"failed": "a"}},
        "AmtExportTrainingJobsOperator": {"tuning_job_name": "a", "destination": "b"},
        "AmtReapTuningJobsOperator": {"dag_ids": ["a"]},
        "AmtEnforcePolicyOperator": {"name_prefix": "a", "policies": "variable:b"},
        "AmtTuningJobOperator": {"config": {}},
    }
    (key, value), *fixed = arguments.get(name, {"tuning_job_name": "a"}).items()
    with DAG("mapped", schedule=None):
        mapped = getattr(airflow_amt, name).partial(task_id="a_task", **dict(fixed)).expand(**{key: [value]})
    assert (mapped.inlets, mapped.outlets) == ([], [])
