"""Exact arithmetic on untrusted text: a one-pass shift/reduce machine, no recursion and no eval.

Grammar: whole numbers, + - * / (left associative, * and / bind tighter), parentheses, ASCII spaces
between tokens. Legal: every number is one of those given, each used once; division is exact; every
intermediate result is whole and within 0..LIMIT. The device verifier is the same machine in JAX.
"""

from __future__ import annotations

LIMIT = 2**31 - 1
MAX_LENGTH = 1000
MAX_DIGITS = 9
ALPHABET = "0123456789+-*/() "
DIGITS = "0123456789"

# One level of parentheses: value so far = acc add_op (term mul_op ...).
Frame = tuple[int, str, int, str]
EMPTY: Frame = (0, "+", 1, "*")


def apply(a: int, op: str, b: int) -> int | None:
  """The result of one legal step, or None if it is not whole or not within 0..LIMIT."""
  if op == "/":
    return a // b if b and a % b == 0 else None
  result = a + b if op == "+" else a - b if op == "-" else a * b
  return result if 0 <= result <= LIMIT else None


def close(frame: Frame) -> int | None:
  """The value of a level that ends here."""
  acc, add_op, term, _ = frame
  return apply(acc, add_op, term)


def with_operand(frame: Frame, value: int) -> Frame | None:
  """The level after an operand arrived; None if that is an illegal step."""
  acc, add_op, term, mul_op = frame
  result = apply(term, mul_op, value)
  return None if result is None else (acc, add_op, result, "*")


def with_operator(frame: Frame, op: str) -> Frame | None:
  """The level after an operator arrived; None if the sum that it completes is illegal."""
  acc, add_op, term, _ = frame
  if op in "*/":
    return (acc, add_op, term, op)
  total = close(frame)
  return None if total is None else (total, op, 1, "*")


class Machine:
  """Reads an expression token by token; `reason` says what went wrong first, "" if nothing did."""

  def __init__(self, numbers: tuple[int, ...]):
    self.frames: list[Frame] = [EMPTY]
    self.ready = False  # an operand has just ended, so an operator, ")" or the end may follow
    self.rest = list(numbers)
    self.reason = ""

  def feed(self, token: int | str) -> bool:
    """Takes one number or one of + - * / ( ); False as soon as no legal text begins like this."""
    if isinstance(token, int):
      self._number(token)
    elif token == "(":
      self._need(not self.ready, "misplaced (")
      self.frames.append(EMPTY)
    elif token == ")":
      self._close()
    else:
      self._need(self.ready, f"misplaced {token}")
      self.ready = False
      self._replace(with_operator(self.frames[-1], token))
    return not self.reason

  def result(self) -> int | None:
    """The value if the text may end here, else None with `reason` set."""
    self._need(self.ready, "unfinished expression")
    self._need(len(self.frames) == 1, "unclosed (")
    self._need(not self.rest, "not every number is used")
    value = close(self.frames[-1])
    self._need(value is not None, "illegal step")
    return None if self.reason else value

  def _need(self, condition: bool, reason: str) -> None:
    if not condition and not self.reason:
      self.reason = reason

  def _number(self, value: int) -> None:
    self._need(not self.ready, "two numbers in a row")
    self._need(value in self.rest, f"{value} is not one of the numbers left")
    if not self.reason:
      self.rest.remove(value)
      self._operand(value)

  def _close(self) -> None:
    self._need(self.ready and len(self.frames) > 1, "misplaced )")
    if self.reason:
      return
    value = close(self.frames.pop())
    self._need(value is not None, "illegal step")
    if value is not None:
      self._operand(value)

  def _operand(self, value: int) -> None:
    self.ready = True
    self._replace(with_operand(self.frames[-1], value))

  def _replace(self, frame: Frame | None) -> None:
    self._need(frame is not None, "illegal step")
    if frame is not None:
      self.frames[-1] = frame


def tokenize(text: str) -> tuple[list[int | str], str]:
  """The tokens before the first thing that cannot be one, and what that was ("" if nothing)."""
  if len(text) > MAX_LENGTH:
    return [], f"longer than {MAX_LENGTH} characters"
  tokens: list[int | str] = []
  at = 0
  while at < len(text):
    start = at
    while at < len(text) and text[at] in DIGITS:
      at += 1
    digits = text[start:at]
    if digits:
      if len(digits) > 1 and digits[0] == "0":
        return tokens, "leading zero"
      if len(digits) > MAX_DIGITS:
        return tokens, "number too long"
      tokens.append(int(digits))
      continue
    if text[at] not in ALPHABET:
      return tokens, "not an arithmetic expression"
    if text[at] != " ":
      tokens.append(text[at])
    at += 1
  return tokens, ""


def evaluate(text: str, numbers: tuple[int, ...]) -> tuple[int | None, str]:
  """The value of a legal expression that uses each number once, or None and the reason."""
  tokens, reason = tokenize(text)
  if reason:
    return None, reason
  if not tokens:
    return None, "empty answer"
  machine = Machine(numbers)
  for token in tokens:
    if not machine.feed(token):
      return None, machine.reason
  return machine.result(), machine.reason
