"""One run of a federation: clients and server built from recipes, its rounds, and its record."""
