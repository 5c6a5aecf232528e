"""`python -m workbench` is `qwb`."""

from workbench.cli.main import main

if __name__ == "__main__":
    main()
