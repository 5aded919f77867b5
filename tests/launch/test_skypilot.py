"""`skypilot.sh` and its task: which fields it has, what each node runs, and when again."""

from __future__ import annotations

import shlex

import jsonschema
import pytest
import schemas
import yaml
from shells import LAUNCH, TRAIN, StandIns, run

SKY = [LAUNCH / "skypilot.sh"]
TASK = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
NODE = {
  "SKYPILOT_NODE_IPS": "10.0.0.7\n10.0.0.8",
  "SKYPILOT_NUM_NODES": "2",
  "SKYPILOT_NODE_RANK": "1",
  "EXTRA": "cuda12,gcs",
  "ARGUMENTS": shlex.join(TRAIN),
}


def on_a_node(tmp_path, codes, **env):
  """Runs the task's `run` with a jaxzero that ends with each code in turn."""
  stand_ins = StandIns(tmp_path)
  home = tmp_path / "home" / "jaxzero-env" / "bin"
  home.mkdir(parents=True)
  code = stand_ins.answer("codes", [str(code) for code in codes])
  stand_ins.add("jaxzero", f"env | grep ^JAXZERO | sort > joined; exit $({code})")
  (tmp_path / "jaxzero").rename(home / "jaxzero")
  out = run(["bash", "-c", TASK["run"]], {**NODE, **env, "HOME": str(tmp_path / "home")})
  return out.returncode, stand_ins.calls, (tmp_path / "joined").read_text().splitlines()


def test_the_task_has_only_fields_that_sky_has():
  jsonschema.validate(TASK, schemas.SKY_TASK)
  with pytest.raises(jsonschema.ValidationError, match="recover_on_exit_code"):
    jsonschema.validate({**TASK, "recover_on_exit_code": [3]}, schemas.SKY_TASK)


def test_a_saved_run_is_recovered_and_bad_input_is_not():
  recovery = TASK["resources"]["job_recovery"]
  assert recovery["recover_on_exit_codes"] == [3]
  assert "max_restarts_on_errors" not in recovery  # it would not spare code 2


@pytest.mark.parametrize(
  ("codes", "starts"),
  [([0], 1), ([2], 1), ([3], 1), ([1, 0], 2), ([134, 3], 2), ([1, 1, 1, 0], 3)],
)
def test_a_node_tries_a_crash_again_and_passes_on_the_last_code(tmp_path, codes, starts):
  code, calls, _ = on_a_node(tmp_path, codes)
  assert (code, len(calls)) == (codes[starts - 1], starts)
  assert all(call[1:] == list(TRAIN) for call in calls)


def test_gpu_nodes_meet_at_the_first_and_tpu_hosts_by_jax(tmp_path):
  (tmp_path / "gpu").mkdir()
  (tmp_path / "tpu").mkdir()
  assert on_a_node(tmp_path / "gpu", [0])[2] == [
    "JAXZERO_COORDINATOR=10.0.0.7:8476",
    "JAXZERO_NUM_PROCESSES=2",
    "JAXZERO_PROCESS_ID=1",
  ]
  joined = on_a_node(tmp_path / "tpu", [0], EXTRA="tpu,gcs")[2]
  assert joined == ["JAXZERO_COORDINATOR=auto"]


def test_launch_names_the_job_and_hands_over_the_arguments(tmp_path):
  stand_ins = StandIns(tmp_path)
  stand_ins.add("sky")
  env = {"NAME": "zero", "NODES": "2", "GPUS": "A100:8", **stand_ins.env}
  for verb in ("launch", "status", "logs", "cancel"):
    assert run([*SKY, verb, *TRAIN], env).returncode == 0
  launch, *others = stand_ins.calls
  assert launch[:3] == ["sky", "jobs", "launch"]
  assert {"--name=zero", "--num-nodes=2", "--gpus=A100:8"} <= set(launch)
  assert "--yes" not in launch  # sky shows the price and asks
  arguments = next(word for word in launch if word.startswith("--env=ARGUMENTS="))
  assert shlex.split(arguments.removeprefix("--env=ARGUMENTS=")) == list(TRAIN)
  assert [call[2] for call in others] == ["queue", "logs", "cancel"]


def test_every_variable_that_the_task_needs_is_sent():
  sent = {"EXTRA", "ARGUMENTS"}
  assert set(TASK["envs"]) == sent
  text = (LAUNCH / "skypilot.sh").read_text()
  assert all(f"--env={name}=" in text.replace('"', "") for name in sent)
