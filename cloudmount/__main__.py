"""`python -m cloudmount` is the program `cloudmount`."""

from cloudmount.cli.main import main

main()
