"""The command line: parse, call api, show."""
