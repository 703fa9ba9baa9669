"""The example's Celery application on a broker of files, so that its test needs no server.

Usage: celery --app celery_over_files worker
"""

from importlib import import_module
from pathlib import Path

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
