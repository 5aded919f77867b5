"""Text to token ids and back, exactly: SentencePiece whose alphabet is decisions, not words.

Every character of arithmetic, `0123456789+-*/()=` and the space, is a token of its own and never
part of a longer one, and so are the symbols that a task asks for, because a token is a move of the
search: one move, one decision, and the
verifier inside `jax.jit` may read an answer one character per token. Other text is byte-pair
encoded, and characters never seen in training fall back to their UTF-8 bytes. On a Countdown corpus
nothing is left to merge: 7 special symbols, the alphabet and the 256 bytes make 281 tokens.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Sequence

import sentencepiece
from etils import epath

from jaxzero.errors import UserError
from jaxzero.files import write_atomic

FILE_NAME = "tokenizer.model"
ALPHABET = "0123456789+-*/()= "
SPACE_MARK = "\u2581"  # how SentencePiece spells a space inside its pieces
CONTROL_PIECES = ("<pad>", "<bos>", "<end>", "<think>", "</think>", "<step>")
MIN_VOCAB_SIZE = 1 + len(CONTROL_PIECES) + len(ALPHABET) + 256


class Tokenizer:
  """An immutable SentencePiece model; equal training texts give a bit-identical one.

  Attributes:
    vocab_size: number of token ids.
    pad_id, bos_id, end_id, think_id, end_think_id, step_id: the control tokens, which no text
      encodes to: a literal "<think>" in a text becomes ordinary pieces.
    control_ids: all of them.
  """

  def __init__(self, model: bytes):
    """Wraps a serialized model; UserError if it is damaged or not one that `train` made."""
    self._model = model
    try:
      if not model:
        raise ValueError("it is empty")
      processor = sentencepiece.SentencePieceProcessor(model_proto=model)
      pieces = [processor.id_to_piece(i) for i in range(processor.vocab_size())]
      ids = {piece: i for i, piece in enumerate(pieces)}
      controls = [ids[piece] for piece in CONTROL_PIECES]
      if not all(processor.is_control(i) for i in controls):
        raise ValueError("its control symbols are not marked as such")
      byte_ids = [ids[f"<0x{byte:02X}>"] for byte in range(256)]
      if not all(processor.is_byte(i) for i in byte_ids):
        raise ValueError("its byte pieces are not marked as such")
      if not all(char.replace(" ", SPACE_MARK) in ids for char in ALPHABET):
        raise ValueError("it lacks a character of arithmetic")
    except (RuntimeError, KeyError, ValueError) as error:
      reason = " ".join(str(error).split())
      raise UserError(f"not a usable tokenizer model ({reason}); train it again") from error
    self._processor = processor
    self.vocab_size = len(pieces)
    self.pad_id, self.bos_id, self.end_id, self.think_id, self.end_think_id, self.step_id = controls
    self.control_ids = frozenset(controls)
    self._space_mark_ids = [byte_ids[byte] for byte in SPACE_MARK.encode()]
    self._bytes = [piece.replace(SPACE_MARK, " ").encode() for piece in pieces]
    self._bytes[processor.unk_id()] = "\ufffd".encode()
    for byte, i in enumerate(byte_ids):
      self._bytes[i] = bytes([byte])
    self._names = dict(zip(controls, CONTROL_PIECES, strict=True))

  @classmethod
  def train(cls, texts: Iterable[str], vocab_size: int = 512, symbols: str = "") -> Tokenizer:
    """Learns the pieces; `vocab_size` is an upper bound.

    Args:
      symbols: characters beside those of arithmetic that become tokens of their own.

    Raises:
      UserError: vocab_size is below 281 and the number of symbols, or there is no text.
    """
    single = ALPHABET + "".join(char for char in dict.fromkeys(symbols) if char not in ALPHABET)
    needed = MIN_VOCAB_SIZE + len(single) - len(ALPHABET)
    if vocab_size < needed:
      raise UserError(
        f"vocab_size={vocab_size} cannot hold the {needed} tokens that this tokenizer needs; use "
        f"at least {needed}"
      )
    lines = [text.replace(SPACE_MARK, " ") for text in texts]
    if not any(line.strip() for line in lines):
      raise UserError("a tokenizer needs at least one non-empty training text, and got none")
    model = io.BytesIO()
    try:
      sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=model,
        model_type="bpe",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        split_digits=True,
        byte_fallback=True,
        character_coverage=1.0,
        max_sentence_length=1 << 20,
        pad_id=0,
        bos_id=1,
        eos_id=2,
        unk_id=3,
        pad_piece="<pad>",
        bos_piece="<bos>",
        eos_piece="<end>",
        control_symbols=["<think>", "</think>", "<step>"],
        user_defined_symbols=list(single.replace(" ", SPACE_MARK)),
        num_threads=1,
        minloglevel=2,
      )
    except (RuntimeError, UnicodeEncodeError) as error:
      reason = " ".join(str(error).split())
      raise UserError(f"SentencePiece cannot train on {len(lines)} texts: {reason}") from error
    return cls(model.getvalue())

  def encode(self, text: str) -> list[int]:
    """The ids of a text, without any control token; UserError if it is not valid Unicode."""
    try:
      text.encode()
    except UnicodeEncodeError as error:
      raise UserError(
        f"character {error.start} of the text is half of a surrogate pair, which UTF-8 cannot "
        "hold; remove it"
      ) from error
    ids: list[int] = []
    for i, part in enumerate(text.split(SPACE_MARK)):
      if i:
        ids += self._space_mark_ids
      ids += self._processor.encode(part)
    return ids

  def decode(self, ids: Iterable[int], controls: bool = False) -> str:
    """The text of any ids; bytes that are not UTF-8 and unknown ids become U+FFFD.

    Args:
      ids: token ids, of a text or of whatever a model wrote.
      controls: spell control tokens by their names instead of leaving them out.
    """
    return b"".join(self._spell(int(i), controls) for i in ids).decode(errors="replace")

  def render(self, ids: Sequence[int]) -> str:
    """The ids as a person reads them: `2 5 6 = 32 <think> 6*5=30 ; 30+2=32 </think> 6*5+2`.

    bos, end and pad carry nothing to read and are left out.
    """
    parts: list[str] = []
    text: list[int] = []
    for i in [*map(int, ids), self.end_id]:
      if i not in self.control_ids:
        text.append(i)
        continue
      if text:
        parts.append(self.decode(text))
        text = []
      if i == self.step_id:
        parts.append(";")
      elif i in (self.think_id, self.end_think_id):
        parts.append(self._names[i])
    return " ".join(parts)

  @property
  def fingerprint(self) -> str:
    """sha256 of the serialized model, in hex."""
    return hashlib.sha256(self._model).hexdigest()

  def save(self, directory: epath.PathLike) -> None:
    """Writes `directory`/tokenizer.model, whole or not at all."""
    directory = epath.Path(directory)
    directory.mkdir(parents=True, exist_ok=True)
    write_atomic(directory / FILE_NAME, self._model)

  @classmethod
  def load(cls, directory: epath.PathLike) -> Tokenizer:
    """Reads what `save` wrote; UserError if it is missing or damaged."""
    path = epath.Path(directory) / FILE_NAME
    try:
      model = path.read_bytes()
    except OSError as error:
      raise UserError(f"cannot read the tokenizer {path}: {error.strerror or error}") from error
    try:
      return cls(model)
    except UserError as error:
      raise UserError(f"{path}: {error}") from error

  def _spell(self, i: int, controls: bool) -> bytes:
    if i in self.control_ids:
      return self._names[i].encode() if controls else b""
    return self._bytes[i] if 0 <= i < self.vocab_size else "\ufffd".encode()
