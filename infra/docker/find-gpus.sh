#!/usr/bin/env bash
# Tells Spark which GPUs an executor has, as its discovery script must.
set -euo pipefail
nvidia-smi --query-gpu=index --format=csv,noheader |
    awk '{ list = list (NR > 1 ? ", " : "") "\"" $1 "\"" } END { printf "{\"name\": \"gpu\", \"addresses\": [%s]}\n", list }'
