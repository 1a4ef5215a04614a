"""Exercises of chapter 02: the teacher."""
