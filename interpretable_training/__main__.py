"""`python -m interpretable_training` is the command `interpretable-training`."""

from interpretable_training.cli import main

if __name__ == "__main__":
    main()
