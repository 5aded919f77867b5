# shellcheck shell=bash
# What the launchers share; sourced, never run. A launcher sets `dry` (empty, or the word dry).

say() { echo "${0##*/}: $*" >&2; }
die() { say "$2"; exit "$1"; }
need() { [[ -n "${!1:-}" ]] || die 2 "set $1, for example $1=$2."; }
need_arguments() {
  (($#)) || die 2 "give jaxzero's arguments, such as: train CONFIG.py --run RUN."
}
quoted() { # words as one line that a shell reads back
  local word line=""
  for word in "$@"; do
    [[ "$word" =~ ^[A-Za-z0-9_./:=,@%+-]+$ ]] || word="${word@Q}"
    line+="$word "
  done
  echo "${line% }"
}
# Commands that change something go through `call`: shown as one could type them, then run.
# In a dry run they are the output; else they go to stderr, out of the way of what they print.
call() {
  if [[ -n "$dry" ]]; then quoted "$@"; else quoted "$@" >&2; "$@"; fi
}
expect() { say "it has begun once $1 shows 'jaxzero: N processes, M devices'."; }
