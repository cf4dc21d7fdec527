"""`python -m simcse_train` is `simcse-train`."""

from simcse_train.cli import main

main()
