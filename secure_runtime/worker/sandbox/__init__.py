"""The layers between the worker and the rest of the machine. Standard library only."""
