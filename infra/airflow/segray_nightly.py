"""Airflow: every night label what is new, with segray's own submit, whose exit code tells what is worth another try.

Airflow's worker needs segray installed and RAY_AUTH_TOKEN in its environment. One run at a time; ticks that
were missed are not made up for, since the next one labels what is new since. Exit code 99 would mean "skipped": segray
never gives it.
"""

from datetime import datetime, timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG

with DAG(
    dag_id="segray_nightly",
    schedule="0 2 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    tags=["segray"],
):
    BashOperator(
        task_id="label",
        bash_command=(
            "segray submit /etc/segray/nightly.yaml --address http://ray-head:8265"
            " --python /opt/segray/bin/python --log-format json"
        ),
        retries=3,
        retry_delay=timedelta(minutes=15),
        execution_timeout=timedelta(hours=12),
    )
