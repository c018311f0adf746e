"""The command line: one module per program. Doors import the package; nothing imports them."""
