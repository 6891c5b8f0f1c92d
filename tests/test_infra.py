"""What stands in infra/ agrees with the project, as far as that can be read without the clusters it is for. The tools
that judge it, and a real Airflow that runs the DAG, are called by `make check-infra`."""

import json
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from jobs import caption_images
from jobs.common.gpus import EXECUTOR, TASK
from jobs.common.sources import find_source
from jobs.common.targets import check_target

ROOT = Path(__file__).parents[1]
LOCK = (ROOT / "requirements.lock").read_text()
SPARK = re.search(r"^pyspark==(\S+)", LOCK, re.MULTILINE)[1]  # type: ignore[index]
DOCKERFILE = (ROOT / "infra" / "docker" / "Dockerfile").read_text()


def manifest(name: str) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((ROOT / "infra" / "kubernetes" / name).read_text())
    return found


class Template(yaml.SafeLoader):
    """CloudFormation's YAML, whose tags stand for what they are given."""


Template.add_multi_constructor("!", lambda loader, _, node: loader.construct_scalar(node))


def emr() -> dict[str, Any]:
    found: dict[str, Any] = yaml.load((ROOT / "infra" / "emr" / "nightly.yaml").read_text(), Template)
    return found


def job_flow() -> dict[str, Any]:
    text = emr()["Resources"]["Nightly"]["Properties"]["Target"]["Input"]
    flow: dict[str, Any] = json.loads(re.sub(r"\$\{GpuInstances\}", "2", text))
    return flow


def spark_submit() -> list[str]:
    given: list[str] = job_flow()["Steps"][0]["HadoopJarStep"]["Args"]
    return given


def test_the_nightly_run_is_the_one_run() -> None:
    nightly = manifest("nightly.yaml")["spec"]
    assert nightly["template"] == manifest("caption.yaml")["spec"]
    assert nightly["concurrencyPolicy"] == "Forbid"


@pytest.mark.parametrize("role", ["driver", "executor"])
def test_pods_are_nobody_and_secrets_are_references(role: str) -> None:
    pod = manifest("caption.yaml")["spec"][role]
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["allowPrivilegeEscalation"] is False
    assert f"USER {pod['securityContext']['runAsUser']}\n" in DOCKERFILE
    assert [set(variable) for variable in pod["env"]] == [{"name", "valueFrom"}] * 2
    [source] = {tuple(variable["valueFrom"]) for variable in pod["env"]}
    assert source == ("secretKeyRef",)


def test_image_manifest_and_lock_name_one_spark() -> None:
    spec = manifest("caption.yaml")["spec"]
    assert spec["sparkVersion"] == SPARK
    assert EXECUTOR in spec["sparkConf"]
    assert TASK not in spec["sparkConf"]  # or all tasks would hold a GPU
    assert spec["mainApplicationFile"].removeprefix("local:///opt/nic/") == "jobs/caption_images.py"
    version = re.search(r"FROM python:(3\.\d+)", DOCKERFILE)[1]  # type: ignore[index]
    assert f"/lib/python{version}/site-packages/pyspark" in DOCKERFILE
    for copied in re.findall(r"^COPY (?!--)(.*) \S+$", DOCKERFILE, re.MULTILINE):
        assert all((ROOT / name).exists() for name in copied.split())


def test_the_job_takes_what_it_is_given() -> None:
    emr_args = spark_submit()
    emr_args = emr_args[emr_args.index("s3://${Bucket}/code/caption_images.py") + 1 :]
    for given in (manifest("caption.yaml")["spec"]["arguments"], emr_args):
        options = caption_images.parse_args([word.replace("${Bucket}", "bucket") for word in given])
        check_target(options.captions, options.format)
        find_source(options.images)


def test_emr_ships_what_pack_makes() -> None:
    packed = (ROOT / "spark-submit.sh").read_text()
    given = spark_submit()
    for flag in ("--archives", "--py-files"):
        name = given[given.index(flag) + 1].split("#")[0].rpartition("/")[2]
        assert f'"{name}"' in packed
    assert "spark.executorEnv.PYTHONPATH=./environment" in given
    assert "spark.executorEnv.PYTHONPATH=./environment" in packed
    assert job_flow()["Instances"]["InstanceGroups"][1]["InstanceCount"] == 2


def test_the_bucket_is_closed() -> None:
    bucket = emr()["Resources"]["Bucket"]["Properties"]
    assert set(bucket["PublicAccessBlockConfiguration"].values()) == {True}
    for name, resource in emr()["Resources"].items():
        if resource["Type"] == "AWS::IAM::Role":
            for policy in resource["Properties"]["Policies"]:
                for statement in policy["PolicyDocument"]["Statement"]:
                    # What starts a cluster is granted by the cluster's tag.
                    assert statement["Resource"] != "*" or "aws:RequestTag" in str(statement["Condition"]), name


def test_a_drained_node_tells_its_executor() -> None:
    executor = subprocess.Popen(
        ["bash", "-c", "trap 'exit 7' PWR; while :; do sleep 0.1; done", "KubernetesExecutorBackend"]
    )
    try:
        time.sleep(0.5)  # until it listens
        told = subprocess.Popen([ROOT / "infra" / "docker" / "decom.sh"])
        assert executor.wait(30) == 7
        assert told.wait(30) == 0
    finally:
        executor.kill()
    assert "infra/docker/decom.sh /opt/" in DOCKERFILE
