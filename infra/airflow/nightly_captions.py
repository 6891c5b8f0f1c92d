"""An Airflow DAG: each night caption what is new, score it, compare the model with last night's, show it.

Put this file into Airflow's dags folder, and the project where its workers find it. Airflow's variables say the rest:

    nic_project     the project's folder on the workers
    nic_images      what to caption
    nic_data        where the tables and the page go, a folder or s3a://
    nic_references  the references table
    nic_model       the model directory, local or s3:// (default: the one that ships)
    nic_submit      Spark's options, such as --master spark://HOST:7077 (default: none, Spark runs on the worker)
    nic_metric      the metric that must not be worse than last night's (default cider)

A night with a worse model fails at `compare` and is not remembered: the next one is compared with the last good one.
Needs Airflow 3 and nothing of the project's in its Python: the jobs run by spark-submit.sh.
"""

from datetime import UTC, datetime, timedelta

from airflow.providers.standard.operators.bash import BashOperator
from airflow.sdk import DAG, Variable, task

LAUNCHER = '"{{ var.value.nic_project }}/spark-submit.sh"'
SUBMIT = LAUNCHER + " {{ var.value.get('nic_submit', '') }}"
MODEL = "{{ var.value.get('nic_model', var.value.nic_project ~ '/models/attention') }}"
# Of a path or a word that a variable holds, quoted for the shell: Airflow's own quoting of variables there is none.
DATA, IMAGES, REFERENCES = (f'"{{{{ var.value.nic_{name} }}}}"' for name in ("data", "images", "references"))
SKIPPED = 99  # how a BashOperator is told to skip


def job(name: str, options: str, **settings: object) -> BashOperator:
    """A task that runs one of the project's jobs. Its last line of output is what the task returns."""
    return BashOperator(task_id=name, bash_command=f"set -eo pipefail; {options}", append_env=True, **settings)


@task(trigger_rule="none_failed_min_one_success")
def remember(model_id: str) -> None:
    """What tomorrow's model is compared with."""
    Variable.set("nic_last_model", model_id)


with DAG(
    dag_id="nightly_captions",
    description="Caption what is new, score it, and fail where the model is worse than last night's",
    schedule="0 2 * * *",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,  # two runs at once would caption the same images twice
    default_args={"retries": 1, "retry_delay": timedelta(minutes=5), "execution_timeout": timedelta(hours=12)},
    tags=["captions"],
):
    # Finds what is wrong with the project or its environment before the cluster is asked, and names the model.
    prepare = job(
        "prepare",
        f'{LAUNCHER} --setup 1>&2; cd "{{{{ var.value.nic_project }}}}";'
        ' "${NIC_PYTHON:-.venv/bin/python}" -c "import sys; from jobs.common.captioning import read_model;'
        ' print(read_model(sys.argv[1]).model_id)"'
        f' "{MODEL}"',
    )
    caption = job(
        "caption",
        f'{SUBMIT} jobs/caption_images.py --images {IMAGES} --captions {DATA}/captions --model "{MODEL}"',
    )
    evaluate = job(
        "evaluate",
        f"{SUBMIT} jobs/evaluate_captions.py --captions {DATA}/captions --references {REFERENCES}"
        f" --scores {DATA}/scores",
    )
    compare = job(
        "compare",
        "last=\"{{ var.value.get('nic_last_model', '') }}\" tonight=\"{{ ti.xcom_pull('prepare') }}\";"
        f' if [ -z "$last" ] || [ "$last" = "$tonight" ]; then exit {SKIPPED}; fi;'
        f" {SUBMIT} jobs/compare_models.py --scores {DATA}/scores"
        ' --baseline "$last" --candidate "$tonight"'
        " --fail-if-worse {{ var.value.get('nic_metric', 'cider') }}",
        skip_on_exit_code=SKIPPED,
        retries=0,  # a worse model stays worse
    )
    report = job(
        "report",
        f"{SUBMIT} jobs/report_captions.py --captions {DATA}/captions --images {IMAGES}"
        f" --references {REFERENCES} --scores {DATA}/scores --out {DATA}/report.html",
    )
    prepare >> caption >> evaluate >> [compare, report]
    compare >> remember(prepare.output)
