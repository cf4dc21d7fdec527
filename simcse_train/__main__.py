"""`python -m simcse_train` is `simcse-train`."""

from simcse_train.cli import main

if __name__ == "__main__":
    main()
