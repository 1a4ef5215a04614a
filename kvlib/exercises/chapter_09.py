"""Exercises of chapter 09: the capstone."""
