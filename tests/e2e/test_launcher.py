"""The launcher as a user meets it: run as a program, with fake Java, Python and Spark where the real ones do not
matter, and with the real Spark, here and on a cluster, where they do."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.e2e.cluster import plain_environment, stop_group

PROJECT = Path(__file__).parents[2]
TOOLS = ["awk", "bash", "cat", "cksum", "cp", "dirname", "env", "grep", "mkdir", "mv", "readlink", "rm", "sed", "sleep"]

PROBE = """
import json, os, sys
from pyspark.sql import SparkSession

def look(rows):
    import jobs, nic_model
    from nic_model.config import ModelConfig
    for row in rows:
        path = os.environ.get("PYTHONPATH", "")
        yield [nic_model.__file__, jobs.__file__, ModelConfig.__name__, path, sys.executable]

spark = SparkSession.builder.getOrCreate()
context = spark.sparkContext
import nic_model
print(json.dumps({
    "argv": sys.argv,
    "master": context.master,
    "conf": dict(context.getConf().getAll()),
    "driver": nic_model.__file__,
    "executors": context.parallelize(range(2), 2).mapPartitions(look).collect(),
    "rows": spark.range(10).mapInPandas(lambda frames: frames, "id long").count(),
}))
spark.stop()
"""


@dataclass
class Copy:
    """A copy of the project that a test may change, with a private PATH where a test puts what it wants found."""

    root: Path
    bin: Path
    log: Path

    def env(self, **changes: str) -> dict[str, str]:
        hidden = plain_environment(PATH=str(self.bin), **changes)
        return {name: value for name, value in hidden.items() if name != "JAVA_HOME" or name in changes}

    def run(self, *args: str | Path, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.root / "spark-submit.sh", *args],
            env=self.env(**env),
            cwd=self.bin,
            text=True,
            capture_output=True,
            timeout=120,
            check=False,
        )

    def script(self, name: str, text: str) -> Path:
        path = self.bin / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)
        return path

    def java(self, version: str = "17.0.15") -> None:
        """One that runs no job, and prints the options for itself that it is given.

        A file beside the log named `failing` makes the job fail, one named `unable` archive no classes.
        """
        run = self.script(
            "run",
            f"""for option; do
                case "$option" in
                -XX:ArchiveClassesAtExit=*) [ -e '{self.log}.unable' ] || echo classes > "${{option#*=}}" ;;
                -XX:* | -Xlog:*) echo "$option" ;;
                esac
            done
            [ ! -e '{self.log}.failing' ] || {{ echo 'no captions today'; exit 1; }}""",
        )
        self.script(
            "java",
            f"""case "$*" in
            *launcher.Main*) printf '\\n\\0%s\\0' '{run}' && printf '%s\\0' "$@" ;;
            *) echo 'openjdk version "{version}" 2025-04-15' >&2 ;;
            esac""",
        )

    def python(self) -> None:
        """A python that makes an environment in no time, where pip only notes what it was asked for.

        A file beside the log named `slow` or `broken` makes that pip so.
        """
        inner = self.script(
            "inner-python",
            f"""if [ "$1 $2" = "-m pip" ]; then
                echo "pip $*" >> '{self.log}'
                [ ! -e '{self.log}.slow' ] || sleep 1
                [ ! -e '{self.log}.broken' ] || exit 1
                exit 0
            fi
            exec '{sys.executable}' "$@" """,
        )
        self.script(
            "python3",
            f"""if [ "$1 $2" = "-m venv" ]; then
                echo "venv $3" >> '{self.log}'
                mkdir -p "$3/bin" && cp '{inner}' "$3/bin/python"
                exit 0
            fi
            exec '{sys.executable}' "$@" """,
        )

    def spark(self) -> Path:
        """A Spark of the user's, which prints its arguments and surroundings as JSON."""
        names = ["PYSPARK_PYTHON", "PYSPARK_DRIVER_PYTHON", "SPARK_LOCAL_IP", "SPARK_CONF_DIR", "PYTHONPATH"]
        program = self.bin / "print_arguments.py"
        program.write_text(
            f"import json, os, sys\nprint(json.dumps([sys.argv[1:], {{n: os.environ.get(n) for n in {names}}}]))\n"
        )
        self.script("spark/bin/spark-submit", f"exec '{sys.executable}' '{program}' \"$@\"")
        return self.bin / "spark"

    def submit(self, *args: str | Path, **env: str) -> tuple[list[str], dict[str, str | None]]:
        """What the user's Spark was given: its arguments and its surroundings."""
        self.java()
        done = self.run(*args, **({"NIC_PYTHON": sys.executable, "SPARK_HOME": str(self.spark())} | env))
        assert done.returncode == 0, done.stderr
        assert done.stderr == ""
        given, surroundings = json.loads(done.stdout)
        return given, surroundings

    def notes(self) -> list[str]:
        """What was asked of `python3 -m venv` and of pip: the first word of each line of the log."""
        return [line.split()[0] for line in self.log.read_text().splitlines()] if self.log.exists() else []


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    root = tmp_path / "the project"
    skip = shutil.ignore_patterns("__pycache__")
    for name in ("nic_model", "jobs", "infra"):
        shutil.copytree(PROJECT / name, root / name, ignore=skip)
    for name in ("spark-submit.sh", "requirements.lock"):
        shutil.copy(PROJECT / name, root)
    (tmp_path / "bin").mkdir()
    for tool in TOOLS:
        found = shutil.which(tool)
        assert found, f"this machine has no {tool}"
        (tmp_path / "bin" / tool).symlink_to(found)
    return Copy(root, tmp_path / "bin", tmp_path / "log")


def one_line(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a refusal prints."""
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith("spark-submit.sh: ")
    assert done.stderr.count("\n") == 1, done.stderr
    return done.stderr


# --- What it says ----------------------------------------------------------------------------------


@pytest.mark.parametrize("args", [(), ("--help",), ("-h",), ("--master", "local[1]", "--help")])
def test_usage(copy: Copy, args: tuple[str, ...]) -> None:
    (copy.root / "jobs" / "polish_shoes.py").touch()
    done = copy.run(*args)
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: ./spark-submit.sh [SPARK OPTIONS] JOB [JOB OPTIONS]")
    assert "jobs/polish_shoes.py" in done.stdout
    assert "__init__" not in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("jobs/none.py",), "no such job: jobs/none.py"),
        (("/jobs/none.py",), "no such job: /jobs/none.py"),
        (("--master", "local[1]"), "no job given"),
        (("--conf",), "--conf needs a value"),
        (("--py-files",), "--py-files needs a value"),
        (("--pack", "--help"), "--pack takes a folder and nothing else"),
    ],
)
def test_a_wrong_command_line_gets_one_line(copy: Copy, args: tuple[str, ...], words: str) -> None:
    assert words in one_line(copy.run(*args))


@pytest.mark.parametrize("version", ["1.8.0_392", "11.0.22", "16"])
def test_old_java_gets_one_line(copy: Copy, version: str) -> None:
    copy.java(version)
    line = one_line(copy.run("--setup", NIC_PYTHON=sys.executable))
    assert f"Java {'8' if version.startswith('1.') else version.split('.')[0]}." in line
    assert "apt-get install default-jre-headless" in line
    assert "brew install" in line
    assert "conda install" in line


@pytest.mark.parametrize("version", ["23.0.1", "25"])
def test_java_too_new_for_our_spark_gets_one_line(copy: Copy, version: str) -> None:
    copy.java(version)
    said = f"Java 17 to 22 is needed; {copy.bin}/java is Java {version[:2]}, too new for Spark."
    assert said in one_line(copy.run("--setup", NIC_PYTHON=sys.executable))
    assert copy.run("--setup", NIC_PYTHON=sys.executable, SPARK_HOME=str(copy.spark())).returncode == 0


def test_missing_java_gets_one_line(copy: Copy) -> None:
    assert "none was found" in one_line(copy.run("--setup", NIC_PYTHON=sys.executable))
    copy.java()
    line = one_line(copy.run("--setup", NIC_PYTHON=sys.executable, JAVA_HOME="/no/java"))
    assert "JAVA_HOME is /no/java, which has no bin/java" in line
    copy.script("java", "exit 1")
    assert "does not run" in one_line(copy.run("--setup", NIC_PYTHON=sys.executable))


def test_java_home_goes_before_the_path(copy: Copy) -> None:
    copy.java("11")
    (copy.bin / "home" / "bin").mkdir(parents=True)
    shutil.copy(copy.script("java17", "echo 'openjdk version \"17\"' >&2"), copy.bin / "home" / "bin" / "java")
    done = copy.run("--setup", NIC_PYTHON=sys.executable, JAVA_HOME=str(copy.bin / "home"))
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("python", "words"),
    [
        (None, ["Python 3.11 to 3.14 is needed; none was found.", "apt-get install python3 python3-venv", "conda"]),
        ("echo 3.9.18", ["Python 3.11 to 3.14 is needed; python3 is 3.9.18;", "brew install", "NIC_PYTHON"]),
        ("echo 3.15.0", ["python3 is 3.15.0;"]),
        ("exit 127", ["none was found"]),
        ("case $2 in *ensurepip*) exit 1;; *) echo 3.12.3;; esac", ['"apt-get install python3-venv"']),
    ],
)
def test_missing_or_old_python_gets_one_line(copy: Copy, python: str | None, words: list[str]) -> None:
    copy.java()
    if python:
        copy.script("python3", python)
    line = one_line(copy.run("--setup"))
    for word in words:
        assert word in line


def test_a_wrong_nic_python_or_spark_home_gets_one_line(copy: Copy) -> None:
    copy.java()
    assert "NIC_PYTHON is /none, which does not run" in one_line(copy.run("--setup", NIC_PYTHON="/none"))
    old = copy.script("old", "echo 3.9.18")
    assert "Python 3.9.18: 3.11 or later is needed" in one_line(copy.run("--setup", NIC_PYTHON=str(old)))
    line = one_line(copy.run("--setup", NIC_PYTHON=sys.executable, SPARK_HOME="/none"))
    assert "SPARK_HOME is /none, which has no bin/spark-submit" in line
    (copy.spark() / "jars").mkdir()
    for name, status in (("spark-core_2.13-4.1.4.jar", 0), ("spark-core_2.12-3.5.6.jar", 2)):
        (copy.bin / "spark" / "jars" / name).touch()
        done = copy.run("--setup", NIC_PYTHON=sys.executable, SPARK_HOME=str(copy.bin / "spark"))
        assert done.returncode == status
    assert "which has spark-core_2.12-3.5.6.jar: Spark 4.1 is needed" in one_line(done)


# --- The environment -------------------------------------------------------------------------------


def test_the_environment_is_made_once(copy: Copy) -> None:
    copy.java()
    copy.python()
    done = copy.run("--setup")
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert [line.split()[1] for line in lines] == ["set-up,", *["set-up:"] * 4]
    assert "making .venv" in lines[0]
    assert "7 GB" in lines[1]
    assert "installed in" in lines[2]
    assert "captioning the samples" in lines[3]
    assert "later runs start sooner" in lines[4]
    # setuptools first, since pyspark is built with it; then everything.
    assert copy.notes() == ["venv", "pip", "pip"]

    done = copy.run("--setup")
    assert (done.returncode, done.stderr) == (0, "")
    assert copy.notes() == ["venv", "pip", "pip"]

    with (copy.root / "requirements.lock").open("a") as lock:
        lock.write("# changed\n")
    assert "requirements.lock has changed" in copy.run("--setup").stderr
    assert copy.notes() == ["venv", "pip", "pip", "pip", "pip"]
    assert copy.run("--setup").stderr == ""


def test_a_failed_set_up_is_not_ready_and_starts_again(copy: Copy) -> None:
    copy.java()
    copy.python()
    broken = Path(f"{copy.log}.broken")
    broken.touch()
    done = copy.run("--setup")
    assert done.returncode == 1
    assert "set-up failed" in done.stderr
    broken.unlink()
    done = copy.run("--setup")
    assert done.returncode == 0, done.stderr
    assert copy.notes() == ["venv", "pip", "venv", "pip", "pip"]


def test_a_killed_set_up_starts_again(copy: Copy) -> None:
    copy.java()
    copy.python()
    Path(f"{copy.log}.slow").touch()
    command = [copy.root / "spark-submit.sh", "--setup"]
    killed = subprocess.Popen(command, env=copy.env(), stderr=subprocess.DEVNULL, start_new_session=True)
    while copy.notes() != ["venv", "pip"]:
        assert killed.poll() is None
        time.sleep(0.05)
    os.killpg(killed.pid, signal.SIGKILL)
    killed.wait()
    Path(f"{copy.log}.slow").unlink()
    assert copy.run("--setup").returncode == 0
    assert copy.notes() == ["venv", "pip", "venv", "pip", "pip"]


def test_of_two_set_ups_at_once_one_waits(copy: Copy) -> None:
    copy.java()
    copy.python()
    Path(f"{copy.log}.slow").touch()
    command = [copy.root / "spark-submit.sh", "--setup"]
    both = [
        subprocess.Popen(command, env=copy.env(), stderr=subprocess.PIPE, text=True, start_new_session=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=60)[1] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert copy.notes() == ["venv", "pip", "pip"]
    assert sum("waiting for it" in text for text in said) == 1


def test_classes_are_archived_once_for_each_java(copy: Copy) -> None:
    def run() -> list[str]:
        done = copy.run("jobs/caption_images.py")
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout.splitlines()

    def archives() -> list[Path]:
        return list((copy.root / "build").glob("classes-*"))

    copy.java()
    copy.python()
    assert copy.run("--setup").returncode == 0
    [first] = archives()
    assert run() == [f"-XX:SharedArchiveFile={first}", "-Xlog:cds=off", "-Xlog:cds+dynamic=off"]
    copy.java("17.0.16")
    assert run() == []
    assert "captioning the samples" in copy.run("--setup").stderr
    [second] = archives()
    assert first != second
    assert f"-XX:SharedArchiveFile={second}" in run()
    assert not list((copy.root / "build").glob(".classes*"))


def test_a_java_that_archives_nothing_is_asked_once(copy: Copy) -> None:
    copy.java()
    copy.python()
    Path(f"{copy.log}.unable").touch()
    assert "captioning the samples" in copy.run("--setup").stderr
    assert copy.run("--setup").stderr == ""
    assert copy.run("jobs/caption_images.py").stdout == ""


def test_samples_that_are_not_captioned_fail_set_up_alone(copy: Copy) -> None:
    copy.java()
    copy.python()
    Path(f"{copy.log}.failing").touch()
    done = copy.run("--setup")
    assert done.returncode == 1
    assert "no captions today" in done.stderr
    assert "were not captioned" in done.stderr
    assert [path.name for path in (copy.root / "build").iterdir() if "classes" in path.name] == []
    Path(f"{copy.log}.failing").unlink()
    assert copy.run("jobs/caption_images.py").returncode == 0


# --- The zip ---------------------------------------------------------------------------------------


def zips(copy: Copy) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (copy.root / "build").glob("*.zip")}


def test_the_zip_is_named_and_made_by_content(copy: Copy) -> None:
    copy.java()
    (copy.root / "nic_model" / "recipes").mkdir(exist_ok=True)
    (copy.root / "nic_model" / "recipes" / "a.json").write_text("{}")
    (copy.root / "nic_model" / "notes.txt").write_text("not code")
    assert copy.run("--setup", NIC_PYTHON=sys.executable).returncode == 0
    first = zips(copy)
    [name] = first
    with zipfile.ZipFile(copy.root / "build" / name) as archive:
        names = archive.namelist()
    assert {"nic_model/__init__.py", "jobs/__init__.py", "nic_model/recipes/a.json"} <= set(names)
    assert {Path(entry).suffix for entry in names} == {".py", ".json", ".html", ".css", ".js"}
    assert names == sorted(names)

    # The same content gives the same bytes, whatever its date.
    os.utime(copy.root / "nic_model" / "__init__.py", (0, 0))
    shutil.rmtree(copy.root / "build")
    assert copy.run("--setup", NIC_PYTHON=sys.executable).returncode == 0
    assert zips(copy) == first

    (copy.root / "nic_model" / "recipes" / "a.json").write_text("[]")
    assert copy.run("--setup", NIC_PYTHON=sys.executable).returncode == 0
    assert len(zips(copy)) == 2


# --- What Spark is given ---------------------------------------------------------------------------


def test_options_pass_through_to_the_users_spark(copy: Copy) -> None:
    job = copy.root / "jobs" / "polish_shoes.py"
    job.touch()
    given, surroundings = copy.submit(
        *(
            "--master",
            "spark://somewhere:7077",
            "--conf",
            "spark.app.name=two words",
            "--driver-memory=3g",
            "--verbose",
        ),
        *("--packages", "a:b:1", "jobs/polish_shoes.py", "--master", "of the job", "--py-files", "", "*.jpg"),
        PYSPARK_PYTHON="/cluster/python",
    )
    [archive] = (copy.root / "build").glob("*.zip")
    assert given == [
        *(
            "--master",
            "spark://somewhere:7077",
            "--conf",
            "spark.app.name=two words",
            "--driver-memory=3g",
            "--verbose",
        ),
        *("--packages", "a:b:1", "--py-files", str(archive), str(job)),
        *("--master", "of the job", "--py-files", "", "*.jpg"),
    ]
    assert surroundings == {
        "PYSPARK_PYTHON": "/cluster/python",
        "PYSPARK_DRIVER_PYTHON": sys.executable,
        "SPARK_LOCAL_IP": None,
        "SPARK_CONF_DIR": None,
        "PYTHONPATH": None,
    }


@pytest.mark.parametrize(
    ("args", "settings", "address"),
    [
        ((), "", "127.0.0.1"),
        (("--master", "local[2]"), "spark.master yarn", "127.0.0.1"),
        (("--master=yarn",), "", None),
        (("--conf", "spark.master=k8s://x"), "", None),
        ((), "# a comment\nspark.master   spark://x:7077  ", None),
        ((), "spark.master=local[*]", "127.0.0.1"),
        ((), "spark.masterly yarn", "127.0.0.1"),
    ],
)
def test_only_a_local_master_gets_a_local_address(
    copy: Copy, args: tuple[str, ...], settings: str, address: str | None
) -> None:
    (copy.root / "job.py").touch()
    (copy.spark() / "conf").mkdir()
    (copy.spark() / "conf" / "spark-defaults.conf").write_text(settings + "\n")
    _, surroundings = copy.submit(*args, "job.py")
    assert surroundings["SPARK_LOCAL_IP"] == address


def test_the_projects_settings_are_read_where_they_count(copy: Copy) -> None:
    (copy.root / "job.py").touch()
    with (copy.root / "infra" / "spark-defaults.conf").open("a") as settings:
        settings.write("\nspark.master spark://x:7077\n")
    copy.java()
    copy.script("run", "echo address ${SPARK_LOCAL_IP:-none}")
    for args, address in (((), "none"), (("--master", "local[2]"), "127.0.0.1")):
        done = copy.run(*args, "job.py", NIC_PYTHON=sys.executable)
        assert done.stdout == f"address {address}\n", done.stderr


@pytest.mark.parametrize(
    ("given", "locale"),
    [({}, "C.UTF-8"), ({"LANG": "C"}, "C.UTF-8"), ({"LC_ALL": "POSIX"}, "C.UTF-8"), ({"LANG": "de_DE.UTF-8"}, "none")],
    ids=str,
)
def test_java_is_not_left_in_a_posix_locale(copy: Copy, given: dict[str, str], locale: str) -> None:
    (copy.root / "job.py").touch()
    copy.java()
    copy.script("run", "echo locale ${LC_ALL:-none}")
    cleared = {"LC_ALL": "", "LC_CTYPE": "", "LANG": ""}
    done = copy.run("job.py", **(cleared | {"NIC_PYTHON": sys.executable} | given))
    assert done.stdout == f"locale {locale}\n", done.stderr


@pytest.mark.parametrize(
    ("args", "settings", "address"),
    [
        ((), "", "127.0.0.1"),
        (("--load-spark-defaults",), "", None),
        (("--load-spark-defaults",), "spark.master local[2]", "127.0.0.1"),
    ],
)
def test_a_settings_file_is_read_before_the_defaults_or_in_their_place(
    copy: Copy, args: tuple[str, ...], settings: str, address: str | None
) -> None:
    (copy.root / "job.py").touch()
    (copy.spark() / "conf").mkdir()
    (copy.spark() / "conf" / "spark-defaults.conf").write_text("spark.master yarn\n")
    (copy.bin / "mine.conf").write_text(f"spark.hadoop.x y\n{settings}\n")
    _, surroundings = copy.submit("--properties-file", str(copy.bin / "mine.conf"), *args, "job.py")
    assert surroundings["SPARK_LOCAL_IP"] == address


@pytest.mark.parametrize("args", [("--py-files", "a.zip,b.py"), ("--conf", "spark.submit.pyFiles=a.zip,b.py")])
def test_the_users_py_files_are_kept(copy: Copy, args: tuple[str, ...]) -> None:
    (copy.root / "job.py").touch()
    given, _ = copy.submit(*args, "job.py")
    [archive] = (copy.root / "build").glob("*.zip")
    assert given[given.index("--py-files") + 1] == f"{archive},a.zip,b.py"


def test_in_cluster_mode_no_python_of_this_machine_is_named(copy: Copy) -> None:
    (copy.root / "job.py").touch()
    _, surroundings = copy.submit("--master", "yarn", "--deploy-mode", "cluster", "job.py")
    assert surroundings["PYSPARK_PYTHON"] is None
    assert surroundings["PYSPARK_DRIVER_PYTHON"] is None


def test_a_job_here_goes_before_the_projects(copy: Copy) -> None:
    (copy.root / "job.py").touch()
    assert copy.submit("job.py")[0][-1] == str(copy.root / "job.py")
    (copy.bin / "job.py").touch()
    assert copy.submit("job.py")[0][-1] == "job.py"
    assert copy.submit("s3://bucket/job.py")[0][-1] == "s3://bucket/job.py"


# --- The real Spark --------------------------------------------------------------------------------


def launch(launcher: Path, *args: str | Path, cwd: Path, timeout: float = 120, **env: str) -> tuple[dict, str]:
    """Runs a job that prints one JSON line; returns it, and what came on the standard error."""
    process = subprocess.Popen(
        [launcher, *args],
        env=plain_environment(NIC_PYTHON=sys.executable, **env),
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=timeout)
    finally:
        stop_group(process)
    assert process.returncode == 0, err
    return json.loads(out), err


def test_a_job_runs_here_and_says_nothing_of_its_own(copy: Copy, tmp_path: Path) -> None:
    """From another directory, through a symbolic link, with a space in the path, on a Spark with our settings."""
    (copy.root / "jobs" / "probe.py").write_text(PROBE)
    elsewhere = tmp_path / "else where"
    elsewhere.mkdir()
    (elsewhere / "submit").symlink_to(Path("..") / copy.root.name / "spark-submit.sh")
    seen, err = launch(elsewhere / "submit", "jobs/probe.py", "an image.jpg", "--beam-size", "3", cwd=elsewhere)
    assert [line for line in err.splitlines() if not line.startswith("Picked up ")] == []  # JAVA_TOOL_OPTIONS
    assert seen["argv"] == [str(copy.root / "jobs" / "probe.py"), "an image.jpg", "--beam-size", "3"]
    assert seen["master"] == "local[*]"
    assert seen["conf"]["spark.driver.memory"] == "4g"
    assert seen["rows"] == 10


def test_a_job_finds_the_packages_on_a_cluster(cluster_url: str, tmp_path: Path) -> None:
    probe = tmp_path / "probe.py"
    probe.write_text(PROBE)
    more = tmp_path / "more.conf"
    more.write_text("spark.driver.memory 700m\nspark.nic.test yes\n")
    seen, _ = launch(
        PROJECT / "spark-submit.sh",
        *("--master", cluster_url, "--executor-memory", "600m", "--properties-file", more),
        *("--conf", "spark.nic.words=two words", "probe.py", "--master", "of the job"),
        cwd=tmp_path,
        SPARK_LOCAL_IP="127.0.0.1",
    )
    assert seen["argv"] == [str(probe), "--master", "of the job"]
    assert seen["master"] == cluster_url
    expected = {"spark.driver.memory": "700m", "spark.executor.memory": "600m"}
    expected |= {"spark.nic.test": "yes", "spark.nic.words": "two words"}
    assert expected.items() <= seen["conf"].items()
    for nic_model, jobs, name, path, python in seen["executors"]:
        assert ".zip/nic_model/" in nic_model
        assert ".zip/jobs/" in jobs
        assert name == "ModelConfig"
        assert str(PROJECT / "nic_model") not in path
        assert python == sys.executable
    assert ".zip/nic_model/" in seen["driver"]
    assert seen["rows"] == 10


# --- The archive for bare executors ----------------------------------------------------------------


BARE = """
import json, sys
from pyspark.sql import SparkSession

def look(rows):
    import numpy
    from nic_model.metrics.tokenizer import tokenize
    for row in rows:
        yield [numpy.__file__, sys.executable, tokenize("A dog.")]

spark = SparkSession.builder.getOrCreate()
print(json.dumps({"seen": spark.sparkContext.parallelize(range(2), 2).mapPartitions(look).collect()}))
spark.stop()
"""


def pack(copy: Copy, *dependencies: str) -> subprocess.CompletedProcess[str]:
    copy.java()
    listed = ", ".join(f'"{name}"' for name in dependencies)
    extra = '[project.optional-dependencies]\ncpu = ["tqdm", "not-installed"]\n'
    (copy.root / "pyproject.toml").write_text(f"[project]\ndependencies = [{listed}]\n{extra}")
    return copy.run("--pack", copy.bin / "packed", NIC_PYTHON=sys.executable)


def test_pack_takes_the_dependencies_and_theirs_alone(copy: Copy) -> None:
    """And of what makes a CPU faster, what is installed."""
    done = pack(copy, "jinja2>=3", "pyspark")
    assert done.returncode == 0, done.stderr
    assert "#environment" in done.stdout
    with tarfile.open(copy.bin / "packed" / "environment.tar.gz") as packed:
        names = packed.getnames()
    assert {"jinja2", "markupsafe", "tqdm"} == {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert len(names) == len(set(names))
    with zipfile.ZipFile(copy.bin / "packed" / "nic.zip") as code:
        assert "jobs/caption_images.py" in code.namelist()


def test_pack_says_what_is_missing(copy: Copy) -> None:
    done = pack(copy, "no-such-package")
    assert done.returncode == 1
    assert "has no no-such-package: install requirements.lock there" in done.stderr
    assert "--pack takes a folder and nothing else" in one_line(copy.run("--pack", "a", "b"))
    assert "--pack a b: Spark takes no archive" in one_line(copy.run("--pack", "a b"))


def test_a_bare_python_works_with_what_pack_makes(copy: Copy, cluster_url: str, tmp_path: Path) -> None:
    """The workers' Python has no packages at all: what the code needs comes in the archive."""
    bare = tmp_path / "bare"
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", bare], check=True)
    empty = subprocess.run([bare / "bin" / "python", "-c", "import numpy"], capture_output=True, check=False)
    assert empty.returncode == 1
    done = pack(copy, "numpy", "regex")
    assert done.returncode == 0, done.stderr
    (tmp_path / "probe.py").write_text(BARE)
    seen, _ = launch(
        copy.root / "spark-submit.sh",
        *("--master", cluster_url, "--archives", f"{copy.bin}/packed/environment.tar.gz#environment"),
        *("--conf", "spark.executorEnv.PYTHONPATH=./environment", "probe.py"),
        cwd=tmp_path,
        timeout=400,
        SPARK_LOCAL_IP="127.0.0.1",
        PYSPARK_PYTHON=str(bare / "bin" / "python"),
    )
    assert len(seen["seen"]) == 2
    for numpy, python, tokens in seen["seen"]:
        assert "/environment/numpy/" in numpy
        assert python == str(bare / "bin" / "python")
        assert tokens == ["a", "dog"]
