"""Progress in a log: the outermost loop speaks, its inner ones are silent."""

from jaxzero import progress


def test_the_outermost_bar_prints_the_lines_of_all(monkeypatch, capsys):
  monkeypatch.setattr(progress, "_SECONDS_BETWEEN_LINES", 0.0)
  with progress.bar("rounds", 2, "round") as outer:
    for _ in range(2):
      with progress.bar("games", 3, "game") as inner:
        inner.advance(3)
      outer.advance()
  lines = capsys.readouterr().err.splitlines()
  assert all(line.startswith("rounds: ") for line in lines)
  assert lines[-1].startswith("rounds: 2/2 round, ") and "elapsed" in lines[-1]


def test_a_resumed_bar_counts_its_rate_from_where_it_resumed(capsys):
  with progress.bar("steps", 100, "step", start=90) as bar:
    bar.advance(10)
    bar._begin -= 10.0  # as if ten seconds had passed
  assert "steps: 100/100 step, 1.00 step/s" in capsys.readouterr().err
