"""Exercises of chapter 07: carried keys."""
