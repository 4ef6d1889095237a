"""What the command line does as a client of a running store, a module a command."""
