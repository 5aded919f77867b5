"""The quickstart, the Experiment's defaults: `jaxzero quickstart`.

2 cores, a quarter of an hour or less, under 4 GiB; what it reaches: benchmarks/RESULTS.md.
"""

from jaxzero.recipes.experiment import Experiment

config = Experiment()
