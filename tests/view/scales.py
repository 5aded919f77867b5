"""A made-up scale.json with everything in it."""

import math

MULTIPLES, UNIT = (1, 2, 4, 8, 16, 32), 25.3
PLAIN = ("greedy", "sample", "majority")
SKILL = {
  "best_of_n": 0.30,
  "shared_samples": 0.33,
  "without_replacement": 0.36,
  "best_first": 0.4,
  "beam": 0.31,
  "dvts": 0.28,
  "lookahead": 0.25,
  "mcts": 0.45,
  "auto": 0.47,
}


def figures(strategy, rights, accuracy, multiple=None):
  tokens = UNIT * (multiple or 1)
  accuracy = min(accuracy, 0.99)
  point = {
    "strategy": strategy,
    "rights": rights,
    "budget": round(tokens),
    "problems": 500,
    "solved": round(500 * accuracy),
    "accuracy": accuracy,
    "ci95": [max(0, accuracy - 0.04), min(1, accuracy + 0.04)],
    "forward_tokens_per_problem": tokens * 0.93,
    "flops_per_problem": tokens * 7e5,
    "setting": {"temperature": 0.8},
  }
  return point if multiple is None else {**point, "multiple": multiple}


def points(strategy, rights, skill):
  rows = []
  for multiple in MULTIPLES:
    accuracy = skill * (1 + 0.28 * math.log2(multiple))
    bins = [
      {
        "bin": number,
        "problems": 100,
        "accuracy": max(0.0, min(1.0, accuracy + 0.2 - 0.1 * number)),
        "ci95": [max(0.0, accuracy + 0.1 - 0.1 * number), min(1.0, accuracy + 0.3 - 0.1 * number)],
        "forward_tokens_per_problem": UNIT * multiple,
      }
      for number in range(5)
    ]
    rows.append({**figures(strategy, rights, accuracy, multiple), "by_bin": bins})
  return rows


def way(strategy, rights, skill):
  if strategy in ("greedy", "sample"):
    rows = [{**figures(strategy, rights, skill), "by_bin": []}]
  else:
    rows = points(strategy, rights, skill)
  gain = {
    "slope_per_doubling": 0.084,
    "ci95": [0.07, 0.1],
    "worst_fall": 0.006,
    "worst_fall_p": 0.41,
    "steps": [],
  }
  return {
    "strategy": strategy,
    "rights": rights,
    "setting": {"temperature": 0.8},
    "tried": [],
    "points": rows,
    "trend": gain if len(rows) > 1 else None,
  }


def scale():
  levels = {"verifier": 1.0, "value": 0.75, "prm": 0.85}
  ways = [way(name, "none", 0.24) for name in PLAIN]
  ways += [
    way(name, rights, skill * level) for rights, level in levels.items()
    for name, skill in SKILL.items()
  ]  # fmt: skip
  lead = {"difference": 0.1234, "ci95": [0.09, 0.15], "p": 0.0002}
  judge = {"auroc": 0.874, "ece": 0.05}
  row = {"position": "step 1", "prefixes": 480, "illegal": 0.1, "solvable": 0.4}
  row |= {"prm": judge, "value": {**judge, "auroc": 0.71}}
  return {
    "task": "countdown",
    "problems": 500,
    "validation_problems": 128,
    "unit_tokens": UNIT,
    "multiples": list(MULTIPLES),
    "ways": ways,
    "comparisons": [
      {
        "strategy": "mcts",
        "rights": rights,
        "against": "best_of_n",
        "points": [{"budget": round(UNIT * m), **lead} for m in MULTIPLES],
      }
      for rights in levels
    ],
    "difficulty": {
      "samples": 16,
      "bins": [{"bin": b, "problems": 100, "success": 0.8 - 0.2 * b} for b in range(5)],
    },
    "auto": {
      "verifier": {
        "against": "best_of_n",
        "against_tried": 4,
        "tried": 12,
        "points": [
          {
            "budget": 202,
            "ratio": 0.27,
            "ci95": [0.22, 0.33],
            "reached": 0.98,
            "accuracy": 0.81,
            "tokens": 70.5,
            "curve_tokens": 261.0,
          }
        ],
      }
    },
    "train_time": {
      "flops": {"pretrain": 6.3e12, "self_play": 9.1e12, "prm": 4.4e12},
      "validation": [
        {"stage": "pretrain", "flops": 3e12, "accuracy": 0.2},
        {"stage": "pretrain", "flops": 6.3e12, "accuracy": 0.25},
        {"stage": "self_play", "flops": 9e12, "accuracy": 0.4},
        {"stage": "self_play", "flops": 15.4e12, "accuracy": 0.52},
      ],
      "test": [
        {"stage": "pretrain", "flops": 6.3e12, **figures("greedy", "none", 0.244)},
        {"stage": "self_play", "flops": 15.4e12, **figures("greedy", "none", 0.507)},
      ],
    },
    "larger": {
      "parameters": 2_400_000,
      "train_flops": 9e13,
      "worked_examples": 2000,
      "run_seed": 1,
      "test": {**figures("greedy", "none", 0.66), "flops_per_problem": 2.5e8},
      "small": {
        "parameters": 160_000,
        "train_flops": 1.5e13,
        "worked_examples": 2000,
        "run_seed": 0,
        "test": figures("greedy", "none", 0.507),
      },
      "points": [{**figures("mcts", "verifier", 0.71, 8), "train_flops": 1.7e13, **lead}],
    },
    "transfer": [
      {
        "task": "arithmetic",
        "pretrain": figures("greedy", "none", 0.021),
        "self_play": figures("greedy", "none", 0.043),
        "change": {"difference": 0.022, "ci95": [0.0, 0.04], "p": 0.04},
      }
    ],
    "prm": {
      "grades": {
        "positions": [row],
        "undecided": {**row, "position": "undecided"},
        "first_error": {"prm": {"f1": 0.61}, "value": {"f1": 0.4}},
      }
    },
  }
