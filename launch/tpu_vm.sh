#!/usr/bin/env bash
# One job on a Cloud TPU slice: the same command on every host. See launch/README.md.
#
#   TPU_NAME=zero ZONE=us-west4-a TPU_TYPE=v5litepod-32 \
#     launch/tpu_vm.sh up train configs/large.py --run /mnt/shared/runs/large
#
# create             ask for the slice (a queued resource; SPOT=1 for a preemptible one)
# wait               until it is there
# install            copy the last commit to every host and install jaxzero[tpu] there
# run ARGS...        start `jaxzero ARGS...` on every host; it goes on when you log out
# logs               follow host 0's log
# up ARGS...         create, wait, install, run
# restart ARGS...    if the slice was preempted: delete its remains, then up; else: run
# watch ARGS...      look every minute, and restart after a preemption
# delete             give the slice back, whatever runs on it
# Before any of these, --dry-run prints the gcloud commands and runs none.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

say() { echo "tpu_vm.sh: $*" >&2; }
die() { say "$2"; exit "$1"; }
need() { [[ -n "${!1:-}" ]] || die 2 "set $1, for example $1=$2."; }
show() { # the command as one could type it
  local word line=""
  for word in "$@"; do
    [[ "$word" =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word="${word@Q}"
    line+="$word "
  done
  echo "${line% }"
}
call() { show "$@" >&"$trace"; [[ -n "$dry" ]] || "$@"; }
queued() { call gcloud compute tpus queued-resources "$1" "$TPU_NAME" --zone="$ZONE" "${@:2}"; }
on_hosts() { call gcloud compute tpus tpu-vm ssh "$TPU_NAME" --zone="$ZONE" --worker="$1" --command="$2"; }

create() {
  need TPU_TYPE v5litepod-16
  queued create --node-id="$TPU_NAME" --accelerator-type="$TPU_TYPE" \
    --runtime-version="${TPU_RUNTIME:-v2-alpha-tpuv5-lite}" ${SPOT:+--spot}
}
state() { queued describe --format='value(state.state)'; }
wait_active() {
  local now
  while true; do
    now="$(state)"
    case "${dry:-$now}" in
      dry | ACTIVE) return ;;
      FAILED | SUSPENDING | SUSPENDED) die 1 "$TPU_NAME is $now." ;;
    esac
    say "$TPU_NAME is $now; looking again in ${POLL_S:-60} s"
    sleep "${POLL_S:-60}"
  done
}
install() {
  local archive="${TMPDIR:-/tmp}/jaxzero-$TPU_NAME.tar.gz"
  [[ -n "$dry" ]] || git archive --format=tar.gz --output="$archive" HEAD
  call gcloud compute tpus tpu-vm scp "$archive" "$TPU_NAME:jaxzero.tar.gz" --zone="$ZONE" --worker=all
  # The images come with Python 3.10; uv brings the one that jaxzero needs.
  on_hosts all "set -e; mkdir -p jaxzero; tar -xzf jaxzero.tar.gz -C jaxzero; cd jaxzero; \
python3 -m pip install --quiet --user uv; \
python3 -m uv venv --quiet --seed --allow-existing --python 3.12 ~/jaxzero-env; \
~/jaxzero-env/bin/pip install -e '.[tpu]'"
}

run() {
  (($#)) || die 2 "give jaxzero's arguments, such as: train configs/large.py --run DIR."
  local arguments
  printf -v arguments ' %q' "$@"
  on_hosts all "cd jaxzero; JAXZERO_COORDINATOR=auto nohup ~/jaxzero-env/bin/jaxzero$arguments \
>> ~/jaxzero.log 2>&1 < /dev/null &"
}

up() { create; wait_active; install; run "$@"; }
restart() {
  local now
  now="$(state)"
  case "${dry:-$now}" in
    dry | ACTIVE) run "$@" ;;
    SUSPENDED | FAILED) queued delete --force --quiet; up "$@" ;;
    *) die 1 "$TPU_NAME is $now; try again when it is ACTIVE, SUSPENDED or FAILED." ;;
  esac
}
watch() {
  while sleep "${POLL_S:-60}"; do
    case "$(state)" in SUSPENDED | FAILED) restart "$@" ;; esac
  done
}
dry="" # or the word dry: then the commands are the output
if [[ "${1:-}" == --dry-run ]]; then dry=dry; shift; exec {trace}>&1; else exec {trace}>&2; fi
need TPU_NAME zero
need ZONE us-west4-a
verb="${1:-}"
case "$verb" in
  create | install) "$verb" ;;
  run | up | restart | watch) "$verb" "${@:2}" ;;
  wait) wait_active ;;
  logs) on_hosts 0 "tail -n 100 -F ~/jaxzero.log" ;;
  delete) queued delete --force --quiet ;;
  *) die 2 "unknown verb '$verb'; use create, wait, install, run, logs, up, restart, watch, delete." ;;
esac
