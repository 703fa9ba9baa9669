"""The example's Celery application on a broker of files, so that its test needs no server.

Usage: celery --app celery_over_files worker
"""

import os
import time
from importlib import import_module
from pathlib import Path

from celery.signals import task_prerun  # type: ignore[import-untyped]

LIMIT = 60
"""Seconds that a process waits for the other one."""

app = import_module("celery_tasks").app
folders = {name: str(Path(name).absolute()) for name in ("queue", "control", "results")}
for folder in folders.values():
    Path(folder).mkdir(exist_ok=True)
app.conf.update(
    broker_url="filesystem://",
    broker_transport_options={
        "data_folder_in": folders["queue"],
        "data_folder_out": folders["queue"],
        "control_folder": folders["control"],
        "polling_interval": 0.05,
    },
    result_backend=f"file://{folders['results']}",
)
begun = Path("begun").absolute()
begun.mkdir(exist_ok=True)


@task_prerun.connect  # type: ignore[untyped-decorator]
def wait_for_both(**_: object) -> None:
    """Have none of the two processes do a task before the other has got one, too."""
    (begun / str(os.getpid())).touch()
    until = time.monotonic() + LIMIT
    while len(list(begun.iterdir())) < 2 and time.monotonic() < until:
        time.sleep(0.01)
