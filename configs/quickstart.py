"""The quickstart, the Experiment's defaults: `jaxzero quickstart`.

2 cores, about 10 minutes, under 4 GiB; what it reaches: benchmarks/RESULTS.md.
"""

from jaxzero.recipes.experiment import Experiment

config = Experiment()
