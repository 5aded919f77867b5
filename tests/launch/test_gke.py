"""`gke.sh`: the JobSet that it fills, what becomes of it after a failure, and xpk's command."""

from __future__ import annotations

import copy
import re
import tarfile

import jsonschema
import pytest
import schemas
import yaml
from shells import LAUNCH, TRAIN, StandIns, run

GKE = [LAUNCH / "gke.sh"]
COMMON = {"NAME": "zero", "QUEUE": "default-queue"}
TPU = {**COMMON, "ACCELERATOR": "tpu-v5-lite-podslice", "TOPOLOGY": "4x8", "HOSTS": "8"}
GPU = {**COMMON, "ACCELERATOR": "nvidia-h100-80gb", "HOSTS": "2"}
FOREVER = "RestartJobSetAndIgnoreMaxRestarts"


def jobset(env):
  out = run([*GKE, "--dry-run", "submit", *TRAIN], env)
  assert out.returncode == 0, out.stderr
  document = yaml.safe_load(out.stdout.partition("--filename=-\n")[2])
  job = document["spec"]["replicatedJobs"][0]["template"]["spec"]
  return document, job, job["template"]["spec"]


@pytest.mark.parametrize("env", [TPU, GPU, {**TPU, "SPOT": "1", "SLICES": "2"}])
def test_the_jobset_has_only_fields_that_jobset_and_kubernetes_have(env):
  document, _, pod = jobset(env)
  jsonschema.validate(document, schemas.JOBSET)
  mounts = {mount["name"] for mount in pod["containers"][0]["volumeMounts"]}
  assert mounts == {volume["name"] for volume in pod["volumes"]}
  assert document["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "default-queue"
  assert "@" not in yaml.safe_dump(document)


@pytest.mark.parametrize("path", [("spec",), ("spec", "failurePolicy"), ("metadata",)])
def test_a_misspelt_field_is_refused(path):
  document = copy.deepcopy(jobset(TPU)[0])
  place = document
  for key in path:
    place = place[key]
  place["maxRestart"] = 3
  with pytest.raises(jsonschema.ValidationError, match="maxRestart"):
    jsonschema.validate(document, schemas.JOBSET)


def test_tpu_hosts_find_each_other_by_jax():
  document, job, pod = jobset({**TPU, "SLICES": "2"})
  assert document["spec"]["replicatedJobs"][0]["replicas"] == 2
  assert (job["parallelism"], job["completions"]) == (8, 8)
  assert pod["nodeSelector"] == {
    "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
    "cloud.google.com/gke-tpu-topology": "4x8",
  }
  script = pod["containers"][0]["command"][-1]
  assert ".[tpu,gcs]" in script
  assert "export JAXZERO_COORDINATOR=auto\n" in script
  assert script.endswith("exec jaxzero train configs/large.py --run 'gs://bucket/a run'\n")


def test_gpu_hosts_find_each_other_by_the_first_pods_name():
  """<jobset>-<replicated job>-<job index>-<pod index>.<jobset>, as JobSet publishes it."""
  document, job, pod = jobset(GPU)
  replicated = document["spec"]["replicatedJobs"][0]["name"]
  script = pod["containers"][0]["command"][-1]
  assert f"JAXZERO_COORDINATOR=zero-{replicated}-0-0.zero:8476" in script
  assert "JAXZERO_NUM_PROCESSES=2 JAXZERO_PROCESS_ID=$JOB_COMPLETION_INDEX" in script
  assert job["completionMode"] == "Indexed"
  assert ".[cuda12,gcs]" in script


@pytest.mark.parametrize(
  ("env", "expected"),
  [
    (TPU, {"google.com/tpu": 4, "cpu": 8, "memory": "32Gi"}),
    ({**GPU, "CPU": "96", "MEMORY": "1Ti"}, {"nvidia.com/gpu": 8, "cpu": 96, "memory": "1Ti"}),
    ({**TPU, "CPU": "", "MEMORY": ""}, {"google.com/tpu": 4}),
  ],
)
def test_pods_ask_for_what_they_are_told_to(env, expected):
  assert jobset(env)[2]["containers"][0]["resources"]["requests"] == expected


def outcome(document, job, exit_code, disrupted=False):
  """What JobSet does when a pod ends so: Kubernetes' pod failure policy, then JobSet's rules."""
  reason, message = "BackoffLimitExceeded", "Job has reached the specified backoff limit"
  for index, rule in enumerate(job["podFailurePolicy"]["rules"]):
    if disrupted and any(c["type"] == "DisruptionTarget" for c in rule.get("onPodConditions", ())):
      reason = "PodFailurePolicy"
      message = (
        f"Pod default/p has condition DisruptionTarget matching FailJob rule at index {index}"
      )
      break
    if exit_code in rule.get("onExitCodes", {}).get("values", ()):
      reason = "PodFailurePolicy"
      message = (
        f"Container jaxzero for pod default/p failed with exit code {exit_code} "
        f"matching FailJob rule at index {index}"
      )
      break
  for rule in document["spec"]["failurePolicy"]["rules"]:
    patterns = rule.get("onJobFailureMessagePatterns", [""])
    if reason in rule["onJobFailureReasons"] and any(re.search(p, message) for p in patterns):
      return rule["action"]
  return "RestartJobSet"


@pytest.mark.parametrize(
  ("exit_code", "disrupted", "action"),
  [
    (3, False, FOREVER),
    (3, True, FOREVER),
    (137, True, FOREVER),
    (2, False, "FailJobSet"),
    (1, False, "RestartJobSet"),
    (134, False, "RestartJobSet"),
  ],
)
def test_a_failure_is_answered_as_its_exit_code_says(exit_code, disrupted, action):
  document, job, _ = jobset(TPU)
  assert outcome(document, job, exit_code, disrupted) == action
  assert document["spec"]["failurePolicy"]["maxRestarts"] == 3  # of those that count
  assert job["backoffLimit"] == 0


def test_submit_sends_the_last_commit_then_the_jobset(tmp_path):
  stand_ins = StandIns(tmp_path)
  stand_ins.add("kubectl", '[[ "$2" != --filename=- ]] || cat > manifest')
  out = run([*GKE, "submit", *TRAIN], {**TPU, **stand_ins.env})
  assert out.returncode == 0, out.stderr
  assert [call[1:3] for call in stand_ins.calls] == [
    ["create", "configmap"],
    ["create", "--filename=-"],
  ]
  sent = yaml.safe_load((tmp_path / "manifest").read_text())
  assert sent == jobset(TPU)[0]
  volume = sent["spec"]["replicatedJobs"][0]["template"]["spec"]["template"]["spec"]["volumes"][0]
  assert volume["configMap"]["name"] == stand_ins.calls[0][3]
  archive = stand_ins.calls[0][4].removeprefix("--from-file=jaxzero.tar.gz=")
  with tarfile.open(archive) as tar:
    names = set(tar.getnames())
  assert {"pyproject.toml", "README.md", "jaxzero/__init__.py", "configs/smoke.py"} <= names
  assert (tmp_path / archive).stat().st_size < 2**20, "more than a ConfigMap holds"


@pytest.mark.parametrize("verb", ["submit", "xpk", "status", "logs"])
def test_it_deletes_only_when_told_to(tmp_path, verb):
  stand_ins = StandIns(tmp_path)
  for name in ("kubectl", "xpk"):
    stand_ins.add(name)
  env = {**TPU, **stand_ins.env, "CLUSTER": "tpus", "TPU_TYPE": "v5litepod-32"}
  assert run([*GKE, verb, *TRAIN], env).returncode == 0
  assert stand_ins.calls and not any("delete" in call for call in stand_ins.calls)
  run([*GKE, "delete"], env)
  assert stand_ins.calls[-1][1] == "delete"
  assert stand_ins.calls[-1][-2:] == ["jobset/zero", "configmap/zero-code"]


def test_xpk_gets_the_last_commit_and_the_codes_to_start_again_on(tmp_path):
  stand_ins = StandIns(tmp_path)
  stand_ins.add("xpk")
  env = {"NAME": "zero", "CLUSTER": "tpus", "TPU_TYPE": "v5litepod-32", **stand_ins.env}
  out = run([*GKE, "xpk", *TRAIN], env)
  assert out.returncode == 0, out.stderr
  (call,) = stand_ins.calls
  assert call[1:3] == ["workload", "create"]
  flags = dict(word.removeprefix("--").split("=", 1) for word in call[3:])
  assert flags["restart-on-exit-codes"] == "1,3"  # not 2
  assert flags["command"].endswith("exec jaxzero train configs/large.py --run 'gs://bucket/a run'")
  assert (tmp_path / flags["script-dir"] / "jaxzero" / "__init__.py").exists()


@pytest.mark.parametrize("missing", ["NAME", "QUEUE", "ACCELERATOR", "TOPOLOGY", "HOSTS"])
def test_what_is_missing_is_named(missing):
  out = run([*GKE, "--dry-run", "submit", *TRAIN], {**TPU, missing: ""})
  assert (out.returncode, f"set {missing}" in out.stderr) == (2, True)
