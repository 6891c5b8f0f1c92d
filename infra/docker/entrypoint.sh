#!/usr/bin/env bash
# What Spark on Kubernetes asks of an image: `driver ARGUMENTS` and `executor`, told the rest in SPARK_* variables.
# Any other command is run as it is: docker run IMAGE spark-submit /opt/nic/jobs/caption_images.py --help
set -euo pipefail

spark_conf=${SPARK_CONF_DIR:-/opt/nic/conf} # Spark mounts its own on a driver that it starts

case ${1:-} in
driver)
    shift
    exec "$SPARK_HOME/bin/spark-submit" --deploy-mode client \
        --conf "spark.driver.bindAddress=$SPARK_DRIVER_BIND_ADDRESS" \
        --conf "spark.executorEnv.SPARK_DRIVER_POD_IP=$SPARK_DRIVER_BIND_ADDRESS" "$@"
    ;;
executor)
    java_options=()
    while IFS= read -r name; do # SPARK_JAVA_OPT_0, SPARK_JAVA_OPT_1, ...
        java_options+=("${!name}")
    done < <(compgen -e SPARK_JAVA_OPT_ | sort -t_ -k4 -n)
    exec java ${java_options[@]+"${java_options[@]}"} \
        "-Xms$SPARK_EXECUTOR_MEMORY" "-Xmx$SPARK_EXECUTOR_MEMORY" \
        -cp "$spark_conf:${SPARK_CLASSPATH:-}:$SPARK_HOME/jars/*" \
        org.apache.spark.scheduler.cluster.k8s.KubernetesExecutorBackend \
        --driver-url "$SPARK_DRIVER_URL" --executor-id "$SPARK_EXECUTOR_ID" --cores "$SPARK_EXECUTOR_CORES" \
        --app-id "$SPARK_APPLICATION_ID" --hostname "$SPARK_EXECUTOR_POD_IP" \
        --resourceProfileId "$SPARK_RESOURCE_PROFILE_ID" --podName "$SPARK_EXECUTOR_POD_NAME"
    ;;
*)
    export SPARK_CONF_DIR=$spark_conf
    exec "$@"
    ;;
esac
