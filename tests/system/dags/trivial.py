"""DAGs that use every part of a cluster: workers, XCom, mapping and the triggerer."""

from __future__ import annotations

from datetime import timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.providers.standard.sensors.date_time import DateTimeSensorAsync
from airflow.providers.standard.sensors.time_delta import TimeDeltaSensor
from airflow.sdk import DAG

with DAG(dag_id="trivial", schedule=None):
    say = BashOperator(task_id="say", bash_command="echo 'said on a worker'; echo {{ dag_run.conf['word'] }}")
    # Defers always, also when its time has passed already.
    wait = DateTimeSensorAsync(task_id="wait", target_time="{{ dag_run.start_date }}")
    say.set_downstream(wait)

with DAG(dag_id="hold", schedule=None):
    TimeDeltaSensor(task_id="wait", delta=timedelta(hours=1), deferrable=True)

with DAG(dag_id="mapped", schedule=None):
    BashOperator.partial(task_id="count").expand(bash_command=["echo zero", "echo one"])

with DAG(dag_id="broken", schedule=None):
    BashOperator(task_id="fail", bash_command="echo said before the end; exit 3")
