#!/usr/bin/env bash
# What a nightly run needs, on one Linux machine: an S3 server (SeaweedFS), a Spark cluster of two workers, and a
# schedule. `cluster.sh --help` explains its use.
set -euo pipefail
unset CDPATH

self=$(realpath "${BASH_SOURCE[0]}")
root=$(cd -P "${self%/*}/../.." && pwd)
# The order in which they are ended; they are begun in the opposite one.
processes=(schedule night worker-2 worker-1 master s3)
start_seconds=180 stop_seconds=40

# Each may be given as an option, and stands in FOLDER/settings from then on, where it may be changed.
settings=(at port cores memory images model references metric)
at=02:00 port=18300 cores=1 memory=2g images=s3://images
model=$root/models/attention references='' metric=cider
metrics='bleu_1 bleu_2 bleu_3 bleu_4 rouge_l cider'
folder=$root/out/local

usage() {
    cat <<TEXT
Usage: infra/local/cluster.sh up [OPTIONS]     starts all and returns once it is ready
       infra/local/cluster.sh put FILE...      copies image files, and all below folders, into the bucket
       infra/local/cluster.sh night            runs a night now: caption, score, compare with last night, report
       infra/local/cluster.sh status           what runs, and how the last night went
       infra/local/cluster.sh down             ends all; tables, images and reports stay

  --folder DIR        for all data, logs and settings (default out/local); to be given to each command
  --at HH:MM          when the nights begin, by the machine's clock (default $at)
  --port N            the first of 14 ports in a row: N is S3's, N+8 the Spark master's, N+9 its page (default $port)
  --cores N           of each of the two workers (default $cores)
  --memory SIZE       of each worker's executor, beside which Python takes about 1 GB a core (default $memory)
  --images URI        what is captioned each night (default $images)
  --model DIR         the model directory (default: the one that ships)
  --references TABLE  with it, captions are scored, and a model that is worse than last night's fails the night
  --metric NAME       by which it is judged (default $metric)

Options of \`up\` are kept in DIR/settings, which a night reads again. Everything listens on 127.0.0.1 alone, where other
users of the machine reach it too: it is for a machine of your own.
TEXT
}

say() { printf '%s\n' "$*"; }

fail() {
    printf 'cluster.sh: %s\n' "$*" >&2
    exit 2
}

# --- Processes -------------------------------------------------------------------------------------

launch() { # name, command: in a session of its own, so that all that it starts can be ended with it
    local name=$1
    shift
    setsid "$@" </dev/null &
    say "$! $(born "$!")" >"$folder/run/$name.pid"
}

start() { # name, command: the same, with a log
    launch "$@" >>"$folder/logs/$1.log" 2>&1
}

stat_of() { # pid: sets the array stat to what the kernel says of it, after the name, which may hold anything
    local line
    { line=$(<"/proc/$1/stat"); } 2>/dev/null || return 1
    read -ra stat <<<"${line##*) }"
    [[ ${stat[0]} != Z ]] # has ended, and waits for its parent to be told
}

born() { # pid: when it began. A number may be given to another process, but not with the same beginning
    local stat
    stat_of "$1" && printf '%s' "${stat[19]}"
}

pid_of() { # name: of what `launch` began, if it still runs
    local pid begun
    [[ -f $folder/run/$1.pid ]] && read -r pid begun <"$folder/run/$1.pid" && [[ $(born "$pid") == "$begun" ]] &&
        printf '%s' "$pid"
}

members() { # the processes of the sessions that these processes lead
    local stat file pid
    for file in /proc/[0-9]*; do
        pid=${file#/proc/}
        stat_of "$pid" || continue
        [[ " $* " != *" ${stat[3]} "* ]] || say "$pid"
    done
}

stop() { # names: ends them and all that they began
    local name pid leaders=() left end=$((SECONDS + stop_seconds))
    for name in "$@"; do
        pid=$(pid_of "$name") || continue
        leaders+=("$pid")
        kill -TERM -- "-$pid" 2>/dev/null || true
    done
    if ((${#leaders[@]})); then
        while left=$(members "${leaders[@]}") && [[ -n $left ]] && ((SECONDS < end)); do sleep 0.1; done
        # shellcheck disable=SC2086 # a word for each process
        [[ -z $left ]] || kill -KILL $left 2>/dev/null || true
    fi
    for name in "$@"; do rm -f "$folder/run/$name.pid"; done
}

stop_all() {
    local number
    stop "${processes[@]}"
    # SeaweedFS makes these wherever its data are, and leaves some of them.
    for ((number = port; number < port + 8; number++)); do rm -f /tmp/seaweedfs-*-"$number".sock; done
}

# --- Settings --------------------------------------------------------------------------------------

read_settings() { # those of FOLDER, line by line name=value
    local name value
    [[ -f $folder/settings ]] || fail "$folder: nothing was brought up there; --folder names another"
    while IFS='=' read -r name value; do
        [[ " ${settings[*]} " != *" $name "* ]] || printf -v "$name" '%s' "$value"
    done <"$folder/settings"
}

check_settings() {
    local name number
    [[ $folder != *[[:space:]]* ]] || fail "--folder $folder: Spark wants no space in it; name another folder"
    date -d "$at" >/dev/null 2>&1 && [[ $at == [0-9]*:[0-9]* ]] || fail "--at $at: must be a time of day, as 02:00"
    for name in port cores; do
        [[ ${!name} =~ ^[1-9][0-9]{0,4}$ ]] || fail "--$name ${!name}: must be a whole number, at least 1"
    done
    ((port <= 65522)) || fail "--port $port: must be at most 65522"
    [[ $memory =~ ^[1-9][0-9]*[mg]$ ]] || fail "--memory $memory: must be as 2g or 2048m"
    [[ $images =~ ^s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/.*)?$ ]] || fail "--images $images: must be as s3://bucket or s3://bucket/prefix"
    [[ " $metrics " == *" $metric "* ]] || fail "--metric $metric: allowed are ${metrics// /, }"
    [[ -f $model/config.json ]] || fail "--model $model: no model directory"
    [[ -z $references || -e $references ]] || fail "--references $references: no such table"
    for ((number = port; number < port + 14; number++)); do
        ! (: <"/dev/tcp/127.0.0.1/$number") 2>/dev/null || fail "--port $port: port $number is in use; name another"
    done
}

set_environment() { # for all that is started: the local server's keys, and no settings of the caller's
    local name
    for name in $(compgen -e); do
        case $name in SPARK_* | PYSPARK_* | PYTHON* | AWS_*) unset "$name" ;; esac
    done
    export AWS_SHARED_CREDENTIALS_FILE=$folder/credentials AWS_CONFIG_FILE=/dev/null AWS_EC2_METADATA_DISABLED=true
    export no_proxy=127.0.0.1 NO_PROXY=127.0.0.1 # all that is asked for is here
    export AWS_REGION=us-east-1 AWS_DEFAULT_REGION=us-east-1
    export LC_ALL=C.UTF-8 # or Java would not find files whose names go beyond ASCII
    export SPARK_LOCAL_IP=127.0.0.1 SPARK_CONF_DIR=$root/infra
    python=$(command -v "${NIC_PYTHON:-}" || say "$root/.venv/bin/python") # which `up` made
    endpoint=http://127.0.0.1:$port
    master=spark://127.0.0.1:$((port + 8))
    master_page=http://127.0.0.1:$((port + 9))
}

ours() { # runs Python with the project's code, which workers must not find in this way
    PYTHONPATH=$root "$python" -P "$@"
}

make_keys() { # of the one user of the S3 server, once
    local key secret
    [[ ! -f $folder/credentials ]] || return 0
    key=$(od -An -N10 -tx1 /dev/urandom | tr -d ' \n')
    secret=$(od -An -N20 -tx1 /dev/urandom | tr -d ' \n')
    printf '{"identities": [{"name": "local", "credentials": [{"accessKey": "%s", "secretKey": "%s"}], "actions": %s}]}\n' \
        "$key" "$secret" '["Admin", "Read", "List", "Tagging", "Write"]' >"$folder/identities.json"
    printf '[default]\naws_access_key_id = %s\naws_secret_access_key = %s\n' "$key" "$secret" >"$folder/credentials"
}

# --- Up and down -----------------------------------------------------------------------------------

up() {
    local name spark_class weed
    folder=$(realpath -m "$folder") model=$(realpath -m "$model")
    [[ -z $references ]] || references=$(realpath -m "$references")
    for name in "${processes[@]}"; do
        ! pid_of "$name" >/dev/null || fail "$folder is up ($name runs); cluster.sh down ends it"
    done
    check_settings
    "$root/spark-submit.sh" --setup # which says what is missing, Java for one
    umask 077                       # keys, and images that may be nobody else's
    mkdir -p "$folder"/{run,logs,s3,spark,tables,nights}
    for name in "${settings[@]}"; do say "$name=${!name}"; done >"$folder/settings"
    make_keys
    set_environment
    weed=$(dirname "$python")/weed
    [[ -x $weed ]] || fail "$python has no SeaweedFS beside it: install requirements.lock there"
    trap stop_all EXIT # taken away again once all is ready
    trap 'exit 130' INT TERM

    start s3 "$weed" -logdir="$folder/logs" server -dir="$folder/s3" -ip=127.0.0.1 -ip.bind=127.0.0.1 \
        -s3 -s3.config="$folder/identities.json" -s3.port="$port" -s3.port.grpc=$((port + 1)) \
        -s3.port.iceberg=0 -s3.port.lance=0 -master.volumeSizeLimitMB=1024 -volume.max=0 -volume.preStopSeconds=1 \
        -master.port=$((port + 2)) -master.port.grpc=$((port + 3)) \
        -filer.port=$((port + 4)) -filer.port.grpc=$((port + 5)) \
        -volume.port=$((port + 6)) -volume.port.grpc=$((port + 7))
    spark_class=$("$python" -c 'from importlib.util import find_spec as f; print(f("pyspark").submodule_search_locations[0])')
    spark_class+=/bin/spark-class
    export SPARK_DAEMON_MEMORY=512m SPARK_MASTER_OPTS=-Dspark.master.rest.enabled=false # or it would listen on 6066
    # What a run left on the workers is of no use a week later.
    export SPARK_WORKER_OPTS='-Dspark.worker.cleanup.enabled=true -Dspark.worker.cleanup.appDataTtl=604800'
    start master "$spark_class" org.apache.spark.deploy.master.Master \
        --host 127.0.0.1 --port $((port + 8)) --webui-port $((port + 9))
    for name in 1 2; do
        SPARK_LOCAL_DIRS=$folder/spark/local start "worker-$name" "$spark_class" org.apache.spark.deploy.worker.Worker \
            --host 127.0.0.1 --port $((port + 8 + 2 * name)) --webui-port $((port + 9 + 2 * name)) \
            --cores "$cores" --memory "$memory" \
            --work-dir "$folder/spark/worker-$name" "$master"
    done
    await_ready
    start schedule "$self" _schedule --folder "$folder"
    trap - EXIT INT TERM
    say "S3      $endpoint, images at $images, keys in $folder/credentials"
    say "Spark   $master, its page $master_page"
    say "nights  at $at, by the model $model"
    say "tables  $folder/tables; the page $folder/report.html; logs $folder/nights"
}

await_ready() { # until S3 takes an object and both workers have registered, or something ends that should stay
    local waiter
    PYTHONPATH=$root timeout "$start_seconds" "$python" -P - "$endpoint" "$images" "$master_page/json/" <<'PY' &
import json, socket, sys, time, urllib.parse, urllib.request
from jobs.common.storage import Access, client

endpoint, images, page = sys.argv[1:]
server = urllib.parse.urlsplit(endpoint)
bucket = urllib.parse.urlsplit(images).netloc

def workers():
    try:
        with urllib.request.urlopen(page, timeout=5) as answer:
            return json.load(answer)["aliveworkers"]
    except OSError:
        return 0

def listens():
    with socket.socket() as probe:
        return probe.connect_ex((server.hostname, server.port)) == 0

while not listens():
    time.sleep(0.2)
s3 = client(Access(endpoint))
if bucket not in [found["Name"] for found in s3.list_buckets()["Buckets"]]:
    s3.create_bucket(Bucket=bucket)
s3.put_object(Bucket=bucket, Key=".ready", Body=b"")
s3.delete_object(Bucket=bucket, Key=".ready")
while workers() < 2:
    time.sleep(0.2)
PY
    waiter=$!
    wait -n || true
    ! kill -0 "$waiter" 2>/dev/null || { kill "$waiter" || true; }
    wait "$waiter" && return 0
    tail -n 5 "$folder"/logs/*.log >&2
    fail "it did not start; the logs are in $folder/logs"
}

put() { # files, and folders whose files go below the prefix by their path in the folder
    (($#)) || fail 'put what? Name files or folders'
    pid_of s3 >/dev/null || fail "$folder is not up: cluster.sh up"
    ours - "$endpoint" "$images" "$@" <<'PY'
import sys, urllib.parse
from pathlib import Path
from boto3.exceptions import Boto3Error
from botocore.exceptions import BotoCoreError
from jobs.common.storage import Access, client

place = urllib.parse.urlsplit(sys.argv[2])
s3 = client(Access(sys.argv[1]))
count = 0
for given in map(Path, sys.argv[3:]):
    if not given.exists():
        sys.exit(f"cluster.sh: {given}: no such file or folder")
    top = given if given.is_dir() else given.parent
    for file in sorted(given.rglob("*")) if given.is_dir() else [given]:
        if file.is_file():
            key = "/".join(filter(None, (place.path.strip("/"), file.relative_to(top).as_posix())))
            try:
                s3.upload_file(str(file), place.netloc, key)
            except (OSError, UnicodeError, BotoCoreError, Boto3Error) as error:
                sys.exit(f"cluster.sh: {ascii(str(file))}: {error}; {count} files were copied before")
            count += 1
print(f"{count} files are in {sys.argv[2]}")
PY
}

status() {
    local name pid last
    for name in s3 master worker-1 worker-2 schedule night; do
        if pid=$(pid_of "$name"); then say "$name: runs, process $pid"; else say "$name: does not run"; fi
    done
    last=$(find "$folder/nights" -mindepth 1 -maxdepth 1 | sort | tail -n 1)
    say "nights begin at $at; the last: ${last:-none}${last:+, status $(cat "$last/status" 2>/dev/null || say 'none: it runs, or was cut short')}"
}

down() {
    stop_all
    say "all has ended; images, tables and reports stay in $folder"
}

# --- Nights ----------------------------------------------------------------------------------------

due() { # day: when `at` is on it. The hour that summer time leaves out is no time of that day
    date -d "$1 $at" +%s || { date -ud "$at" >&2 && date -d "$1 03:00" +%s; }
}

schedule() { # runs a night whenever the time `at` goes by
    local before=$EPOCHSECONDS now day due
    while sleep 2; do
        read_settings
        now=$EPOCHSECONDS
        for day in yesterday today; do # a machine that slept wakes late
            due=$(due "$day" 2>/dev/null) || continue # somebody is at the settings
            if ((before < due && due <= now)); then
                "$self" night --folder "$folder" || say "$(date '+%F %T') the night ended with status $?"
                break
            fi
        done
        before=$now
    done
}

night() { # one at a time, as a process that `down` finds, whoever began it
    local status=0
    exec 8>"$folder/run/night.lock"
    flock -n 8 || fail 'a night is running'
    pid_of master >/dev/null || fail "$folder is not up: cluster.sh up"
    trap 'stop night; exit 130' INT TERM
    launch night "$self" _night --folder "$folder" # which holds the lock too
    wait "$!" || status=$?
    rm -f "$folder/run/night.pid"
    return "$status"
}

submit() { # a job on the cluster
    say "--- $*"
    "$root/spark-submit.sh" --master "$master" --executor-memory "$memory" "$@"
}

run_night() { # its log, its status, and where all went well what the next night is compared with
    local status=0
    tonight=$folder/nights/$(date +%Y-%m-%dT%H-%M-%S)
    mkdir -p "$tonight"
    run_jobs 2>&1 | tee "$tonight/log" || status=${PIPESTATUS[0]}
    say "$status" >"$tonight/status"
    return "$status"
}

run_jobs() {
    local tables=$folder/tables status=0 model_id decoder scored=()
    read -r model_id decoder < <(describe_model)
    [[ -z $references ]] || scored=(--references "$references" --scores "$tables/scores")
    submit jobs/caption_images.py --images "$images" --s3-endpoint "$endpoint" --captions "$tables/captions" \
        --model "$model" "${scored[@]}" || status=$?
    if [[ -n $references && -n $(find "$tables/scores/corpus" -newer "$folder/run/night.pid" -print -quit 2>/dev/null) ]]; then
        compare "$tables/scores" "$model_id" || status=$?
    else
        scored=()
    fi
    if [[ -d $tables/captions ]]; then
        [[ $decoder != show_attend_tell ]] || scored+=(--model "$model")
        submit jobs/report_captions.py --images "$images" --s3-endpoint "$endpoint" --captions "$tables/captions" \
            --out "$folder/report.html" "${scored[@]}" || status=$?
    fi
    return "$status"
}

describe_model() { # its model_id and its decoder
    ours -c 'import sys; from pathlib import Path; from nic_model.model_files import ModelFiles
files = ModelFiles.read(Path(sys.argv[1])); print(files.model_id, files.settings()[0].decoder)' "$model"
}

compare() { # scores, model_id: with the last night whose model was not worse than that of the one before
    local last
    last=$(find "$folder/nights" -name model | sort | tail -n 1)
    last=${last%/model}
    if [[ -n $last && $(cat "$last/model") != "$2" ]]; then
        submit jobs/compare_models.py --scores "$1" --baseline "$(cat "$last/model")" --candidate "$2" \
            --fail-if-worse "$metric" || return
    elif [[ -n $last ]]; then # the same model, of more images
        say "--- compared with the night of ${last##*/}"
        ours - "$last/corpus" "$1/corpus" "$2" <<'PY'
import sys
import pyarrow.parquet as pq

before, now = ({r["metric"]: r for r in pq.read_table(t).to_pylist() if r["model_id"] == sys.argv[3]} for t in sys.argv[1:3])
for metric, row in now.items():
    if metric in before and None not in (row["score"], before[metric]["score"]):
        old = before[metric]
        print(f"{metric:8} {old['score']:.1f} of {old['n_segments']} images -> {row['score']:.1f} of {row['n_segments']}")
PY
    fi
    cp -R "$1/corpus" "$tonight/corpus"
    say "$2" >"$tonight/model"
}

# --- Options ---------------------------------------------------------------------------------------

main() {
    local verb=${1:-help} given=() arguments=() option
    shift $(($# > 0))
    while (($#)); do
        case $1 in
        -h | --help) verb=help ;;
        --folder)
            (($# > 1)) || fail "$1 needs a value"
            folder=$2
            shift
            ;;
        --*)
            [[ $verb == up && " ${settings[*]} " == *" ${1#--} "* ]] || fail "$1: no such option; --help lists them"
            (($# > 1)) || fail "$1 needs a value"
            given+=("${1#--}=$2")
            shift
            ;;
        *) arguments+=("$1") ;;
        esac
        shift
    done
    [[ $verb == put || ${#arguments[@]} == 0 ]] || fail "${arguments[0]}: $verb takes options only"

    case $verb in
    up)
        [[ ! -f $folder/settings ]] || read_settings
        for option in "${given[@]}"; do printf -v "${option%%=*}" '%s' "${option#*=}"; done
        up
        ;;
    put | status | down | night | _night | _schedule)
        folder=$(realpath -m "$folder")
        read_settings
        set_environment
        case $verb in
        _night) run_night ;;
        _schedule) schedule ;;
        put) put "${arguments[@]}" ;;
        night) night ;;
        status) status ;;
        down) down ;;
        esac
        ;;
    -h | --help | help) usage ;;
    *) fail "$verb: no such command; --help lists them" ;;
    esac
}

# On one line, so that all has been read before it runs: the schedule outlives changes of this file.
main "$@"; exit
