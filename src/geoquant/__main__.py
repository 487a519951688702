"""`python -m geoquant` is the program `geoquant`, also where scripts are not on the path."""

from geoquant.cli import main

if __name__ == "__main__":
    main()
