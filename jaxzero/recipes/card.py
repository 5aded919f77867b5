"""The data card of an exported data set: what is in it, how it was made, and how to read it."""

from __future__ import annotations

from typing import Any

from jaxzero.recipes.experiment import Experiment
from jaxzero.selfplay.replay import ReplayStore

_CARD = """\
---
license: apache-2.0
pretty_name: {name}
configs:
- config_name: paths
  data_files: paths.parquet
- config_name: trees
  data_files: trees.parquet
- config_name: moves
  data_files: moves.parquet
---
# Search trees and verified paths of the run `{name}`

Made by jaxzero (AlphaZero for reasoning language models): a model searched over its own tokens,
and a verifier judged every end.

| | |
|---|---|
| task | `{task.name}`, {sizes} |
| split | train only; validation and test problems are in none of it |
| episodes | {counts.episodes} of {counts.problems} problems, self-play rounds {first} to {last} |
| ends (`paths`) | {counts.paths}, of which {counts.right} are right |
| nodes (`trees`) | {counts.nodes} |
| moves (`moves`) | {counts.moves} |
| model | {layers} layers of width {width}; each row says the training step of the one that played |
| search | `{tree.order}`, up to {tree.num_simulations} nodes of {tree.num_candidates} candidates |
| verdicts | exact, by the task's verifier, worked steps included |

## Columns
{columns}

`thinking` has a string for each step. A path that is not `finished` broke off where the verifier
knew that it is lost, and has no answer. `verdict` is -1 for no end, 0 wrong or lost, 1 right.
`prior` is a log-probability. Parents come before their children; node 0 is the root, without a
token. `docs/data.md` of jaxzero says more.

## Reading it
```python
import pandas as pd
paths = pd.read_parquet("paths.parquet")
right = paths[paths.right]
```
```python
import duckdb
duckdb.sql("select prompt, thinking, answer from 'paths.parquet' where \"right\" limit 10")
```
```python
from datasets import load_dataset
trees = load_dataset("parquet", data_files="trees.parquet", split="train")
```
`jaxzero verify FOLDER` reads all of it back and judges every path again.

## License
Apache-2.0, as jaxzero. A run that began from imported weights carries their terms.
"""


def data_card(
  name: str, experiment: Experiment, store: ReplayStore, counts: Any, schemas: dict[str, Any]
) -> str:
  """The text of README.md; `counts` are the export's, `schemas` its tables' by name."""
  columns = "\n".join(
    f"- **{table}**: " + ", ".join(f"`{field.name}` {field.type}" for field in schema)
    for table, schema in schemas.items()
  )
  return _CARD.format(
    name=name,
    task=experiment.task,
    sizes=", ".join(
      f"{size.replace('_', ' ')} {getattr(experiment.task, size)}"
      for size in ("numbers", "max_number", "max_target")
    ),
    counts=counts,
    first=store.rounds[0],
    last=store.rounds[-1],
    layers=experiment.model.num_layers,
    width=experiment.model.embed_dim,
    tree=experiment.self_play.play.tree,
    columns=columns,
  )
