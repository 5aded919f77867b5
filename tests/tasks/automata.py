"""How the device verifiers are held to `grade`: token by token, any rows, few compiles."""

from __future__ import annotations

import jax
import numpy as np
from hypothesis import strategies as st

from jaxzero.tasks.transcript import encode_completion, grade, parse_completion

BATCH = 32


class Reader:
  """A task's device verifier, compiled once for rows of up to `width` tokens."""

  def __init__(self, task, tokenizer, width=96):
    self.task, self.tokenizer, self.width = task, tokenizer, width
    verifier = task.device_verifier(tokenizer)

    @jax.jit
    def read_all(arrays, tokens):
      def turn(state, token):
        state = verifier.read(state, token)
        return state, (verifier.lost(state), verifier.right(state))

      return jax.lax.scan(turn, verifier.start(arrays), tokens.T)[1]

    self._read_all = read_all

  def judge(self, problem, rows):
    """(lost, right): for every row a list of what is known after each of its tokens."""
    lost, right = [], []
    for part in (rows[i : i + BATCH] for i in range(0, len(rows), BATCH)):
      tokens = np.full((BATCH, self.width), self.tokenizer.pad_id, np.int32)
      for i, row in enumerate(part):
        tokens[i, : len(row)] = row
      arrays = np.tile(self.task.problem_array(problem), (BATCH, 1))
      got = [np.asarray(x).T.tolist() for x in self._read_all(arrays, tokens)]
      for i, row in enumerate(part):
        lost.append(got[0][i][: len(row)])
        right.append(got[1][i][: len(row)])
    return lost, right

  def check(self, problem, rows):
    """The host's verdicts, after comparing them with the device's.

    What is right is so from its end token on; what is lost stays so, is never right, cannot be
    continued, and every ended row is either.
    """
    rows = [row for row in rows if 0 < len(row) <= self.width]
    end, verdicts = self.tokenizer.end_id, []
    for row, lost, right in zip(rows, *self.judge(problem, rows), strict=True):
      verdict = grade(self.task, self.tokenizer, problem, row).right
      said = problem.id, self.tokenizer.render(row), row
      for i in range(len(row)):
        ended = end in row[: i + 1]
        assert right[i] == (verdict and ended), said
        assert lost[i] or not ended or verdict, said
        assert lost[i] >= (i > 0 and lost[i - 1]), said
      if True in lost:
        head = row[: lost.index(True) + 1]
        if self.is_readable(head):
          assert not self.task.solvable(problem, self.tokenizer.render(head)), said
      verdicts.append(verdict)
    return verdicts

  def is_readable(self, prefix):
    """Whether its rendered text means the same: no stray control, semicolon or edge space."""
    completion = parse_completion(self.tokenizer, prefix)[0]
    texts = [*completion.steps, completion.answer]
    clean = not any(set(text) & set(";<\ufffd") or text != text.strip() for text in texts)
    return clean and all(completion.steps) and self.tokenizer.end_id not in prefix

  def encode(self, completion):
    return encode_completion(self.tokenizer, completion)


@st.composite
def rows_of(draw, task, tokenizer, problem, alphabet):
  """Right completions, some with tokens changed, and noise."""
  seeds = draw(st.lists(st.integers(0, 99), min_size=2, max_size=2))
  controls = [tokenizer.step_id, tokenizer.end_think_id, tokenizer.end_id]
  token = st.one_of(
    st.integers(-3, tokenizer.vocab_size + 3),
    st.sampled_from([*tokenizer.encode(alphabet), *controls]),
    st.sampled_from(tokenizer.encode(alphabet)),
  )
  rows = [encode_completion(tokenizer, task.worked_example(problem, seed)) for seed in seeds]
  for row in rows[:2]:
    for _ in range(4):
      at, cut = draw(st.integers(0, len(row))), draw(st.integers(0, 2))
      rows.append([*row[:at], *draw(st.lists(token, max_size=2)), *row[at + cut :]])
  return rows + draw(st.lists(st.lists(token, max_size=40), max_size=3))
