"""The command line `neuralchat-lite`: one file for each command or group of commands."""
