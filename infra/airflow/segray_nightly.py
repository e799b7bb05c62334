"""An Airflow DAG that labels new images every night by `segray submit`.

Airflow's worker needs segray installed, and RAY_AUTH_TOKEN in its environment. One run goes on at a time. A missed tick
is not repeated, since the next tick labels all new images. For Airflow exit code 99 means "skipped". segray never ends
with 99.
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
            "segray submit --config /etc/segray/nightly.yaml --address http://ray-head:8265"
            " --python /opt/segray/bin/python --log-format json"
        ),
        retries=3,
        retry_delay=timedelta(minutes=15),
        execution_timeout=timedelta(hours=12),
    )
