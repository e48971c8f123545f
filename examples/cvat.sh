#!/bin/sh
# Annotate the images of a CVAT task with its labels: cvat.sh TASK_ID LABELS [URL]
# LABELS such as "a red car=car,person". CVAT_HOST and CVAT_ACCESS_TOKEN name the CVAT server and your key to it.
set -eu
cvat-cli --server-host "${CVAT_HOST:-https://app.cvat.ai}" task auto-annotate "$1" --allow-unmatched-labels \
    --conf-threshold 0.5 --function-module florence2_client.integrations.cvat \
    -p "labels=str:$2" -p "url=str:${3:-grpc://127.0.0.1:8001}"
