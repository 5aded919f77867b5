"""The command line as a user meets it: exit codes, sentences, JSON."""

import dataclasses
import json
import pathlib
import shutil
import subprocess
import sys

import pytest

from jaxzero import cli
from jaxzero.cli.distill import Distill
from jaxzero.cli.think import Eval, Solve
from jaxzero.learn.lessons import DistillConfig
from jaxzero.recipes.prm import PrmConfig
from jaxzero.recipes.study import ScaleConfig

MANUAL = (pathlib.Path(__file__).parents[1] / "docs" / "cli.md").read_text()


def run(capsys, *arguments):
  """(exit code, stdout, stderr) of one command, in this process."""
  code = 0
  try:
    cli.main([str(argument) for argument in arguments])
  except SystemExit as stopped:
    code = stopped.code or 0
  captured = capsys.readouterr()
  return code, captured.out, captured.err


def one_sentence(error):
  lines = [line for line in error.splitlines() if line.startswith("jaxzero: ")]
  return len(lines) == 1 and "Traceback" not in error


def test_help_fits_a_screen(capsys):
  code, out, _ = run(capsys, "--help")
  assert code == 0 and len(out.splitlines()) < 24


def test_solve_eval_and_report_of_a_finished_run(smoke_run, tmp_path, capsys):
  code, out, err = run(
    capsys, "solve", smoke_run, "2 5 6 = 32", "--budget", 300, "--show-thinking",
    "--json", tmp_path / "solve.json",
  )  # fmt: skip
  assert code == 0, err
  record = json.loads((tmp_path / "solve.json").read_text())
  assert set(record) == {"answer", "correct", "forward_tokens", "flops", "wall_s", "thinking"}
  assert record["forward_tokens"] <= 300
  code, out, err = run(
    capsys, "eval", smoke_run, "--strategy", "best_of_n", "--budget", 60, "--problems", 16,
    "--json", tmp_path / "eval.json",
  )  # fmt: skip
  assert code == 0, err
  result = json.loads((tmp_path / "eval.json").read_text())
  assert result["problems"] == 16 and result["forward_tokens_per_problem"] <= 60
  assert result["ci95"][0] <= result["accuracy"] <= result["ci95"][1]
  code, out, err = run(capsys, "report", smoke_run)
  assert code == 0 and out.strip().endswith("report.html")


@pytest.mark.parametrize(
  "arguments, words",
  [
    (["dance"], "unknown verb"),
    (["solve", "RUN", "2 5 6 = 32", "--strategy", "guess"], "strategy 'guess' is unknown"),
    (["solve", "RUN", "2 5 6 = 32", "--budget", "0"], "budget=0"),
    (["solve", "RUN", "2 5 6 = 32", "--budget", "99999999999"], "budget=99999999999"),
    (["solve", "RUN", "2 5 6 = 32", "--budget", "5"], "budget=5 is below one episode"),
    (["eval", "RUN", "--budget", "5"], "budget=5 is below one episode"),
    (["solve", "RUN", "2 5 6 = 32", "--effort", "heroic"], "effort 'heroic' is unknown"),
    (["eval", "RUN", "--effort", "low", "--budget", "50"], "both set the budget"),
    (["eval", "RUN", "--strategy", "best_of_n", "--samples", "0"], "samples=0"),
    (["eval", "RUN", "--vote", "unanimous"], "vote='unanimous'"),
    (["solve", "RUN", "2 5 6 = 32", "--prm"], "no process reward model; train one"),
    (["solve", "RUN", "2 5 six = 32"], "2 5 six = 32"),
    (["solve", "RUN", "1 1 1 = 99"], "no solution"),
    (["solve", "RUN", "2000 5000 6000 9999 = 32000"], "2000 5000 6000 9999"),
    (["eval", "RUN", "--split", "exam"], "exam"),
    (["eval", "RUN", "--problems", "0"], "--problems 0"),
    (["eval", "RUN", "--stage", "rlhf"], "rlhf"),
    (["eval", "no/such/run"], "no run at no/such/run"),
    (["report", "no/such/run"], "no/such/run"),
    (["bench", "speed"], "speed"),
    (["train"], "needs a config file"),
    (["train", "no/such.py"], "no/such.py"),
    (["quickstart", "--task.name", "chess", "--run", "NEW"], "chess"),
    (["quickstart", "--model.num-heads", "3", "--run", "NEW"], "num_heads=3"),
    (["quickstart", "--mesh.tensor", "4", "--run", "NEW"], "--model.num-kv-heads=2 does not"),
    (["quickstart", "--mesh.fsdp", "8", "--model.embed-dim", "60", "--run", "NEW"], "embed-dim=60"),
    (["quickstart", "--mesh.data", "3", "--run", "NEW"], "8 devices"),
    (["quickstart", "--supervised.batch-size", "12", "--run", "NEW"], "batch_size=12 does not"),
    (["quickstart", "--model.remat", "all", "--run", "NEW"], "remat='all'"),
    (["quickstart", "--supervised.batch-size", "0", "--run", "NEW"], "batch"),
    (["quickstart", "--improve.micro-batches", "3", "--run", "NEW"], "micro-batches=3"),
    (["quickstart", "--max-prompt", "8", "--run", "NEW"], "max-prompt=8"),
    (["quickstart", "--self-play.play.tree.num-candidates", "999", "--run", "NEW"], "999"),
    (["quickstart", "--evaluation.tree.num-simulations", "0", "--run", "NEW"], "simulations"),
    (["quickstart", "--self-play.play.tree.order", "puct", "--run", "NEW"], "order=puct"),
    (["quickstart", "--task.worked-examples", "0", "--run", "NEW"], "worked_examples=0"),
    (["quickstart", "--evaluation.problems", "2000", "--run", "NEW"], "not 2000"),
    (["quickstart", "--seed", "99999999999999999999", "--run", "NEW"], "seed=999"),
    (["quickstart", "--run", "FILE/run"], "part of the path is a file"),
    (["solve", "RUN", "2 5 6 = 32", "--seed", "-1"], "seed=-1"),
    (["solve", "RUN", "2 5 6 = 32", "--json", "/dev/null"], "/dev/null"),
    (["quickstart", "--run", "s3://bucket/run"], "gs://bucket/path"),
    (["quickstart", "--spike-factor", "0.5", "--run", "NEW"], "spike_factor=0.5"),
    (["quickstart", "--profile", "13:10", "--run", "NEW"], "'13:10' is no window"),
    (["verify", "no/such/run"], "no run at no/such/run"),
    (["quickstart", "--run", "FILE"], "is a file"),
    (["quickstart", "--run", "NEW", "--json", "RUN"], "--json"),
    (["train", "FILE", "--run", "NEW"], "does not run"),
    (["quickstart", "--run", "RUN"], "another config"),
  ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(smoke_run, tmp_path, capsys, arguments, words):
  places = {"RUN": smoke_run, "NEW": tmp_path / "new", "FILE": tmp_path / "file.py"}
  places["FILE"].write_text("config = 1 / 0\n")
  words_given = [places.get(a, str(a).replace("FILE/", f"{places['FILE']}/")) for a in arguments]
  code, _, err = run(capsys, *words_given)
  assert code == 2 and one_sentence(err) and words in err, err
  assert not (tmp_path / "new" / "config.json").exists()


@pytest.mark.parametrize(
  ("name", "content"),
  [
    ("config.json", "{}"),
    ("config.json", "[]"),
    ("checkpoints/self_play/digest-6.json", "[]"),
    ("tokenizer/tokenizer.model", "x"),
  ],
)
def test_a_damaged_file_is_named(smoke_run, tmp_path, capsys, name, content):
  shutil.copytree(smoke_run, tmp_path / "run")
  assert (tmp_path / "run" / name).exists()
  (tmp_path / "run" / name).write_text(content)
  code, _, err = run(capsys, "solve", tmp_path / "run", "2 5 6 = 32")
  assert code == 2 and one_sentence(err) and name in err, err


def test_json_follows_a_link_and_leaves_it_one(smoke_run, tmp_path, capsys):
  (tmp_path / "link.json").symlink_to(tmp_path / "real.json")
  code, _, err = run(
    capsys, "solve", smoke_run, "2 5 6 = 32", "--budget", 30, "--json", tmp_path / "link.json"
  )
  assert code == 0, err
  assert (tmp_path / "link.json").is_symlink()
  assert json.loads((tmp_path / "real.json").read_text())["forward_tokens"] <= 30


def test_every_verb_has_help(capsys):
  for verb in cli._FUNCTIONS:
    code, out, _ = run(capsys, verb, "--help")
    assert code == 0 and "usage" in out


@pytest.mark.parametrize(
  "verb, config",
  [("distill", Distill), ("distill", DistillConfig), ("prm", PrmConfig), ("scale", ScaleConfig),
   ("solve", Solve), ("eval", Eval)],
)  # fmt: skip
def test_every_flag_is_in_the_manual(verb, config):
  rows = [row.split("|") for row in MANUAL.splitlines() if row.startswith("| ")]
  told = "".join(row[2] for row in rows if verb in row[1])
  for field in dataclasses.fields(config):
    if field.name not in ("run", "problem", "config", "json"):
      assert f"`--{field.name.replace('_', '-')}" in told, field.name


def test_a_reader_that_has_seen_enough_is_no_error():
  command = f"{sys.executable} -m jaxzero.cli train --help | head -n 1"
  done = subprocess.run(command, shell=True, capture_output=True, text=True)
  assert done.stdout.startswith("usage") and done.stderr == ""


def test_an_unknown_key_is_an_error(capsys):
  code, _, err = run(capsys, "quickstart", "--model.num-layerz", "8")
  assert code == 2 and "num-layerz" in err


def test_an_empty_or_foreign_folder_is_refused(tmp_path, capsys):
  (tmp_path / "empty").mkdir()
  code, _, err = run(capsys, "eval", tmp_path / "empty")
  assert code == 2 and one_sentence(err) and "config.json" in err
  (tmp_path / "foreign").mkdir()
  (tmp_path / "foreign" / "thesis.tex").write_text("years of work")
  (tmp_path / "foreign" / ".thesis.tmp").write_text("and its backup")
  code, _, err = run(capsys, "quickstart", "--run", tmp_path / "foreign")
  assert code == 2 and one_sentence(err) and "thesis.tex" in err
  assert [path.name for path in (tmp_path / "foreign").glob("[!.]*")] == ["thesis.tex"]
  assert (tmp_path / "foreign" / ".thesis.tmp").exists()


def test_a_damaged_checkpoint_is_named(smoke_run, tmp_path, capsys):
  shutil.copytree(smoke_run, tmp_path / "run")
  files = [path for path in (tmp_path / "run/checkpoints/self_play").rglob("*") if path.is_file()]
  data = max(files, key=lambda path: path.stat().st_size)
  damaged = bytearray(data.read_bytes())
  damaged[len(damaged) // 2] ^= 1
  data.write_bytes(bytes(damaged))
  code, _, err = run(capsys, "eval", tmp_path / "run")
  assert code == 2 and one_sentence(err) and data.name in err and "altered" in err


def test_a_damaged_shard_is_set_aside_and_named(smoke_run, tmp_path, smoke_command):
  shutil.copytree(smoke_run, tmp_path / "run")
  (tmp_path / "run/results/self_play.json").unlink()
  shard = next((tmp_path / "run/episodes").glob("*.arrayrecord"))
  shard.write_bytes(shard.read_bytes()[:-10])
  done = subprocess.run(smoke_command(tmp_path / "run"), capture_output=True, text=True)
  last = done.stderr.splitlines()[-1]
  assert done.returncode == 2 and one_sentence(last) and shard.name in last, done.stderr
  assert "Traceback" not in done.stderr
  assert len(list((tmp_path / "run/episodes/quarantine").glob("*.reason.txt"))) == 1


def test_two_processes_on_one_folder_are_refused(smoke_run, smoke_command):
  import fcntl

  with (smoke_run / ".lock").open("w") as handle:
    fcntl.flock(handle, fcntl.LOCK_EX)
    done = subprocess.run(smoke_command(smoke_run), capture_output=True, text=True)
  assert done.returncode == 2 and "another process" in done.stderr


def test_the_package_imports_without_jax():
  code = "import sys, jaxzero, jaxzero.cli; sys.exit('jax' in sys.modules)"
  assert subprocess.run([sys.executable, "-c", code]).returncode == 0
