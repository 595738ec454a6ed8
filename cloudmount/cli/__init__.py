"""The command line as `docs/cli.md` promises it: one command per file."""
