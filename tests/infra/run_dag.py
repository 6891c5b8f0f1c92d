"""Runs the nightly DAG in a real Airflow, with a launcher that notes what it was asked for in place of Spark's.

    make check-infra

Not a pytest: it runs in Airflow's own environment, which has neither pytest nor the project's packages.
"""

import json
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

PROJECT = Path(__file__).parents[2]

# In the place of spark-submit.sh: writes its arguments, a line of JSON, and fails where the test says so.
LAUNCHER = """#!/bin/sh
"{python}" -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "$@" >> "{log}"
case "$*" in *compare_models.py*) [ ! -e "{log}.worse" ] || exit 1;; esac
"""


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        os.environ |= {
            "AIRFLOW_HOME": str(folder / "airflow"),
            "AIRFLOW__CORE__LOAD_EXAMPLES": "false",
            "AIRFLOW__CORE__DAGS_FOLDER": str(PROJECT / "infra" / "airflow"),
            "NIC_PYTHON": sys.executable,
        }
        subprocess.run([Path(sys.executable).with_name("airflow"), "db", "migrate"], check=True, capture_output=True)
        run_nights(folder)


def run_nights(folder: Path) -> None:
    # Imported once Airflow's home is set, which it reads on import.
    from airflow.models import DagBag, Variable

    project, log = fake_project(folder)
    bag = DagBag(PROJECT / "infra" / "airflow")
    assert not bag.import_errors, bag.import_errors
    [dag] = bag.dags.values()
    assert dag.max_active_runs == 1
    settings = {"project": project, "images": "/the images", "data": "/data", "references": "/refs"}
    for name, value in (settings | {"submit": "--master local[1]"}).items():
        Variable.set(f"nic_{name}", str(value))

    def night(model_id: str) -> tuple[dict[str, str], list[list[str]]]:
        (project / "model_id").write_text(model_id)
        log.unlink(missing_ok=True)
        run = dag.test()
        states = {instance.task_id: str(instance.state) for instance in run.get_task_instances()}
        return states, [json.loads(line) for line in log.read_text().splitlines()]

    states, asked = night("m1")
    good = dict.fromkeys(("prepare", "caption", "evaluate", "report", "remember"), "success")
    assert states == good | {"compare": "skipped", "remember": "skipped"} or states == good | {"compare": "skipped"}, (
        states
    )
    check_commands(asked)
    assert Variable.get("nic_last_model") == "m1"

    states, asked = night("m1")  # the same model: nothing to compare
    assert states["compare"] == "skipped", states

    states, asked = night("m2")
    assert states == good | {"compare": "success"}, states
    [compared] = [line for line in asked if "jobs/compare_models.py" in line]
    expected = ["--scores", "/data/scores", "--baseline", "m1", "--candidate", "m2", "--fail-if-worse", "cider"]
    assert compared[-8:] == expected, compared
    assert Variable.get("nic_last_model") == "m2"

    Path(f"{log}.worse").touch()
    states, _ = night("m3")
    assert (states["compare"], states["remember"], states["report"]) == ("failed", "upstream_failed", "success"), states
    assert Variable.get("nic_last_model") == "m2"
    sys.stdout.write("four nights of the DAG ran as they should\n")


def fake_project(folder: Path) -> tuple[Path, Path]:
    """A folder that looks like the project to the DAG, and where its launcher notes what it was asked for."""
    project, log = folder / "the project", folder / "asked"
    package = project / "jobs" / "common"
    package.mkdir(parents=True)
    (package / "captioning.py").write_text(
        "from pathlib import Path\n"
        "class ModelFiles:\n"
        "    model_id = Path('model_id').read_text()\n"
        "def read_model(location): return ModelFiles()\n"
    )
    launcher = project / "spark-submit.sh"
    launcher.write_text(LAUNCHER.format(python=sys.executable, log=log))
    launcher.chmod(launcher.stat().st_mode | stat.S_IXUSR)
    return project, log


def check_commands(asked: list[list[Any]]) -> None:
    """What a first night asks of the launcher."""
    assert asked[0] == ["--setup"], asked
    assert all(line[:2] == ["--master", "local[1]"] for line in asked[1:]), asked
    jobs = {line[2]: line[3:] for line in asked[1:]}
    assert set(jobs) == {"jobs/caption_images.py", "jobs/evaluate_captions.py", "jobs/report_captions.py"}, asked
    assert jobs["jobs/caption_images.py"][:4] == ["--images", "/the images", "--captions", "/data/captions"], asked
    for line in jobs.values():
        options = {name for name in line if name.startswith("--")}
        job = next(name for name, given in jobs.items() if given is line)
        known = (PROJECT / job).read_text()
        assert all(f'"{option}"' in known for option in options), (job, options)


if __name__ == "__main__":
    main()
