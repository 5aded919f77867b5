"""A batch of every kind of target, for tests of training."""

import numpy as np

from jaxzero.learn import batch as batch_lib

VOCAB, T, A, ROWS = 64, 12, 3, 8


def mixed_batch(seed=0, rows=ROWS):
  """Texts, soft targets and values with uneven weights, rows of uneven length."""
  random = np.random.default_rng(seed)
  arrays = batch_lib.empty(rows, T, A)
  for row in range(rows):
    prompt, completion = random.integers(VOCAB, size=3), random.integers(VOCAB, size=2 + row % 8)
    batch_lib.put_text(arrays, row, prompt, completion, weight=row % 3)
    if row % 2:
      arrays["soft_weight"][row, 3:5] = 1.0
      arrays["candidates"][row, 3:5] = [random.permutation(VOCAB)[:A] for _ in range(2)]
      arrays["soft_target"][row, 3:5] = random.dirichlet(np.ones(A + 1), 2)
      arrays["value_weight"][row, 2:5] = 1.0
      arrays["value_target"][row] = row % 8 == 1
  return batch_lib.to_batch(arrays)
