#!/bin/sh
# Caption all images of a folder and detect their objects: batch.sh FOLDER [URL]
# The same command again continues where it was stopped.
set -eu
florence2 batch "$1" --tasks caption,od --out answers.jsonl --coco objects.json --url "${2:-grpc://127.0.0.1:8001}"
