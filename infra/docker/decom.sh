#!/usr/bin/env bash
# What Spark has Kubernetes run before it ends an executor, as where a node is drained (its setting
# spark.kubernetes.decommission.script is /opt/decom.sh): it tells the executor, which takes no more tasks and hands on
# what it holds, and waits until that is done or the pod's time is up.
set -euo pipefail
pid=$(pgrep -o -f KubernetesExecutorBackend) || exit 0
kill -s PWR "$pid"
tail --pid="$pid" -f /dev/null
