"""The two exceptions that end a command without being a bug."""


class UserError(Exception):
  """What the user gave cannot be used; the message says what, with numbers, and the way out. The
  command line prints it and exits with code 2."""


class Preempted(Exception):
  """All hosts stopped at the named point, and what was done is saved: exit code 3."""
