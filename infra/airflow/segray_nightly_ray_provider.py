"""An Airflow DAG that labels new images every night by the Ray provider (astro-provider-ray 0.3).

The provider is no longer maintained. It uses the job API alone, so Airflow gets Ray's 0 or 1 instead of segray's exit
code. If Airflow loses contact with a job, the next job may run beside it. The rules of commits keep the label set
right. An image may be labelled twice before one job finds the commits of the other. `ray_head` is an Airflow
connection of type Ray with the dashboard's address.
"""

from datetime import datetime, timedelta

from airflow import DAG
from ray_provider.operators import SubmitRayJob

with DAG(
    dag_id="segray_nightly_ray_provider",
    schedule="0 2 * * *",
    start_date=datetime(2026, 1, 1),
    catchup=False,
    max_active_runs=1,
    tags=["segray"],
):
    SubmitRayJob(
        task_id="label",
        conn_id="ray_head",
        entrypoint="/opt/segray/bin/segray label --config /etc/segray/nightly.yaml --log-format json",
        runtime_env={},
        num_cpus=0,
        fetch_logs=True,
        wait_for_completion=True,
        job_timeout_seconds=12 * 3600,
        poll_interval=30,
        retries=3,
        retry_delay=timedelta(minutes=15),
    )
