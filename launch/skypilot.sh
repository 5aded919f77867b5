#!/usr/bin/env bash
# One run as a managed job of SkyPilot: it finds the machines, and others after a preemption.
#
#   NAME=zero NODES=2 GPUS=H100:8 \
#     launch/skypilot.sh launch train configs/large.py --run gs://bucket/large
#
# launch ARGS...  `sky jobs launch` of skypilot.yaml; sky shows the price and asks first
# status, logs    sky's queue; the log of the job NAME
# cancel          end the job NAME and give its machines back
# Before any of these, --dry-run prints sky's command and what it would run, and runs nothing. Also:
# EXTRA (cuda12,gcs; tpu,gcs on TPUs). Credentials are sky's own.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source-path=SCRIPTDIR source=common.sh
source launch/common.sh

launch() {
  need_arguments "$@"
  # `sky jobs launch` has no dry run of its own.
  call sky jobs launch --name="$NAME" --num-nodes="${NODES:-1}" --gpus="${GPUS:-H100:8}" \
    --env="EXTRA=${EXTRA:-cuda12,gcs}" --env="ARGUMENTS=$(quoted "$@")" --detach-run \
    launch/skypilot.yaml
  [[ -z "$dry" ]] || cat launch/skypilot.yaml
  expect "launch/skypilot.sh logs"
}

dry=""
if [[ "${1:-}" == --dry-run ]]; then dry=dry; shift; fi
need NAME zero
verb="${1:-}"
case "$verb" in
  launch) launch "${@:2}" ;;
  status) call sky jobs queue ;;
  logs) call sky jobs logs --name="$NAME" ;;
  cancel) call sky jobs cancel --name="$NAME" ;;
  *) die 2 "unknown verb '$verb'; use launch, status, logs, cancel." ;;
esac
