"""The audited tasks of reasoning-gym: short prompts, and our own exact way to work each one out.

The package draws the problems and nothing else: its scorers run text as code in places, and pay for
what is wrong. Here a prompt is read by a pattern, worked out in whole numbers, and has one right
completion, so checking is comparing. Numbers in prompts are bounded, and so are steps and time.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from jaxzero.tasks.base import Completion


@dataclasses.dataclass(frozen=True)
class GymProblems:
  """One data set of the package.

  Attributes:
    dataset: its name there.
    settings: its own settings, which make it short.
    prompt: our short prompt of one of its items.
    pattern: what prompts look like; its groups are what `work` gets.
    example: a good prompt.
    work: the groups of a prompt -> its one right completion, or None if there is none.
  """

  dataset: str
  settings: Mapping[str, Any]
  prompt: Callable[[Mapping[str, Any]], str]
  pattern: str
  example: str
  work: Callable[..., Completion | None]


def _euclid(a: int, b: int) -> tuple[int, list[str]]:
  """The greatest common divisor and the divisions that find it."""
  a, b = max(a, b), min(a, b)
  steps = []
  while b:
    steps.append(f"{a}-{a // b}*{b}={a % b}")
    a, b = b, a % b
  return a, steps


def _sum(terms: str) -> Completion:
  first, *rest = re.findall("[+-]?[0-9]+", terms)
  total, steps = int(first), []
  for term in rest:
    result = total + int(term)
    steps.append(f"{total}{term}={result}")
    total = result
  return Completion(tuple(steps), str(total))


def _product(a: str, b: str) -> Completion:
  digits = [int(digit) * 10**i for i, digit in enumerate(reversed(b)) if digit != "0"]
  parts = [(part, int(a) * part) for part in reversed(digits or [0])]
  steps = [f"{int(a)}*{part}={product}" for part, product in parts]
  total = parts[0][1]
  for _, product in parts[1:]:
    steps.append(f"{total}+{product}={total + product}")
    total += product
  return Completion(tuple(steps), str(total))


def _gcd(a: str, b: str) -> Completion:
  divisor, steps = _euclid(int(a), int(b))
  return Completion(tuple(steps), str(divisor))


def _lcm(a: str, b: str) -> Completion:
  divisor, steps = _euclid(int(a), int(b))
  multiple = math.lcm(int(a), int(b))
  return Completion((*steps, f"{a}/{divisor}*{b}={multiple}"), str(multiple))


def _fraction(a: str, b: str) -> Completion:
  divisor, steps = _euclid(int(a), int(b))
  return Completion(tuple(steps), f"{int(a) // divisor}/{int(b) // divisor}")


def _bits(number: str) -> Completion:
  binary = f"{int(number):b}"
  return Completion((f"{number}={binary}",), str(binary.count("1")))


def _convert(digits: str, source: str, target: str) -> Completion | None:
  source_base, target_base = int(source), int(target)
  if not (2 <= source_base <= 10 and 2 <= target_base <= 10 and int(max(digits)) < source_base):
    return None
  value, steps = int(digits, source_base), []
  if source_base != 10:
    total = int(digits[0])
    for digit in digits[1:]:
      steps.append(f"{total}*{source_base}+{digit}={total * source_base + int(digit)}")
      total = total * source_base + int(digit)
  answer, left = "" if value else "0", value
  while left:
    quotient, rest = divmod(left, target_base)
    if target_base != 10:
      steps.append(f"{left}={quotient}*{target_base}+{rest}")
    answer, left = f"{rest}{answer}", quotient
  return Completion(tuple(steps), answer)


def _factor(number: str) -> Completion:
  left, factors, steps, divisor = int(number), [], [], 2
  while divisor * divisor <= left:
    if left % divisor:
      divisor += 1
      continue
    factors.append(divisor)
    steps.append(f"{left}/{divisor}={left // divisor}")
    left //= divisor
  return Completion(tuple(steps), "*".join(map(str, [*factors, left])))


def _equation(left: str, right: str) -> Completion | None:
  slope = offset = 0
  for term in re.findall("[+-]?[^+-]+", left):
    if term.endswith("x"):
      factor = term.removesuffix("x").removesuffix("*")
      slope += int(factor if factor.strip("+-") else factor + "1")
    else:
      offset += int(term)
  rest = int(right) - offset
  if not slope or rest % slope:
    return None
  steps = [f"{right}{-offset:+}={rest}"] if offset else []
  steps += [f"{rest}/{slope}={rest // slope}"] if slope != 1 else []
  return Completion(tuple(steps), str(rest // slope))


def _equation_prompt(meta: Mapping[str, Any]) -> str:
  equation = meta["equation"].replace(" ", "").replace(meta["variable"], "x")
  return f"solve {equation}"


_TERM = r"(?:[0-9]{1,4}(?:\*x)?|x)"
_SMALL, _PAIR = "([1-9][0-9]{0,3})", "([1-9][0-9]{0,3}) ([1-9][0-9]{0,3})"

GYM_TASKS: dict[str, GymProblems] = {
  "gym_chain_sum": GymProblems(
    "chain_sum",
    {"max_terms": 4, "max_digits": 2},
    lambda meta: f"sum {meta['expression'].replace(' ', '')}",
    r"sum ([0-9]{1,4}(?:[+-][0-9]{1,4}){1,5})",
    "sum 12-7+30",
    _sum,
  ),
  "gym_products": GymProblems(
    "products",
    {"max_digits": 3},
    lambda meta: f"product {meta['expression'].replace(' ', '')}",
    r"product ([0-9]{1,4})\*([0-9]{1,4})",
    "product 23*456",
    _product,
  ),
  "gym_gcd": GymProblems(
    "gcd",
    {},
    lambda meta: "gcd {} {}".format(*meta["numbers"]),
    f"gcd {_PAIR}",
    "gcd 760 368",
    _gcd,
  ),
  "gym_lcm": GymProblems(
    "lcm",
    {},
    lambda meta: "lcm {} {}".format(*meta["numbers"]),
    f"lcm {_PAIR}",
    "lcm 12 18",
    _lcm,
  ),
  "gym_fraction_simplification": GymProblems(
    "fraction_simplification",
    {"styles": ("plain",), "max_value": 100, "max_factor": 10},
    lambda meta: f"simplify {meta['numerator']}/{meta['denominator']}",
    f"simplify {_SMALL}/{_SMALL}",
    "simplify 12/18",
    _fraction,
  ),
  "gym_count_bits": GymProblems(
    "count_bits",
    {"max_n": 65535},
    lambda meta: f"bits {meta['number']}",
    "bits ([1-9][0-9]{0,7})",
    "bits 37",
    _bits,
  ),
  "gym_base_conversion": GymProblems(
    "base_conversion",
    {"max_base": 10, "max_value": 255},
    lambda meta: f"convert {meta['source_repr']} {meta['source_base']} {meta['target_base']}",
    "convert ([0-9]{1,8}) ([0-9]{1,2}) ([0-9]{1,2})",
    "convert 1101 2 7, a number, its base and another one",
    _convert,
  ),
  "gym_prime_factorization": GymProblems(
    "prime_factorization",
    {"max_value": 9999},
    lambda meta: f"factor {meta['number']}",
    "factor ([2-9]|[1-9][0-9]{1,5})",
    "factor 360",
    _factor,
  ),
  "gym_simple_equations": GymProblems(
    "simple_equations",
    {"max_terms": 3, "max_value": 20},
    _equation_prompt,
    rf"solve (-?{_TERM}(?:[+-]{_TERM}){{0,3}})=(-?[0-9]{{1,6}})",
    "solve 3*x+5=20",
    _equation,
  ),
}
