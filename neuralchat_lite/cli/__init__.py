"""The command line: a command or a group of commands per file."""
