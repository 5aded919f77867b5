#!/usr/bin/env bash
# One run on a Cloud TPU slice: the same command on every host. See launch/README.md.
#
#   TPU_NAME=zero ZONE=us-west4-a TPU_TYPE=v5litepod-32 \
#     launch/tpu_vm.sh up train configs/large.py --run gs://bucket/large
#
# create             ask for the slice (a queued resource; SPOT=1 for a preemptible one)
# wait               until it is there
# install            copy the last commit to every host and install jaxzero[tpu,gcs] there
# run ARGS...        start `jaxzero ARGS...` on every host; it goes on when you log out
# logs               follow host 0's log
# up ARGS...         create, wait, install, run
# restart ARGS...    if the slice was preempted: delete its remains, then up; else: run
# watch ARGS...      look every minute, restart what was preempted or stopped, until it is done
# delete             give the slice back, whatever runs on it
# Before any of these, --dry-run prints the gcloud commands and runs none.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source-path=SCRIPTDIR source=common.sh
source launch/common.sh

tpus() { call gcloud compute tpus "$@" --zone="$ZONE"; }
queued() { tpus queued-resources "$1" "$TPU_NAME" "${@:2}"; }
on_hosts() { tpus tpu-vm ssh "$TPU_NAME" --worker="$1" --command="$2"; }

create() {
  need TPU_TYPE v5litepod-16
  queued create --node-id="$TPU_NAME" --accelerator-type="$TPU_TYPE" \
    --runtime-version="${TPU_RUNTIME:-v2-alpha-tpuv5-lite}" ${SPOT:+--spot}
}
state() { queued describe --format='value(state.state)'; }
wait_active() {
  local now
  while true; do
    if [[ -n "$dry" ]]; then state; return; fi
    now="$(state)"
    case "$now" in
      ACTIVE) return ;;
      FAILED | SUSPENDING | SUSPENDED) die 1 "$TPU_NAME is $now." ;;
    esac
    say "$TPU_NAME is $now; looking again in ${POLL_S:-60} s"
    sleep "${POLL_S:-60}"
  done
}
install() {
  local archive="${TMPDIR:-/tmp}/jaxzero-$TPU_NAME.tar.gz"
  [[ -n "$dry" ]] || git archive --format=tar.gz --output="$archive" HEAD
  tpus tpu-vm scp "$archive" "$TPU_NAME:jaxzero.tar.gz" --worker=all
  # The images come with Python 3.10; uv brings the one that jaxzero needs.
  on_hosts all "set -e; mkdir -p jaxzero; tar -xzf jaxzero.tar.gz -C jaxzero; cd jaxzero; \
python3 -m pip install --quiet --user uv; \
python3 -m uv venv --quiet --seed --allow-existing --python 3.12 ~/jaxzero-env; \
~/jaxzero-env/bin/pip install -e '.[tpu,gcs]'"
}
run() {
  need_arguments "$@"
  on_hosts all "cd jaxzero; (trap '' HUP; export JAXZERO_COORDINATOR=auto; \
~/jaxzero-env/bin/jaxzero $(quoted "$@"); echo \"exit code \$?\") \
>> ~/jaxzero.log 2>&1 < /dev/null &"
  expect "launch/tpu_vm.sh logs"
}
up() { need_arguments "$@"; create; wait_active; install; run "$@"; }
restart() {
  need_arguments "$@"
  local now=ACTIVE
  if [[ -n "$dry" ]]; then state; else now="$(state)"; fi
  case "$now" in
    ACTIVE) run "$@" ;;
    SUSPENDED | FAILED) queued delete --force --quiet; up "$@" ;;
    *) die 1 "$TPU_NAME is $now; try again when it is ACTIVE, SUSPENDED or FAILED." ;;
  esac
}
watch() {
  need_arguments "$@"
  local crashes=0 look="pgrep -x jaxzero > /dev/null && echo running || tail -n 1 ~/jaxzero.log"
  if [[ -n "$dry" ]]; then state; on_hosts 0 "$look"; run "$@"; return; fi
  while sleep "${POLL_S:-60}"; do
    case "$(state)" in
      SUSPENDED | FAILED) restart "$@"; continue ;;
      ACTIVE) ;;
      *) continue ;;
    esac
    case "$(on_hosts 0 "$look")" in
      running) ;;
      "exit code 0") say "done; the slice costs until launch/tpu_vm.sh delete"; return ;;
      "exit code 2") die 2 "bad input: look at its log, then run again." ;;
      "exit code 3") run "$@" ;; # saved after a signal
      *) # crashed, or the host was rebooted
        ((++crashes <= 3)) || die 1 "stopped 3 times without having been told to: look at its log."
        run "$@" ;;
    esac
  done
}

dry=""
if [[ "${1:-}" == --dry-run ]]; then dry=dry; shift; fi
need TPU_NAME zero
need ZONE us-west4-a
verb="${1:-}"
case "$verb" in
  create | install) "$verb" ;;
  run | up | restart | watch) "$verb" "${@:2}" ;;
  wait) wait_active ;;
  logs) on_hosts 0 "tail -n 100 -F ~/jaxzero.log" ;;
  delete) queued delete --force --quiet ;;
  *) die 2 "unknown verb '$verb': create, wait, install, run, logs, up, restart, watch or delete." ;;
esac
