"""`python -m jaxzero.cli`."""

from jaxzero.cli import main

main()
