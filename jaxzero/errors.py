"""The one exception for bad input: the command line prints its sentence and exits with code 2."""


class UserError(Exception):
  """What the user gave cannot be used; the message says what, with numbers, and the way out."""
