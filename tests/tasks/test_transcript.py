"""Episodes survive the trip to tokens and back, and no token list breaks the reader."""

from hypothesis import given, settings
from hypothesis import strategies as st

from jaxzero import tasks
from jaxzero.tasks import transcript
from jaxzero.tasks.base import Completion, TaskConfig
from jaxzero.tokenizers import Tokenizer

TASK = tasks.make(TaskConfig(numbers=4, max_number=9))
TOKENIZER = Tokenizer.train(["2 4 5 6 = 32", "6*5=30"])
PROBLEM = TASK.parse("2 4 5 6 = 32")
WORKED = Completion(steps=("6*5=30", "4-2=2", "30+2=32"), answer="6*5+(4-2)")


def test_worked_examples_round_trip_and_are_graded_right():
  for problem in TASK.problems("validation", 0, 50):
    completion = TASK.worked_example(problem)
    tokens = transcript.encode_completion(TOKENIZER, completion)
    assert transcript.parse_completion(TOKENIZER, tokens) == (completion, True)
    assert transcript.grade(TASK, TOKENIZER, problem, tokens).right
    start, stop = transcript.answer_span(TOKENIZER, tokens)
    assert TOKENIZER.decode(tokens[start:stop]) == completion.answer


@given(st.lists(st.text(min_size=1), max_size=4).map(tuple), st.text())
def test_any_completion_round_trips(steps, answer):
  completion = Completion(steps, answer)
  tokens = transcript.encode_completion(TOKENIZER, completion)
  assert transcript.parse_completion(TOKENIZER, [*tokens, 5, 6, 7]) == (completion, True)


def test_prompt_is_bos_text_think():
  tokens = transcript.encode_prompt(TOKENIZER, PROBLEM)
  assert tokens[0] == TOKENIZER.bos_id and tokens[-1] == TOKENIZER.think_id
  assert TOKENIZER.decode(tokens) == PROBLEM.prompt
  assert len(tokens) == len(PROBLEM.prompt) + 2


def test_render_is_the_prefix_that_solvable_reads():
  tokens = transcript.encode_completion(TOKENIZER, WORKED)
  assert TOKENIZER.render(tokens) == "6*5=30 ; 4-2=2 ; 30+2=32 </think> 6*5+(4-2)"
  for i in range(len(tokens) + 1):
    assert TASK.solvable(PROBLEM, TOKENIZER.render(tokens[:i]))


def test_every_unfinished_prefix_is_wrong():
  tokens = transcript.encode_completion(TOKENIZER, WORKED)
  for i in range(len(tokens)):
    assert transcript.answer_span(TOKENIZER, tokens[:i]) is None
    verdict = transcript.grade(TASK, TOKENIZER, PROBLEM, tokens[:i])
    assert not verdict.right and verdict.reason == "unfinished"
  no_thinking_end = [*TOKENIZER.encode("6*5+4-2"), TOKENIZER.end_id]
  assert transcript.grade(TASK, TOKENIZER, PROBLEM, no_thinking_end).reason == "unfinished"


def test_a_control_token_in_the_answer_is_not_overlooked():
  answer = TOKENIZER.encode(WORKED.answer)
  for control in (TOKENIZER.step_id, TOKENIZER.pad_id, TOKENIZER.bos_id, TOKENIZER.end_think_id):
    for at in range(len(answer) + 1):
      tokens = [TOKENIZER.end_think_id, *answer[:at], control, *answer[at:], TOKENIZER.end_id]
      assert not transcript.grade(TASK, TOKENIZER, PROBLEM, tokens).right


@settings(max_examples=300, deadline=None)
@given(st.lists(st.integers(-2, TOKENIZER.vocab_size + 2) | st.integers(0, 8), max_size=40))
def test_any_token_list_is_read(tokens):
  completion, finished = transcript.parse_completion(TOKENIZER, tokens)
  span = transcript.answer_span(TOKENIZER, tokens)
  assert finished == (span is not None)
  if span is not None:
    assert completion.answer == TOKENIZER.decode(tokens[slice(*span)], controls=True)
  verdict = transcript.grade(TASK, TOKENIZER, PROBLEM, tokens)
  assert verdict.right == (
    finished and TASK.verify(PROBLEM, completion.answer, completion.steps).right
  )
