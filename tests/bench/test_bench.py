"""Benchmarks keep one form of result, do equal work, and leave out what is not installed."""

import json

import jax
import numpy as np
import pytest

from jaxzero import cli
from jaxzero.bench import decode, timing, torch_baseline, train
from jaxzero.errors import UserError
from jaxzero.models.cache import init_cache
from jaxzero.models.config import ModelConfig
from jaxzero.models.transformer import init_params

TINY = ModelConfig(num_layers=1, embed_dim=16, num_heads=2, num_kv_heads=1, head_dim=8, ffn_dim=16)
needs_torch = pytest.mark.skipif(not torch_baseline.available(), reason="no PyTorch")


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
  monkeypatch.setitem(timing.SIZES, "0.4M", TINY)


@pytest.fixture
def without_torch(monkeypatch):
  monkeypatch.setattr(torch_baseline, "available", lambda: False)


def check_schema(result, name, baselines):
  assert set(result) == {"host", "versions", "cases"}
  for case in result["cases"]:
    assert case["name"] == name and set(case["baselines"]) == set(case["ratios"]) == baselines
    assert case["params"] == TINY.parameters(timing.VOCAB_SIZE)
    for of, rate in case["baselines"].items():
      assert case["ratios"][of] == pytest.approx(case["tokens_per_s"] / rate)


def test_decode_without_torch_leaves_its_baseline_out(without_torch, tmp_path, capsys):
  path = tmp_path / "bench.json"
  flags = ["--sizes", "0.4M", "--batch-sizes", "1", "2", "--repeats", "1", "--json", str(path)]
  cli.main(["bench", "decode", *flags])
  result = json.loads(path.read_text())
  check_schema(result, "decode", {"matmul_bound"})
  assert [case["batch"] for case in result["cases"]] == [1, 2]
  out = capsys.readouterr().out
  assert ".[bench]" in out and "matmul_bound" in out


def test_train_without_torch_has_no_baseline(without_torch):
  result = train.bench_train((2,), ("0.4M",), 1)
  check_schema(result, "train", set())
  assert "train" in timing.table(result)


@needs_torch
def test_torch_is_timed_beside_ours():
  result = decode.bench_decode((2,), ("0.4M",), 1)
  check_schema(result, "decode", {"matmul_bound", "transformers"})
  assert "transformers" in result["versions"]
  check_schema(train.bench_train((2,), ("0.4M",), 1), "train", {"pytorch"})


@needs_torch
@pytest.mark.parametrize("config", [TINY, ModelConfig()])
def test_the_baseline_has_our_parameters_but_the_value_head(config):
  value_head = config.embed_dim + 1
  assert torch_baseline.parameters(config, 281) == config.parameters(281) - value_head


@needs_torch
def test_the_baseline_generates_all_its_tokens():
  assert torch_baseline.generate(TINY, 281, 2, 5, 7)().shape == (2, 12)


def test_the_bench_decodes_what_the_whole_model_would_say():
  params = init_params(TINY, 281, jax.random.key(0))
  prompts = jax.random.randint(jax.random.key(1), (2, decode.PROMPT), 0, 281)
  new = jax.jit(lambda p, x: decode.decode(TINY, decode._with_attention, p, x))(params, prompts)
  text = np.concatenate([prompts, new], axis=1)
  cached = init_cache(TINY, 2, text.shape[1])
  positions = np.broadcast_to(np.arange(text.shape[1]), text.shape)
  mask = np.broadcast_to(np.tril(np.ones((text.shape[1],) * 2, bool)), (2, *(text.shape[1],) * 2))
  net = decode.bind(TINY, 281, params)
  output, _ = net.extend(net.unstack(), cached, text, positions, np.int32(0), mask)
  said = np.argmax(output.logits, axis=-1)[:, decode.PROMPT - 1 : -1]
  np.testing.assert_array_equal(new, said)


def test_calls_take_turns():
  order = []
  calls = {name: lambda name=name: order.append(name) for name in "ab"}
  timing.interleaved(calls, 2)
  assert "".join(order) == "ab" + "abab"


@pytest.mark.parametrize(
  ("arguments", "words"),
  [
    (((0,), ("0.4M",), 1), "at least 1"),
    (((1,), ("7B",), 1), "7B.*0.4M"),
    (((), ("0.4M",), 1), "1"),
  ],
)
def test_nothing_to_measure_is_refused(arguments, words):
  for bench in (decode.bench_decode, train.bench_train):
    with pytest.raises(UserError, match=words):
      bench(*arguments)


def test_preset_names_tell_the_size():
  for name, config in timing.SIZES.items():
    config.check()
    if config is not TINY:
      assert config.parameters(281) == pytest.approx(float(name[:-1]) * 1e6, rel=0.15)
