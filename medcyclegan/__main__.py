"""`python -m medcyclegan` is the command line."""

from medcyclegan.cli import main

if __name__ == "__main__":
    main()
