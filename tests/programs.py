"""Reads compiled HLO: what a program does inside its loops."""

import collections
import re

_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
_COLLECTIVE = re.compile(rf"= (.*?) ({_KINDS})(?:-start)?\(")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition|branch_computations|\w+_computation)=")


class Program:
  """The computations of one module, and which of them run inside a while loop."""

  def __init__(self, text: str):
    self.lines: dict[str, list[str]] = {}
    name = ""
    for line in text.splitlines():
      if line.endswith("{") and not line.startswith(" "):
        name = line.removeprefix("ENTRY ").split()[0].lstrip("%")
        self.lines[name] = []
      elif name:
        self.lines[name].append(line)
    bodies = {
      called
      for lines in self.lines.values()
      for line in lines
      for called in re.findall(r"(?:body|condition)=%?([\w.\-]+)", line)
    }
    self.loops = self._reached(bodies)
    # The bodies and conditions of loops that hold no further loop.
    self.innermost = {name for name in bodies if len(bodies & self._reached({name})) == 1}

  def _reached(self, names: set[str]) -> set[str]:
    """These computations and all that they call."""
    reached: set[str] = set()
    waiting = list(names)
    while waiting:
      name = waiting.pop()
      if name in reached:
        continue
      reached.add(name)
      for line in self.lines[name]:
        if _CALLED.search(line):
          waiting += [word for word in re.findall(r"%?([\w.\-]+)", line) if word in self.lines]
    return reached

  @property
  def collectives(self) -> list[str]:
    return [x for lines in self.lines.values() for x in lines if _COLLECTIVE.search(x)]

  @property
  def collectives_in_loops(self) -> list[str]:
    return [x for name in self.loops for x in self.lines[name] if _COLLECTIVE.search(x)]

  @property
  def arrays_communicated(self) -> collections.Counter:
    """{(kind, whether inside a loop): how many arrays}; scalars are not counted."""
    counts: collections.Counter = collections.Counter()
    for name, lines in self.lines.items():
      for line in lines:
        if found := _COLLECTIVE.search(line):
          counts[found[2], name in self.loops] += len(re.findall(r"\w\[\d", found[1]))
    return +counts

  def copies_in_loops(self, shape: tuple[int, ...], innermost: bool = False) -> list[str]:
    """Copies of arrays of this shape, in any order of their axes; or those in innermost loops."""
    found = []
    for name in self._reached(self.innermost) if innermost else self.loops:
      for line in self.lines[name]:
        match = re.search(r"= \w+\[([\d,]+)\]\S* (?:copy|copy-start|transpose)\(", line)
        if match and sorted(map(int, match.group(1).split(","))) == sorted(shape):
          found.append(line.strip())
    return found
