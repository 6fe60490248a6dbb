"""`python -m sdcli` is `sdcli`."""

from sdcli.cli.main import main

if __name__ == "__main__":
    main()
