"""A tokenizer's tokens as the characters that a verifier inside `jax.jit` reads."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from jaxzero.errors import UserError
from jaxzero.tokenizers import Tokenizer


class Characters:
  """Codes of tokens: a character's index in the alphabet, or one of the four behind it.

  Attributes:
    step, end_think, end: the codes of the control tokens that a completion has.
    invalid: the code of every other token, and of ids that are none.
  """

  def __init__(self, tokenizer: Tokenizer, alphabet: str):
    """Raises UserError if a token spells several characters of the alphabet."""
    self.step, self.end_think, self.end, self.invalid = range(len(alphabet), len(alphabet) + 4)
    table = np.full(tokenizer.vocab_size, self.invalid, np.int32)
    for i in range(tokenizer.vocab_size):
      text = tokenizer.decode([i], controls=True)
      if text and set(text) <= set(alphabet):
        if len(text) > 1:
          raise UserError(
            f"token {i} of this tokenizer spells {text!r}; the device verifier needs one token for "
            "each character of an answer, so use a tokenizer that never merges them"
          )
        table[i] = alphabet.index(text)
    controls = [tokenizer.step_id, tokenizer.end_think_id, tokenizer.end_id]
    table[controls] = self.step, self.end_think, self.end
    self.table = table

  def code(self, token: jax.Array) -> jax.Array:
    """Tokens int32 [...], any ids -> codes int32 [...]."""
    codes = jnp.asarray(self.table)
    return codes.at[token].get(mode="fill", fill_value=self.invalid, wrap_negative_indices=False)
