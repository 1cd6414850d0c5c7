"""`python -m tuner_service.cli` is `tuner`."""

from tuner_service.cli.app import main

if __name__ == "__main__":
    main()
