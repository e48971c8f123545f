#!/bin/sh
# Detect objects with curl: generate.sh IMAGE [HOST:PORT]
set -eu
image=$1
address=${2:-127.0.0.1:8000}
printf '{"IMAGE": "%s", "TASK": "<OD>"}' "$(base64 <"$image" | tr -d '\n')" |
    curl --silent --fail-with-body --header 'Content-Type: application/json' --data @- \
        "http://$address/v2/models/florence2_ensemble/generate"
