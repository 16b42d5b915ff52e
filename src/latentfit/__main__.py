"""`python -m latentfit`, which works where scripts are not on the PATH."""

from latentfit.cli import main

if __name__ == "__main__":
    main()
