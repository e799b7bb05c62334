"""The same with the Ray provider (astro-provider-ray 0.3), for those who have it; its maker has given it up since.

The job API alone is used: Ray's 0 or 1 comes back instead of segray's exit code, and nothing but the commit rule keeps
a job that Airflow lost sight of and the next one apart. That is safe, but may label an image twice before one of the
two finds the other's commits. `ray_head` is an Airflow connection of type Ray with the dashboard's address.
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
        entrypoint="/opt/segray/bin/segray label /etc/segray/nightly.yaml --log-format json",
        runtime_env={},
        num_cpus=0,
        fetch_logs=True,
        wait_for_completion=True,
        job_timeout_seconds=12 * 3600,
        poll_interval=30,
        retries=3,
        retry_delay=timedelta(minutes=15),
    )
