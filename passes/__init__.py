"""Passes: what changes a program, one file each, by kind; found by name, and imported by nothing below."""
