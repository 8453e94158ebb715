"""The program as its users meet it: streams, files, exit codes."""
