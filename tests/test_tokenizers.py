"""The tokenizer is exact on every text, harmless on every id, and the same for the same corpus."""

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from jaxzero.errors import UserError
from jaxzero.tokenizers import ALPHABET, CONTROL_PIECES, Tokenizer

CORPUS = ["2 4 5 6 = 32", "6*5=30", "6*5+(4-2)", "9/3=3"] * 5
WORDS = ["the cat sat on the mat, 12 times = the dog", "a café and the\nthe naïve \x00 ▁ cat"] * 20
SMALL, LARGE = Tokenizer.train(CORPUS), Tokenizer.train(WORDS, 400)

texts = st.text() | st.text(st.sampled_from("▁ \x00\n\t\ufffde\u030112<>/think0xA+="))


@settings(max_examples=500, deadline=None)
@given(texts)
@example("")
@example("\x00")
@example("▁▁ ▁")
@example("  two  spaces \n\r\n")
@example("<think> </think> <step> <bos> <end> <pad> <unk> <0x41> <s>")
@example("e\u0301 \ufffd \ufeff \u2028 👩‍👩‍👧")
def test_round_trip_is_exact_and_text_never_makes_a_control_token(text):
  for tokenizer in (SMALL, LARGE):
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert not tokenizer.control_ids & set(ids)
    assert all(0 <= i < tokenizer.vocab_size for i in ids)


@pytest.mark.parametrize("tokenizer", [SMALL, LARGE])
def test_arithmetic_is_one_token_per_character(tokenizer):
  table = {char: tokenizer.encode(char) for char in ALPHABET}
  assert all(len(ids) == 1 for ids in table.values())
  text = " 2 4+5=(12)*30/7-  +-*/()=="
  assert tokenizer.encode(text) == [table[char][0] for char in text]
  mixed = tokenizer.encode("the cat=12 the")
  assert [tokenizer.decode([i]) for i in mixed if tokenizer.decode([i]) in ALPHABET] == list(
    " =12 "
  )


def test_words_are_merged_and_the_default_vocabulary_is_small():
  assert len(LARGE.encode("the")) == 1
  assert SMALL.vocab_size == 281
  assert LARGE.vocab_size <= 400


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(-5, SMALL.vocab_size + 5) | st.integers(-(2**70), 2**70)))
def test_any_ids_decode_and_render(ids):
  text, rendered = SMALL.decode(ids), SMALL.render(ids)
  text.encode()
  rendered.encode()
  assert SMALL.decode([i for i in ids if i not in SMALL.control_ids]) == text


def test_control_tokens_are_ignored_named_or_rendered():
  t = SMALL
  prompt = [t.bos_id, *t.encode("2 5 6 = 32"), t.think_id]
  thinking = [*t.encode("6*5=30"), t.step_id, *t.encode("30+2=32"), t.end_think_id]
  ids = [*prompt, *thinking, *t.encode("6*5+2"), t.end_id, t.pad_id]
  assert t.render(ids) == "2 5 6 = 32 <think> 6*5=30 ; 30+2=32 </think> 6*5+2"
  assert t.decode(ids) == "2 5 6 = 326*5=3030+2=326*5+2"
  assert t.decode([t.step_id, t.pad_id], controls=True) == "<step><pad>"
  controls = [t.pad_id, t.bos_id, t.end_id, t.think_id, t.end_think_id, t.step_id]
  assert len(set(controls)) == 6 == len(t.control_ids)
  assert tuple(t.decode([i], controls=True) for i in controls) == CONTROL_PIECES


def test_same_texts_give_the_same_bits(tmp_path):
  assert Tokenizer.train(iter(WORDS), 400).fingerprint == LARGE.fingerprint != SMALL.fingerprint
  LARGE.save(tmp_path / "new" / "tokenizer")
  loaded = Tokenizer.load(tmp_path / "new" / "tokenizer")
  assert loaded.fingerprint == LARGE.fingerprint
  assert loaded.encode("the cat") == LARGE.encode("the cat")
  assert [path.name for path in (tmp_path / "new" / "tokenizer").iterdir()] == ["tokenizer.model"]


def test_a_missing_or_damaged_file_is_named(tmp_path):
  with pytest.raises(UserError, match=r"tokenizer\.model"):
    Tokenizer.load(tmp_path)
  SMALL.save(tmp_path)
  path = tmp_path / "tokenizer.model"
  whole = path.read_bytes()
  for damaged in (b"", whole[:200], whole[:-1], b"not a model" * 50, whole[300:]):
    path.write_bytes(damaged)
    with pytest.raises(UserError, match=r"tokenizer\.model") as caught:
      Tokenizer.load(tmp_path)
    assert "\n" not in str(caught.value)


def test_bad_training_input_and_half_surrogates_are_refused():
  with pytest.raises(UserError, match="281"):
    Tokenizer.train(CORPUS, 280)
  for nothing in ([], ["", "  "]):
    with pytest.raises(UserError, match="at least one non-empty"):
      Tokenizer.train(nothing)
  for bad in ("\ud800", "abc\udfff"):
    with pytest.raises(UserError, match="surrogate"):
      SMALL.encode(bad)
    with pytest.raises(UserError):
      Tokenizer.train([bad])
