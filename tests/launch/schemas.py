"""The fields that the launch files use, as their owners publish them; any other is refused.

JobSet: config/components/crd/bases/jobset.x-k8s.io_jobsets.yaml of kubernetes-sigs/jobset, 0.10 or
newer, whose pod template is Kubernetes' own. SkyPilot: sky/utils/schemas.py of 0.14.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]
TEXT: Schema = {"type": "string", "minLength": 1}
COUNT: Schema = {"type": "integer", "minimum": 1}
QUANTITY: Schema = {"type": ["integer", "string"], "pattern": r"^[0-9.]+([KMGTP]i?|m)?$"}
NAME: Schema = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
LABELS: Schema = {
  "type": "object",
  "propertyNames": {"pattern": r"^([a-z0-9.-]+/)?[A-Za-z0-9][-A-Za-z0-9_.]*$"},
  "additionalProperties": {"type": "string"},
}


def fields(required: dict[str, Schema], **optional: Schema) -> Schema:
  return {
    "type": "object",
    "properties": {**required, **optional},
    "required": list(required),
    "additionalProperties": False,
  }


def several(item: Schema) -> Schema:
  return {"type": "array", "items": item, "minItems": 1}


RESOURCES: Schema = {
  "type": "object",
  "properties": dict.fromkeys(("cpu", "memory", "google.com/tpu", "nvidia.com/gpu"), QUANTITY),
  "additionalProperties": False,
}
CONTAINER = fields(
  {"name": NAME, "image": TEXT},
  command=several(TEXT),
  workingDir=TEXT,
  resources=fields({"requests": RESOURCES, "limits": RESOURCES}),
  volumeMounts=several(fields({"name": NAME, "mountPath": TEXT}, readOnly={"type": "boolean"})),
)
POD = fields(
  # A pod failure policy needs pods that are not restarted where they are.
  {"containers": several(CONTAINER), "restartPolicy": {"const": "Never"}},
  terminationGracePeriodSeconds=COUNT,
  serviceAccountName=NAME,
  nodeSelector=LABELS,
  tolerations=several(fields({"key": TEXT, "operator": {"enum": ["Exists", "Equal"]}})),
  volumes=several(
    fields(
      {"name": NAME},
      configMap=fields({"name": NAME}),
      emptyDir=fields({"medium": {"enum": ["", "Memory"]}}),
    )
  ),
)
POD_FAILURE_RULE = fields(
  {"action": {"enum": ["FailJob", "FailIndex", "Ignore", "Count"]}},
  onPodConditions=several(fields({"type": TEXT, "status": {"enum": ["True", "False"]}})),
  onExitCodes=fields(
    {"operator": {"enum": ["In", "NotIn"]}, "values": several(COUNT)}, containerName=NAME
  ),
)
JOB = fields(
  {"template": fields({"spec": POD})},
  parallelism=COUNT,
  completions=COUNT,
  completionMode={"enum": ["Indexed", "NonIndexed"]},
  backoffLimit={"type": "integer", "minimum": 0},
  podFailurePolicy=fields({"rules": several(POD_FAILURE_RULE)}),
)
ACTIONS = ["FailJobSet", "RestartJobSet", "RestartJobSetAndIgnoreMaxRestarts", "RestartJob"]
JOBSET_RULE = fields(
  {"name": {"type": "string", "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"}},
  action={"enum": ACTIONS},
  onJobFailureReasons=several({"enum": ["BackoffLimitExceeded", "PodFailurePolicy"]}),
  onJobFailureMessagePatterns=several(TEXT),
)
JOBSET = fields(
  {
    "apiVersion": {"const": "jobset.x-k8s.io/v1alpha2"},
    "kind": {"const": "JobSet"},
    "metadata": fields({"name": NAME}, labels=LABELS, annotations=LABELS),
    "spec": fields(
      {
        "replicatedJobs": several(
          fields({"name": NAME, "replicas": COUNT, "template": fields({"spec": JOB})})
        )
      },
      failurePolicy=fields(
        {"maxRestarts": COUNT, "rules": several(JOBSET_RULE)},
        restartStrategy={"enum": ["Recreate", "BlockingRecreate", "InPlaceRestart"]},
      ),
    ),
  }
)

SKY_TASK = fields(
  {"run": TEXT},
  name=TEXT,
  workdir=TEXT,
  num_nodes=COUNT,
  setup=TEXT,
  envs={
    "type": "object",
    "propertyNames": {"pattern": "^[a-zA-Z_][a-zA-Z0-9_]*$"},
    "additionalProperties": {"type": ["string", "null"]},
  },
  resources=fields(
    {},
    accelerators=TEXT,
    use_spot={"type": "boolean"},
    job_recovery=fields(
      {},
      strategy={"enum": ["FAILOVER", "EAGER_NEXT_REGION"]},
      max_restarts_on_errors=COUNT,
      recover_on_exit_codes=several({"type": "integer", "minimum": 0, "maximum": 255}),
    ),
  ),
)
