"""Imports run one way, jobs/*.py -> jobs/common -> nic_model, and heavy libraries are imported where they belong."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted(file for package in ("nic_model", "jobs") for file in (ROOT / package).rglob("*.py"))

# These must start fast and run where torch is not installed.
TORCHLESS = [
    "nic_model.config",
    "nic_model.model_files",
    "nic_model.vocabulary",
    *(
        f"nic_model.metrics.{file.stem}"
        for file in sorted((ROOT / "nic_model" / "metrics").glob("*.py"))
        if file.stem != "__init__"
    ),
]


def module_name(file: Path) -> str:
    return ".".join(file.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(file: Path) -> Iterator[str]:
    """All that `file` imports, in functions too; `from jobs.common import tables` as jobs.common.tables."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}: imports are absolute"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def allowed(module: str, target: str) -> bool:
    """Whether `module` may import `target`."""
    library = target.split(".")[0]
    if library == "boto3" or library == "botocore":
        return module == "jobs.common.storage"
    if module.startswith("nic_model"):
        return library not in ("pyspark", "jobs") and not (module in TORCHLESS and library in ("torch", "torchvision"))
    return library != "jobs" or target.startswith("jobs.common")  # a job imports no job, nor does what they share


def test_all_files_are_seen() -> None:
    assert {"nic_model.train", "nic_model.metrics.bleu", "jobs.caption_images", "jobs.common.tables"} <= {
        module_name(file) for file in FILES
    }


@pytest.mark.parametrize("file", FILES, ids=[module_name(file) for file in FILES])
def test_imports(file: Path) -> None:
    forbidden = [target for target in imported(file) if not allowed(module_name(file), target)]
    assert forbidden == []


@pytest.mark.parametrize(
    ("module", "target"),
    [
        ("nic_model.train", "pyspark.sql.DataFrame"),
        ("nic_model.train", "jobs.common.tables"),
        ("nic_model.metrics.bleu", "torch"),
        ("nic_model.config", "torch.nn"),
        ("nic_model.checkpoint", "boto3"),
        ("jobs.caption_images", "boto3"),
        ("jobs.caption_images", "jobs.evaluate_captions.main"),
        ("jobs.common.udfs", "jobs.caption_images"),
    ],
)
def test_the_rules_forbid(module: str, target: str) -> None:
    assert not allowed(module, target)


def test_torch_is_not_imported_by_way_of_others() -> None:
    code = f"import sys; import {', '.join(TORCHLESS)}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.parametrize("module", ["jobs.common.scores", "jobs.caption_images", "jobs.report_captions"])
def test_drivers_and_scoring_executors_do_not_load_torch(module: str) -> None:
    """It takes seconds, on the way to every error message too."""
    code = f"import sys; import {module}; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)
