"""The rules of simplify, by what they look at."""
