#!/usr/bin/env bash
# One run on GKE: a JobSet, queued by Kueue; or the same through xpk. See launch/README.md.
#
#   NAME=zero QUEUE=default-queue ACCELERATOR=tpu-v5-lite-podslice TOPOLOGY=4x8 HOSTS=8 \
#     launch/gke.sh submit train configs/large.py --run gs://bucket/large
#   NAME=zero QUEUE=default-queue ACCELERATOR=nvidia-h100-80gb CHIPS=8 HOSTS=2 \
#     launch/gke.sh submit train configs/large.py --run gs://bucket/large
#   NAME=zero CLUSTER=tpus TPU_TYPE=v5litepod-32 launch/gke.sh xpk train ...
#
# submit ARGS...  the last commit as a ConfigMap, a JobSet of HOSTS pods that runs `jaxzero ARGS...`
# xpk ARGS...     `xpk workload create` on a cluster that xpk made
# status, logs    what Kueue and JobSet say of it; the first host's log
# delete          take both objects away, whatever runs
# Before any of these, --dry-run prints the commands and the JobSet, and runs nothing. Also:
# CHIPS, CPU and MEMORY of a host (4 or 8, 8, 32Gi), SLICES (1), SPOT=1, SERVICE_ACCOUNT, IMAGE.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source-path=SCRIPTDIR source=common.sh
source launch/common.sh

# What an install needs, and no more: a ConfigMap holds 1 MiB.
code=(pyproject.toml README.md LICENSE jaxzero configs)

jobset() { # the template, filled
  need QUEUE default-queue
  need ACCELERATOR tpu-v5-lite-podslice
  need HOSTS 8
  local yaml key cpu memory gke=cloud.google.com/gke
  local -A fill=(
    [NAME]="$NAME" [QUEUE]="$QUEUE" [HOSTS]="$HOSTS" [ARGUMENTS]="$(quoted "$@")"
    [IMAGE]="${IMAGE:-python:3.12}" [SERVICE_ACCOUNT]="${SERVICE_ACCOUNT:-default}"
  )
  if [[ "$ACCELERATOR" == tpu-* ]]; then
    need TOPOLOGY 4x8
    fill+=(
      [SLICES]="${SLICES:-1}" [RESOURCE]=google.com/tpu [CHIPS]="${CHIPS:-4}" [EXTRA]="tpu,gcs"
      [ANNOTATIONS]="alpha.jobset.sigs.k8s.io/exclusive-topology: $gke-nodepool"
      [SELECTOR]="$gke-tpu-accelerator: $ACCELERATOR, $gke-tpu-topology: $TOPOLOGY"
      [JOIN]="JAXZERO_COORDINATOR=auto"
    )
  else
    # The name of the first pod outlives it; GKE mounts the driver where python images do not look.
    fill+=(
      [SLICES]=1 [RESOURCE]=nvidia.com/gpu [CHIPS]="${CHIPS:-8}"
      [EXTRA]="cuda12,gcs" [ANNOTATIONS]=""
      [SELECTOR]="$gke-accelerator: $ACCELERATOR"
      [JOIN]="JAXZERO_COORDINATOR=$NAME-worker-0-0.$NAME:8476 JAXZERO_NUM_PROCESSES=$HOSTS \
JAXZERO_PROCESS_ID=\$JOB_COMPLETION_INDEX LD_LIBRARY_PATH=/usr/local/nvidia/lib64"
    )
  fi
  fill[SELECTOR]+="${SPOT:+, $gke-spot: \"true\"}"
  # A queue without quota for cpu and memory admits nothing that asks for them: CPU= MEMORY= then.
  cpu="${CPU-8}" memory="${MEMORY-32Gi}"
  fill[REQUESTS]="${cpu:+, cpu: $cpu}${memory:+, memory: $memory}"
  yaml="$(< launch/gke_jobset.yaml)"
  for key in "${!fill[@]}"; do yaml="${yaml//"@$key@"/"${fill[$key]}"}"; done
  tail -n +2 <<< "$yaml"
}
submit() {
  need_arguments "$@"
  local manifest archive="${TMPDIR:-/tmp}/jaxzero-$NAME.tar.gz"
  manifest="$(jobset "$@")"
  [[ -n "$dry" ]] || git archive --format=tar.gz --output="$archive" HEAD "${code[@]}"
  call kubectl create configmap "$NAME-code" --from-file=jaxzero.tar.gz="$archive"
  call kubectl create --filename=- <<< "$manifest"
  [[ -z "$dry" ]] || echo "$manifest"
  expect "launch/gke.sh logs"
}
xpk_create() {
  need_arguments "$@"
  need CLUSTER tpus
  need TPU_TYPE v5litepod-32
  local folder="${TMPDIR:-/tmp}/jaxzero-$NAME.XXXXXX"
  if [[ -z "$dry" ]]; then
    folder="$(mktemp -d "$folder")"
    git archive HEAD "${code[@]}" | tar -x -C "$folder"
  fi
  # xpk starts what failed again only on codes that it is told, and counts every start.
  call xpk workload create --workload="$NAME" --cluster="$CLUSTER" --tpu-type="$TPU_TYPE" \
    --num-slices="${SLICES:-1}" --base-docker-image="${IMAGE:-python:3.12}" --script-dir="$folder" \
    --env=JAXZERO_COORDINATOR=auto --max-restarts=50 --restart-on-exit-codes=1,3 \
    --termination-grace-period-seconds=300 \
    --command="pip install --quiet -e '.[tpu,gcs]' && exec jaxzero $(quoted "$@")"
  expect "the log that xpk links to"
}

dry=""
if [[ "${1:-}" == --dry-run ]]; then dry=dry; shift; fi
need NAME zero
verb="${1:-}"
case "$verb" in
  submit) submit "${@:2}" ;;
  xpk) xpk_create "${@:2}" ;;
  status) call kubectl describe "jobset/$NAME"; call kubectl get workloads.kueue.x-k8s.io ;;
  logs)
    first="jobset.sigs.k8s.io/job-index=0,batch.kubernetes.io/job-completion-index=0"
    call kubectl logs --follow --tail=-1 --selector="jobset.sigs.k8s.io/jobset-name=$NAME,$first"
    ;;
  delete) call kubectl delete --ignore-not-found "jobset/$NAME" "configmap/$NAME-code" ;;
  *) die 2 "unknown verb '$verb'; use submit, xpk, status, logs, delete." ;;
esac
