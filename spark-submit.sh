#!/usr/bin/env bash
# The launcher: makes the Python environment on first use, zips nic_model and jobs for the executors,
# and runs spark-submit. `./spark-submit.sh --help` explains its use. Bash 3.2 (macOS) is enough.
set -euo pipefail
unset CDPATH

script=${BASH_SOURCE[0]}
while [[ -L $script ]]; do
    target=$(readlink "$script")
    [[ $target == /* ]] || target=$(dirname "$script")/$target
    script=$target
done
root=$(cd -P "$(dirname "$script")" && pwd)
venv=$root/.venv
stamp=$venv/.nic-ready            # what the environment was installed from; absent while it is being made
unfinished=$venv/.nic-unfinished  # present while it is being made: found later, that set-up was cut short

# In a POSIX locale, which cron and containers have, Java takes each letter beyond ASCII in a path for a question mark.
case $OSTYPE:${LC_ALL:-${LC_CTYPE:-${LANG:-C}}} in linux*:C | linux*:POSIX) export LC_ALL=C.UTF-8 ;; esac

say() { printf 'spark-submit.sh: %s\n' "$*" >&2; }

fail() {
    say "$*"
    exit 2
}

usage() {
    cat <<'TEXT'
Usage: ./spark-submit.sh [SPARK OPTIONS] JOB [JOB OPTIONS]
       ./spark-submit.sh --setup
       ./spark-submit.sh --pack [FOLDER]

Runs a job of this project on Spark, from any directory. The first run makes the Python
environment .venv (about 7 GB, some minutes) and captions the samples, so that Java can
archive the classes it loads; later runs start at once.

  SPARK OPTIONS  whatever spark-submit takes: --master, --conf, --driver-memory, --packages, ...
                 With no master named, Spark runs here on all cores.
  JOB            a Python file; a relative path is looked up here, then in the project
  --setup        only make the environment, the archive of classes and the package zip
  --pack         only make what executors need whose Python has none of the packages: in FOLDER
                 (default build/pack) environment.tar.gz and nic.zip; prints how to use them

Examples
  ./spark-submit.sh jobs/caption_images.py
  ./spark-submit.sh jobs/caption_images.py --help
  ./spark-submit.sh jobs/caption_images.py --images '/data/photos/*.jpg' --captions out/captions
  ./spark-submit.sh --master spark://HOST:7077 --executor-memory 4g jobs/caption_images.py

Environment variables
  NIC_PYTHON     the python of a ready environment, used in place of .venv
  NIC_LOG_FORMAT text (the default), or json: a JSON object in each line of the logs
  SPARK_HOME     your own Spark and its settings, used in place of the one in the environment
  JAVA_HOME      your Java (17 to 22); otherwise the java on PATH
  SPARK_CONF_DIR, PYSPARK_PYTHON, PYSPARK_DRIVER_PYTHON, SPARK_LOCAL_IP, ... as Spark reads them
TEXT
    printf '\nJobs:'
    local job
    for job in "$root"/jobs/*.py; do
        [[ ! -f $job || $job == */__init__.py ]] || printf ' jobs/%s' "${job##*/}"
    done
    printf '\n'
}

# --- Java and Python -------------------------------------------------------------------------------

find_java() { # sets java and java_version; fails where it is missing, older than 17, or too new for our own Spark
    local needed='Java 17 to 22 is needed' version install='Install it: "apt-get install default-jre-headless" (Debian, Ubuntu), "brew install openjdk@17" (macOS), "conda install -c conda-forge openjdk=17".'
    if [[ -z ${JAVA_HOME:-} && -x /usr/libexec/java_home ]]; then # macOS
        for version in 21 17 17+; do
            JAVA_HOME=$(/usr/libexec/java_home -v "$version" 2>/dev/null || true)
            [[ -z $JAVA_HOME ]] || break
        done
    fi
    if [[ -n ${JAVA_HOME:-} ]]; then
        export JAVA_HOME
        java=$JAVA_HOME/bin/java
        [[ -x $java ]] || fail "$needed; JAVA_HOME is $JAVA_HOME, which has no bin/java. $install"
    else
        unset JAVA_HOME
        java=$(command -v java || true)
        [[ -n $java ]] || fail "$needed; none was found (no java on PATH, JAVA_HOME not set). $install"
    fi
    local major
    java_version=$("$java" -version 2>&1 || true)
    [[ $java_version =~ version\ \"([0-9]+)(\.([0-9]+))? ]] || fail "$needed; \"$java -version\" does not run. $install"
    major=${BASH_REMATCH[1]}
    [[ $major != 1 ]] || major=${BASH_REMATCH[3]:-1} # "1.8.0_392" is Java 8
    ((major >= 17)) || fail "$needed; $java is Java $major. $install"
    # What the Hadoop of our own Spark asks Java for, later ones refuse.
    ((major <= 22)) || [[ -n ${SPARK_HOME:-} ]] || fail "$needed; $java is Java $major, too new for Spark. $install"
}

version_of() { # the version of a python, or nothing
    "$1" -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null || true
}

locked_for() { # is requirements.lock for this version? Its packages have wheels for Python 3.11 to 3.14
    [[ $1 =~ ^3\.([0-9]+)\. ]] && ((BASH_REMATCH[1] >= 11 && BASH_REMATCH[1] <= 14))
}

find_python() { # sets base_python: one that can make the environment
    local install='Install it: "apt-get install python3 python3-venv" (Debian, Ubuntu), "brew install python@3.13" (macOS), "conda install python=3.13"; or name the python of a ready environment in NIC_PYTHON.'
    local name version seen='' bare=''
    for name in python3.13 python3.12 python3.11 python3 python3.14 python; do
        command -v "$name" >/dev/null || continue
        version=$(version_of "$name")
        [[ -n $version ]] || continue
        if ! locked_for "$version"; then
            seen="$seen $name is $version;"
        elif "$name" -c 'import ensurepip, venv' 2>/dev/null; then
            base_python=$name
            return
        else
            bare=$version
        fi
    done
    [[ -z $bare ]] || fail "Python $bare cannot make an environment: its venv module is missing. Install it: \"apt-get install python3-venv\" (Debian, Ubuntu)."
    fail "Python 3.11 to 3.14 is needed;${seen:- none was found.} $install"
}

# --- The environment -------------------------------------------------------------------------------

wanted_stamp() {
    local version
    version=$(version_of "$venv/bin/python")
    printf '%s python %s' "$(cksum <"$root/requirements.lock")" "${version%.*}"
}

is_ready() { [[ -f $stamp && $(cat "$stamp") == "$(wanted_stamp)" ]]; }

with_clock() { # runs a command; on a terminal, seconds tick meanwhile
    local clock='' status=0 begun=$SECONDS
    if [[ -t 2 ]]; then
        (while sleep 1 && kill -0 $$ 2>/dev/null; do printf '\r  %d s ' "$((SECONDS - begun))" >&2; done) &
        clock=$!
    fi
    "$@" || status=$?
    if [[ -n $clock ]]; then
        kill "$clock" 2>/dev/null || true
        wait "$clock" 2>/dev/null || true
        printf '\r         \r' >&2
    fi
    return "$status"
}

lock_set_up() { # one set-up at a time: the lock is held while descriptor 9 is open
    mkdir -p "$root/build"
    exec 9>"$root/build/set-up.lock"
    "$base_python" - <<'PY'
import fcntl, sys
try:
    fcntl.flock(9, fcntl.LOCK_EX | fcntl.LOCK_NB)
except OSError:
    sys.stderr.write("spark-submit.sh: another set-up of this environment is running: waiting for it\n")
    fcntl.flock(9, fcntl.LOCK_EX)
PY
}

install_locked() { # the pinned packages into .venv
    local pip=("$venv/bin/python" -m pip --disable-pip-version-check install --quiet --no-deps)
    # pyspark comes as source only: it is built with the pinned setuptools, not with today's newest.
    # Joined by &&, since errexit does not act in a function that is part of a condition.
    awk '/^setuptools==/ { on = 1 } on { print; if (!/\\$/) exit }' "$root/requirements.lock" >"$root/build/setuptools.lock" && (
        unset PYTHONHOME PIP_TARGET PIP_PREFIX
        export PIP_USER=0
        cd "$root" &&
            "${pip[@]}" -r build/setuptools.lock &&
            "${pip[@]}" --no-build-isolation --use-pep517 -r requirements.lock
    )
}

set_up() {
    find_python
    lock_set_up
    if is_ready; then # another set-up has just made it
        exec 9>&-
        return
    fi
    local begun=$SECONDS version new=''
    if [[ -e $venv ]] && { [[ -e $unfinished ]] || ! locked_for "$(version_of "$venv/bin/python")"; }; then
        say 'set-up: removing .venv, which is unfinished or whose Python does not serve'
        local doomed=$root/build/doomed.$$
        mv "$venv" "$doomed"
        rm -rf "$doomed"
    fi
    if [[ ! -e $venv ]]; then
        version=$(version_of "$base_python")
        say "set-up, first use only: making .venv with Python $version ($(command -v "$base_python"))"
        new=1
        mkdir "$venv"
        : >"$unfinished"
        "$base_python" -m venv "$venv"
    elif [[ -e $stamp ]]; then
        say 'set-up: requirements.lock has changed since .venv was made'
        : >"$unfinished"
    fi
    rm -f "$stamp"
    say "set-up: installing $(grep -c '^[a-z0-9].*==' "$root/requirements.lock" || true) packages into .venv; with PyTorch and its CUDA libraries about 7 GB${new:+: this takes some minutes}"
    if ! with_clock install_locked; then
        say 'set-up failed: see the lines above; the next run tries again'
        exit 1
    fi
    wanted_stamp >"$stamp.new"
    mv "$stamp.new" "$stamp"
    rm -f "$unfinished"
    exec 9>&-
    say "set-up: installed in $((SECONDS - begun)) s"
    preparing=1
}

name_classes() { # sets classes: the archive of the classes that a job loads, of this Java and this environment
    local about
    about=$(printf '%s\n' "${java_version:-}" "$bundled_spark" "$(cat "$stamp" 2>/dev/null)" | cksum)
    classes=$root/build/classes-${about%% *}.jsa
}

# Half of what Java does at the start of a run is to read and check classes, some 20,000. It can archive them, told so as a
# run begins, and refuses the archive where it or the jars have changed.
archive_classes() {
    [[ ! -e $classes ]] || return 0
    local begun=$SECONDS work=$root/build/.classes.$$
    say 'set-up: captioning the samples, to see that all works and to let Java archive the classes it loads (a minute or so)'
    trap 'rm -rf "$root/build/.classes.$$"' EXIT
    rm -f "$root"/build/classes-*.jsa
    mkdir -p "$work"
    if with_clock env -u SPARK_CONF_DIR NIC_CLASSES="$work/classes.jsa" "$root/spark-submit.sh" --master 'local[*]' \
        jobs/caption_images.py --references "$root/samples/references.parquet" --captions "$work/captions" \
        >"$work/log" 2>&1; then
        [[ -e $work/classes.jsa ]] || : >"$work/classes.jsa" # not every Java can: an empty file says so
        mv "$work/classes.jsa" "$classes"
        say "set-up: captioned in $((SECONDS - begun)) s; later runs start sooner"
    else
        sed 's/^/  /' "$work/log" >&2
        say 'set-up: the samples were not captioned: see the lines above'
        set_up_status=1
    fi
    rm -rf "$work"
    trap - EXIT
}

# Prints two lines: the zip of nic_model and jobs, and where the environment's Spark is (or nothing).
# The zip is named by its content: it is made when a source changed, and two runs can make it at once.
package_sources() {
    "$python" -P - "$root" <<'PY'
import hashlib, importlib.util, os, sys, tempfile, time, zipfile
from pathlib import Path

root = Path(sys.argv[1])
kept = {".py", ".json", ".html", ".css", ".js"}  # code and the package data it reads
paths = {
    path.relative_to(root).as_posix(): path
    for package in ("nic_model", "jobs")
    for path in (root / package).rglob("*")
    if path.suffix in kept and "__pycache__" not in path.parts and path.is_file()
}
sources = [(name, paths[name].read_bytes()) for name in sorted(paths)]
digest = hashlib.sha256()
for name, content in sources:
    digest.update(f"{name}\0{len(content)}\0".encode() + content)
build = root / "build"
archive = build / f"nic-{digest.hexdigest()[:16]}.zip"
try:
    if not archive.exists():
        build.mkdir(exist_ok=True)
        for old in [*build.glob("nic-*.zip"), *build.glob(".nic-*.tmp")]:
            if time.time() - old.stat().st_mtime > 7 * 86400:  # a run may still be serving a younger one
                old.unlink(missing_ok=True)
        handle, partial = tempfile.mkstemp(prefix=".nic-", suffix=".tmp", dir=build)
        with os.fdopen(handle, "wb") as file, zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as zipped:
            for name, content in sources:
                entry = zipfile.ZipInfo(name)  # dated 1980, whatever the file's date
                entry.compress_type = zipfile.ZIP_DEFLATED
                entry.external_attr = 0o644 << 16
                zipped.writestr(entry, content)
        os.chmod(partial, 0o644)
        os.replace(partial, archive)
except OSError as error:
    sys.exit(f"spark-submit.sh: cannot write {archive}: {error.strerror}")
spark = importlib.util.find_spec("pyspark")
print(archive)
print(spark.submodule_search_locations[0] if spark and spark.submodule_search_locations else "")
PY
}

# Writes the packages of pyproject.toml's dependencies, of its extra `cpu` where it is installed, and of theirs, as one
# archive, and the code beside it. pyspark stays out: executors have the cluster's. They need a Python of the same minor
# version on the same kind of machine.
pack() { # folder
    "$python" -P - "$root" "$archive" "$1" <<'PY'
import atexit, os, shutil, sys, tarfile, tempfile, tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement

root, archive, folder = map(Path, sys.argv[1:])
project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
wanted = project["dependencies"]
for text in project.get("optional-dependencies", {}).get("cpu", []):  # without which a CPU is slower
    try:
        metadata.distribution(Requirement(text).name)
        wanted.append(text)
    except metadata.PackageNotFoundError:
        pass
taken, queue = {}, [Requirement(text) for text in wanted]
while queue:
    requirement = queue.pop()
    name = requirement.name.lower().replace("_", "-")
    if name in ("pyspark", "py4j"):
        continue
    extras = taken.setdefault(name, set())
    fresh = {"", *requirement.extras} - extras
    extras |= fresh
    try:
        needs = metadata.requires(name) or [] if fresh else []
    except metadata.PackageNotFoundError:
        sys.exit(f"spark-submit.sh: {sys.executable} has no {name}: install requirements.lock there")
    for need in map(Requirement, needs):
        if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in fresh):
            queue.append(need)
try:
    folder.mkdir(parents=True, exist_ok=True)
    handle, partial = tempfile.mkstemp(prefix=".environment-", dir=folder)
    atexit.register(Path(partial).unlink, missing_ok=True)
    seen = set()
    # Fast rather than small: most of it is machine code, which a slower setting shrinks little more.
    with os.fdopen(handle, "wb") as file, tarfile.open(fileobj=file, mode="w:gz", compresslevel=1) as packed:
        for name in sorted(taken):
            for path in metadata.files(name) or []:
                if path.parts[0] == ".." or "__pycache__" in path.parts or str(path) in seen:
                    continue  # what stands beside site-packages are commands, which no executor runs
                seen.add(str(path))
                packed.add(path.locate(), str(path), recursive=False)
    os.chmod(partial, 0o644)
    os.replace(partial, folder / "environment.tar.gz")
    shutil.copyfile(archive, folder / "nic.zip")
except OSError as error:
    sys.exit(f"spark-submit.sh: cannot write {folder}: {error.strerror}")
except KeyboardInterrupt:
    sys.exit(130)
version = f"{sys.version_info[0]}.{sys.version_info[1]}"
size = (folder / "environment.tar.gz").stat().st_size / 1e6
print(f"""{folder}/environment.tar.gz  {len(taken)} packages, {size:.0f} MB
{folder}/nic.zip  the code, for a spark-submit that is not this launcher's
Executors need Python {version} and nothing else:
  PYSPARK_PYTHON=python{version} ./spark-submit.sh --master ... \\
      --archives '{folder}/environment.tar.gz#environment' --conf spark.executorEnv.PYTHONPATH=./environment JOB ...""")
PY
}

# --- Options ---------------------------------------------------------------------------------------

options=() setting_up='' preparing='' set_up_status=0 pack_folder='' job=''
master='' user_py_files='' properties_file='' load_defaults='' deploy_mode=''

note_option() { # remembers what the launcher itself has to know
    case $1 in
    --master) master=$2 ;;
    --deploy-mode) deploy_mode=$2 ;;
    --properties-file) properties_file=$2 ;;
    --conf | -c)
        case $2 in
        spark.master=*) master=${master:-${2#*=}} ;;
        spark.submit.deployMode=*) deploy_mode=${deploy_mode:-${2#*=}} ;;
        spark.submit.pyFiles=*) user_py_files=${user_py_files:-${2#*=}} ;;
        esac
        ;;
    esac
}

property() { # a property in the settings files that Spark is going to read, the first of which that has it counts
    local file found folder=${SPARK_CONF_DIR:-${SPARK_HOME:+$SPARK_HOME/conf}}
    local files=("${folder:-$root/infra}/spark-defaults.conf")
    [[ -z $properties_file || -n $load_defaults ]] || files=()
    for file in ${properties_file:+"$properties_file"} ${files[@]+"${files[@]}"}; do
        [[ -f $file ]] || continue
        found=$(sed -n "s/^[[:space:]]*${1//./\\.}[[:space:]=:]\{1,\}//p" "$file" | sed -n 's/[[:space:]]*$//;$p')
        [[ -z $found ]] || { printf '%s\n' "$found" && return; }
    done
}

(($#)) || {
    usage
    exit 0
}
while (($#)); do
    case $1 in
    -h | --help)
        usage
        exit 0
        ;;
    --setup)
        setting_up=1
        preparing=1 # the classes too, where the environment is the launcher's own
        shift
        ;;
    --pack)
        setting_up=1
        pack_folder=${2:-$root/build/pack}
        [[ $pack_folder != -* ]] || fail '--pack takes a folder and nothing else'
        shift $(($# > 1 ? 2 : 1))
        [[ $pack_folder != *[[:space:]]* ]] || fail "--pack $pack_folder: Spark takes no archive with a space in its path; name another folder"
        (($# == 0)) || fail '--pack takes a folder and nothing else'
        ;;
    -v | --verbose | --supervise | --version | --usage-error | --load-spark-defaults)
        [[ $1 != --load-spark-defaults ]] || load_defaults=1
        options+=("$1")
        shift
        ;;
    --py-files)
        (($# > 1)) || fail "$1 needs a value"
        user_py_files=$2
        shift 2
        ;;
    --py-files=*)
        user_py_files=${1#*=}
        shift
        ;;
    --*=*)
        note_option "${1%%=*}" "${1#*=}"
        options+=("$1")
        shift
        ;;
    -*)
        (($# > 1)) || fail "$1 needs a value, and a job after it"
        note_option "$1" "$2"
        options+=("$1" "$2")
        shift 2
        ;;
    *)
        job=$1
        shift
        break
        ;;
    esac
done

if [[ -n $job ]]; then
    if [[ $job != /* && ! -f $job && -f $root/$job ]]; then
        job=$root/$job
    elif [[ $job != *:/* && ! -f $job ]]; then # s3://bucket/job.py and the like are for Spark to find
        fail "no such job: $job (looked here and in $root)"
    fi
elif [[ -z $setting_up ]]; then
    case " ${options[*]-} " in
    *' --version '* | *' --status'* | *' --kill'*) ;;
    *) fail 'no job given; ./spark-submit.sh --help shows how' ;;
    esac
fi

# --- Run -------------------------------------------------------------------------------------------

if [[ -n ${SPARK_HOME:-} ]]; then
    [[ -x $SPARK_HOME/bin/spark-submit ]] || fail "SPARK_HOME is $SPARK_HOME, which has no bin/spark-submit"
    for jar in "$SPARK_HOME"/jars/spark-core_*.jar; do
        [[ ! -e $jar || $jar == *-4.1.* ]] || fail "SPARK_HOME is $SPARK_HOME, which has ${jar##*/}: Spark 4.1 is needed"
    done
fi
# A Spark of the user's may name its Java in its own settings.
if [[ -z ${SPARK_HOME:-} || -n ${JAVA_HOME:-} ]] ||
    ! grep -qs JAVA_HOME "${SPARK_CONF_DIR:-$SPARK_HOME/conf}/spark-env.sh"; then
    find_java
fi

if [[ -n ${NIC_PYTHON:-} ]]; then
    preparing=''
    python=$(command -v "$NIC_PYTHON" || true)
    version=$(version_of "${python:-$NIC_PYTHON}")
    [[ -n $version ]] || fail "NIC_PYTHON is $NIC_PYTHON, which does not run"
    [[ $version =~ ^3\.(1[1-9]|[2-9][0-9])\. ]] || fail "NIC_PYTHON is $NIC_PYTHON, Python $version: 3.11 or later is needed"
    [[ $python == /* ]] || python=$PWD/$python
else
    is_ready || set_up
    python=$venv/bin/python
fi

packaged=$(package_sources)
archive=${packaged%%$'\n'*}
[[ -z $pack_folder ]] || pack "$pack_folder"
bundled_spark=${packaged#*$'\n'}
[[ $bundled_spark != "$packaged" ]] || bundled_spark=''
name_classes
if [[ -n $preparing && -n $bundled_spark && -z ${SPARK_HOME:-} ]]; then
    archive_classes
fi
[[ -z $pack_folder ]] || exit 0
[[ -z $setting_up ]] || exit "$set_up_status"

user_py_files=${user_py_files:-$(property spark.submit.pyFiles)}
master=${master:-$(property spark.master)}
master=${master:-${MASTER:-local[*]}} # what Spark itself does
options+=(--py-files "$archive${user_py_files:+,$user_py_files}")
if [[ $master == local* ]]; then
    export SPARK_LOCAL_IP=${SPARK_LOCAL_IP:-127.0.0.1}
fi
if [[ ${deploy_mode:-$(property spark.submit.deployMode)} != cluster ]]; then # there, this path would mean nothing
    export PYSPARK_PYTHON=${PYSPARK_PYTHON:-$python} PYSPARK_DRIVER_PYTHON=${PYSPARK_DRIVER_PYTHON:-$python}
fi

# Spark reads what a job prints and prints it: the job itself sees no terminal.
unset NIC_TERMINAL
if [[ -t 1 ]]; then
    { NIC_TERMINAL=$(tty <&3) || true; } 3>&1
    export NIC_TERMINAL
fi

if [[ -n ${SPARK_HOME:-} ]]; then
    exec "$SPARK_HOME/bin/spark-submit" "${options[@]}" ${job:+"$job"} "$@"
fi
SPARK_HOME=$bundled_spark
[[ -d $SPARK_HOME/jars ]] || fail "$python has no pyspark: install requirements.lock there, or name your Spark in SPARK_HOME"
export SPARK_HOME

# What bin/spark-submit does, less one module that nothing here uses and that makes Java begin every
# run with a warning. The launcher class prints the command, NUL after each word, its own status last.
export SPARK_CONF_DIR=${SPARK_CONF_DIR:-$root/infra} PYTHONHASHSEED=0
set +eu
# shellcheck source=/dev/null
source "$SPARK_HOME/bin/load-spark-env.sh"
set -eu
words=()
while IFS= read -r -d '' word; do
    words+=("$word")
done < <(
    status=0
    "$java" -Xmx128m -cp "$SPARK_HOME/jars/*" org.apache.spark.launcher.Main \
        org.apache.spark.deploy.SparkSubmit "${options[@]}" ${job:+"$job"} "$@" || status=$?
    printf '%d\0' "$status"
)
last=$((${#words[@]} - 1))
[[ ${words[last]} == 0 ]] || exit "${words[last]}"
command=()
for word in "${words[@]:1:last-1}"; do
    case $word in
    --add-modules=jdk.incubator.vector) ;;
    # Java keeps classes of jars alone: the folder of settings goes behind them.
    "${SPARK_CONF_DIR%/}"/:*) command+=("${word#*:}:${word%%:*}") ;;
    *) command+=("${word#$'\n'}") ;;
    esac
done
if [[ -n ${NIC_CLASSES:-} ]]; then
    command=("${command[0]}" "-XX:ArchiveClassesAtExit=$NIC_CLASSES" "${command[@]:1}")
elif [[ -s $classes ]]; then
    # Where they do not fit, Java loads them as ever, and need not say so.
    command=("${command[0]}" "-XX:SharedArchiveFile=$classes" -Xlog:cds=off -Xlog:cds+dynamic=off "${command[@]:1}")
fi
exec "${command[@]}"
